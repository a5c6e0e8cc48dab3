// Softmax and cross-entropy over the vocabulary, in one pass over the rows of logits (N, Vp). Columns >= V are
// padding: they are excluded from the softmax, and their gradient is 0.
//
//     losses_i  = log(sum_v exp(logits_iv)) - logits_i,target_i      in nats; 0 where target is IGNORE_TARGET
//     gradient:   logits_iv is overwritten with dlogits_iv = scale (softmax(logits_i)_v - [v = target_i]);
//                 0 in ignored rows
//
// The gradient overwrites the logits, so that there is never a second tensor of this size. exp is applied to the logits
// minus the maximum of the row. The order of the sum over a row is fixed.
//
//     loss_add    *loss = or += sum over i of losses_i / tokens     (mode), in double
#ifndef LAYERS_SOFTMAX_CROSS_ENTROPY_CUH
#define LAYERS_SOFTMAX_CROSS_ENTROPY_CUH

#include "common.h"

enum { IGNORE_TARGET = -1 };

// Returns the sum of exp(x - maximum) over a row, and its maximum in *maximum_out. If `keep`, overwrites the row with
// the exponentials.
static inline float softmax_row_cpu(float *restrict row, size_t V, int keep, float *maximum_out) {
    float lane[LANES], maximum = row[0], sum;
    for (int j = 0; j < LANES; j++) lane[j] = row[0];
    size_t whole = V / LANES * LANES;
    for (size_t first = 0; first < whole; first += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] = row[first + (size_t)j] > lane[j] ? row[first + (size_t)j] : lane[j];
    for (int j = 0; j < LANES; j++) maximum = lane[j] > maximum ? lane[j] : maximum;
    for (size_t v = whole; v < V; v++) maximum = row[v] > maximum ? row[v] : maximum;
    if (keep)
        SUM_IN_LANES(sum, V, (row[i] = fast_exp(row[i] - maximum)));
    else
        SUM_IN_LANES(sum, V, fast_exp(row[i] - maximum));
    *maximum_out = maximum;
    return sum;
}

static inline void cross_entropy_forward_cpu(float *losses, float *logits, const int32_t *targets, size_t N,
                                             size_t V, size_t Vp) {
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++) {
        losses[i] = 0.0f;
        if (targets[i] == IGNORE_TARGET) continue;
        float *row = logits + i * Vp, maximum, sum = softmax_row_cpu(row, V, 0, &maximum);
        losses[i] = logf(sum) - (row[targets[i]] - maximum);
    }
}

static inline void cross_entropy_backward_cpu(float *losses, float *logits, const int32_t *targets,
                                              float scale, size_t N, size_t V, size_t Vp) {
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < N; i++) {
        float *row = logits + i * Vp;
        losses[i] = 0.0f;
        if (targets[i] == IGNORE_TARGET) {
            memset(row, 0, Vp * sizeof(float));
            continue;
        }
        float target = row[targets[i]], maximum, sum = softmax_row_cpu(row, V, 1, &maximum);
        losses[i] = logf(sum) - (target - maximum);
        float factor = scale / sum;
        for (size_t v = 0; v < V; v++) row[v] *= factor;
        row[targets[i]] -= scale;
        memset(row + V, 0, (Vp - V) * sizeof(float));
    }
}

static inline void loss_add_cpu(double *loss, const float *losses, size_t N, double tokens, int accumulate) {
    double sum = 0;
    for (size_t i = 0; i < N; i++) sum += (double)losses[i];
    *loss = (accumulate ? *loss : 0) + sum / tokens;
}

#ifdef DEVICE_CUDA
#include "kernel.cuh"

enum { CROSS_ENTROPY_THREADS = 512 };
enum CrossEntropyMode { LOSS_ONLY, LOSS_AND_GRADIENT };

// Updates the running maximum and the sum of exp(x - maximum) with eight more columns, of which only the first `valid`
// count.
__device__ __forceinline__ void softmax_add8(float &maximum, float &sum, const Float8 &x, int valid) {
    float higher = maximum;
#pragma unroll
    for (int k = 0; k < 8; k++) higher = k < valid ? fmaxf(higher, x.v[k]) : higher;
    const float base = higher == -INFINITY ? 0.0f : higher; // all columns so far are -inf
    sum *= __expf(maximum - base);
#pragma unroll
    for (int k = 0; k < 8; k++) sum += k < valid ? __expf(x.v[k] - base) : 0.0f;
    maximum = higher;
}

// One block per row: one pass computes maximum and sum, a second one, which reads from the L2 cache, the gradient.
template <CrossEntropyMode MODE>
static __global__ void __launch_bounds__(CROSS_ENTROPY_THREADS)
    cross_entropy_kernel(float *losses, floatX *logits, const int32_t *targets, float scale, int V, int Vp) {
    __shared__ float maxima[WARP], sums[WARP];
    const int target = targets[blockIdx.x], first = (int)threadIdx.x * 8, stride = (int)blockDim.x * 8;
    floatX *row = logits + (size_t)blockIdx.x * Vp;
    if (target == IGNORE_TARGET) { // uniform across the block
        if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
        if (MODE == LOSS_AND_GRADIENT)
            for (int v = first; v < Vp; v += stride) store8(row + v, Float8{});
        return;
    }
    const float target_logit = to_float(row[target]);
    float maximum = -INFINITY, sum = 0.0f;
    for (int v = first; v < V; v += stride) softmax_add8(maximum, sum, load8(row + v), V - v);
    float row_maximum = block_max(maximum, maxima);
    // A thread without columns has maximum -inf; it must add 0 even if the maximum of the row is -inf.
    sum = block_sum(first < V ? sum * __expf(maximum - row_maximum) : 0.0f, sums);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) - (target_logit - row_maximum);
    if (MODE == LOSS_ONLY) return;
    const float factor = scale / sum;
    for (int v = first; v < Vp; v += stride) {
        Float8 x = load8(row + v);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float p = __expf(x.v[k] - row_maximum) * factor;
            x.v[k] = v + k >= V ? 0.0f : v + k == target ? p - scale : p;
        }
        store8(row + v, x);
    }
}

// One block suffices, because N is small.
static __global__ void __launch_bounds__(1024)
    loss_add_kernel(double *loss, const float *losses, size_t N, double tokens, int accumulate) {
    __shared__ double sums[WARP];
    double sum = 0;
    for (size_t i = threadIdx.x; i < N; i += blockDim.x) sum += (double)losses[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) *loss = (accumulate ? *loss : 0) + sum / tokens;
}

static inline void loss_add(double *loss, const float *losses, size_t N, double tokens, int accumulate,
                            Stream stream) {
    launch(loss_add_kernel, 1, 1024, 0, stream, loss, losses, N, tokens, accumulate);
}

// Vp must be a multiple of 8. Every target must be IGNORE_TARGET or in 0 .. V - 1.
static inline void cross_entropy_forward(float *losses, floatX *logits, const int32_t *targets, size_t N,
                                         size_t V, size_t Vp, Stream stream) {
    CHECK(Vp % 8 == 0 && Vp < 0x40000000);
    launch(cross_entropy_kernel<LOSS_ONLY>, blocks_for(N, 1), CROSS_ENTROPY_THREADS, 0, stream, losses,
           logits, targets, 0.0f, (int)V, (int)Vp);
}
static inline void cross_entropy_backward(float *losses, floatX *logits, const int32_t *targets, float scale,
                                          size_t N, size_t V, size_t Vp, Stream stream) {
    CHECK(Vp % 8 == 0 && Vp < 0x40000000);
    launch(cross_entropy_kernel<LOSS_AND_GRADIENT>, blocks_for(N, 1), CROSS_ENTROPY_THREADS, 0, stream,
           losses, logits, targets, scale, (int)V, (int)Vp);
}
#else
static inline void cross_entropy_forward(float *losses, floatX *logits, const int32_t *targets, size_t N,
                                         size_t V, size_t Vp, Stream stream) {
    (void)stream;
    cross_entropy_forward_cpu(losses, logits, targets, N, V, Vp);
}
static inline void cross_entropy_backward(float *losses, floatX *logits, const int32_t *targets, float scale,
                                          size_t N, size_t V, size_t Vp, Stream stream) {
    (void)stream;
    cross_entropy_backward_cpu(losses, logits, targets, scale, N, V, Vp);
}
static inline void loss_add(double *loss, const float *losses, size_t N, double tokens, int accumulate,
                            Stream stream) {
    (void)stream;
    loss_add_cpu(loss, losses, N, tokens, accumulate);
}
#endif

#endif
