// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) on flat memory, the global gradient norm before
// it, and what both decide about a step, on the device: the host need not wait for it.
//
//     norm    = sqrt(sum of gradient^2)
//     skipped = loss or norm is not finite: nothing is updated
//     clip    = min(1, max_norm / norm)         max_norm 0: always 1
//     g  = clip * gradient
//     m  = beta1 m + (1 - beta1) g              m^ = m / (1 - beta1^updates)     updates counts from 1
//     v  = beta2 v + (1 - beta2) g^2            v^ = v / (1 - beta2^updates)
//     master -= learning_rate (m^ / (sqrt(v^) + epsilon) + decay master)
//     weights = master rounded to floatX        to nearest even, or stochastically: up with the probability
//                                               that makes the mean exact
//
// master, m, v and gradients are fp32, laid out alike; where floatX is fp32, master is the weights' own memory.
// The norm is summed in double within fixed chunks of NORM_CHUNK elements, then over the chunks in a fixed
// order: the same bits for any number of threads.
#ifndef LAYERS_ADAMW_CUH
#define LAYERS_ADAMW_CUH

#include "common.h"
#include "philox.h"

// Of a whole step. On the device.
typedef struct {
    double loss, norm;
    int64_t updates; // so far, this step's included
    int32_t skipped;
    float clip, correction1, correction2; // 1 / (1 - beta^updates)
} StepOutcome;

typedef struct {
    double learning_rate, beta1, beta2, epsilon;
    double max_norm;
    int stochastic_rounding; // with random numbers of (seed, RANDOM_ROUNDING), counter (element / 8, updates)
    uint64_t seed;
} AdamW;

// A piece of the flat memory with one decay: at most ADAMW_CHUNK elements, offset a multiple of 16.
typedef struct {
    uint64_t offset;
    uint32_t size;
    float decay;
} AdamWChunk;

enum { NORM_CHUNK = 16384, ADAMW_CHUNK = 8192 };

static inline size_t global_norm_scratch(size_t n) {
    return (n + NORM_CHUNK - 1) / NORM_CHUNK;
}

static inline HOST_DEVICE void outcome_decide(StepOutcome *o, double norm, double max_norm, double beta1,
                                              double beta2) {
    o->norm = norm;
    o->skipped = !(isfinite(o->loss) && isfinite(norm));
    o->clip = max_norm > 0 && norm > max_norm ? (float)(max_norm / norm) : 1.0f;
    if (o->skipped) return;
    o->updates++;
    o->correction1 = (float)(1.0 / (1.0 - pow(beta1, (double)o->updates)));
    o->correction2 = (float)(1.0 / (1.0 - pow(beta2, (double)o->updates)));
}

// AdamW in the precision it is computed in.
typedef struct {
    float learning_rate, beta1, beta2, epsilon, decay, clip, correction1, correction2;
} AdamWFactors;

static inline HOST_DEVICE AdamWFactors adamw_factors(const AdamW *a, const StepOutcome *o, float decay) {
    AdamWFactors f = {(float)a->learning_rate, (float)a->beta1, (float)a->beta2,
                      (float)a->epsilon,       decay,           o->clip,
                      o->correction1,          o->correction2};
    return f;
}

static inline HOST_DEVICE float adamw_element(float weight, float *m, float *v, float gradient,
                                              const AdamWFactors *f) {
    float g = gradient * f->clip;
    *m = f->beta1 * *m + (1.0f - f->beta1) * g;
    *v = f->beta2 * *v + (1.0f - f->beta2) * g * g;
    float change = *m * f->correction1 / (sqrtf(*v * f->correction2) + f->epsilon);
    return weight - f->learning_rate * (change + f->decay * weight);
}

static inline void adamw_update_cpu(float *weights, float *m, float *v, const float *gradients,
                                    const AdamWChunk *chunks, size_t num_chunks, const AdamW *a,
                                    const StepOutcome *outcome) {
    if (outcome->skipped) return;
#pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < num_chunks; chunk++) {
        const AdamWFactors f = adamw_factors(a, outcome, chunks[chunk].decay);
        const size_t first = chunks[chunk].offset, end = first + chunks[chunk].size;
#pragma omp simd
        for (size_t i = first; i < end; i++)
            weights[i] = adamw_element(weights[i], &m[i], &v[i], gradients[i], &f);
    }
}

// Sum of squares of one chunk of at most NORM_CHUNK elements.
static inline double square_sum_chunk_cpu(const float *x, size_t n) {
    double lane[LANES] = {0}, sum = 0;
    size_t whole = n / LANES * LANES;
    for (size_t first = 0; first < whole; first += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)x[first + (size_t)j] * (double)x[first + (size_t)j];
    for (size_t i = whole; i < n; i++) lane[i - whole] += (double)x[i] * (double)x[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

// `partial` is scratch of global_norm_scratch(n) doubles.
static inline double global_norm_cpu(const float *gradients, size_t n, double *partial) {
    size_t chunks = global_norm_scratch(n);
#pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t first = chunk * NORM_CHUNK, count = least(n - first, NORM_CHUNK);
        partial[chunk] = square_sum_chunk_cpu(gradients + first, count);
    }
    double sum = 0;
    for (size_t chunk = 0; chunk < chunks; chunk++) sum += partial[chunk];
    return sqrt(sum);
}

#ifdef DEVICE_CUDA
#include "kernel.cuh"

// A block a chunk.
static __global__ void __launch_bounds__(256)
    square_sum_kernel(double *partial, const float *gradients, size_t n) {
    __shared__ double sums[WARP];
    size_t first = (size_t)blockIdx.x * NORM_CHUNK, end = least(first + NORM_CHUNK, n);
    double sum = 0;
    for (size_t i = first + threadIdx.x * 8; i < end; i += blockDim.x * 8) {
        if (i + 8 <= end) {
            Float8 x = load8(gradients + i);
#pragma unroll
            for (int k = 0; k < 8; k++) sum += (double)x.v[k] * (double)x.v[k];
        } else {
            for (size_t k = i; k < end; k++) sum += (double)gradients[k] * (double)gradients[k];
        }
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(1024)
    outcome_kernel(StepOutcome *outcome, const double *partial, size_t chunks, AdamW a) {
    __shared__ double sums[WARP];
    double sum = 0;
    for (size_t i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) outcome_decide(outcome, sqrt(sum), a.max_norm, a.beta1, a.beta2);
}

// Eight weights rounded up or down by 16 random bits each.
__device__ __forceinline__ void round_stochastically(Float8 &x, size_t element, uint64_t seed,
                                                     const StepOutcome *outcome) {
    Philox random = philox(philox_key(seed, RANDOM_ROUNDING, 0), (uint32_t)(element / 8),
                           (uint32_t)(element / 8 >> 32), 0, (uint32_t)outcome->updates);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        uint32_t up = random.v[k / 2] >> (16 * (k % 2)) & 0xffffu;
        x.v[k] = __uint_as_float((__float_as_uint(x.v[k]) + up) & 0xffff0000u);
    }
}

// A block a chunk, eight elements a thread at a time.
static __global__ void __launch_bounds__(256)
    adamw_kernel(floatX *weights, float *master, float *m, float *v, const float *gradients,
                 const AdamWChunk *chunks, AdamW a, const StepOutcome *outcome) {
    if (outcome->skipped) return;
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWFactors f = adamw_factors(&a, outcome, chunk.decay);
    const size_t end = chunk.offset + chunk.size;
    for (size_t i = chunk.offset + threadIdx.x * 8; i < end; i += blockDim.x * 8) {
        if (i + 8 <= end) {
            Float8 w = load8(master + i), g = load8(gradients + i), m8 = load8(m + i), v8 = load8(v + i);
#pragma unroll
            for (int k = 0; k < 8; k++) w.v[k] = adamw_element(w.v[k], &m8.v[k], &v8.v[k], g.v[k], &f);
            store8(m + i, m8);
            store8(v + i, v8);
            store8(master + i, w);
            if (sizeof(floatX) == sizeof(float)) continue;
            if (a.stochastic_rounding) round_stochastically(w, i, a.seed, outcome);
            store8(weights + i, w);
        } else {
            for (size_t k = i; k < end; k++) {
                master[k] = adamw_element(master[k], &m[k], &v[k], gradients[k], &f);
                weights[k] = from_float<floatX>(master[k]);
            }
        }
    }
}

// Eight weights a thread.
static __global__ void __launch_bounds__(256)
    round_weights_kernel(floatX *weights, const float *master, size_t n, int stochastic, uint64_t seed,
                         const StepOutcome *outcome) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= n) {
        Float8 w = load8(master + i);
        if (stochastic) round_stochastically(w, i, seed, outcome);
        store8(weights + i, w);
    } else {
        for (size_t k = i; k < n; k++) weights[k] = from_float<floatX>(master[k]);
    }
}

static inline void global_norm(StepOutcome *outcome, const float *gradients, size_t n, double *partial,
                               const AdamW *a, Stream stream) {
    size_t chunks = global_norm_scratch(n);
    launch(square_sum_kernel, blocks_for(chunks, 1), 256, 0, stream, partial, gradients, n);
    launch(outcome_kernel, 1, 1024, 0, stream, outcome, partial, chunks, *a);
}
static inline void adamw_update(floatX *weights, float *master, float *m, float *v, const float *gradients,
                                const AdamWChunk *chunks, size_t num_chunks, const AdamW *a,
                                const StepOutcome *outcome, Stream stream) {
    launch(adamw_kernel, blocks_for(num_chunks, 1), 256, 0, stream, weights, master, m, v, gradients, chunks,
           *a, outcome);
}
// weights = master rounded, for what was loaded or initialised: to nearest, or as adamw_update left them after
// outcome->updates.
static inline void round_weights(floatX *weights, const float *master, size_t n, int stochastic,
                                 uint64_t seed, const StepOutcome *outcome, Stream stream) {
    if ((const void *)weights != (const void *)master)
        launch(round_weights_kernel, blocks_for(n, 256 * 8), 256, 0, stream, weights, master, n, stochastic,
               seed, outcome);
}
#else
// Norm, clipping and whether the step counts; outcome->loss and ->updates are its inputs.
static inline void global_norm(StepOutcome *outcome, const float *gradients, size_t n, double *partial,
                               const AdamW *a, Stream stream) {
    (void)stream;
    outcome_decide(outcome, global_norm_cpu(gradients, n, partial), a->max_norm, a->beta1, a->beta2);
}
static inline void adamw_update(floatX *weights, float *master, float *m, float *v, const float *gradients,
                                const AdamWChunk *chunks, size_t num_chunks, const AdamW *a,
                                const StepOutcome *outcome, Stream stream) {
    (void)master, (void)stream;
    adamw_update_cpu(weights, m, v, gradients, chunks, num_chunks, a, outcome);
}
static inline void round_weights(floatX *weights, const float *master, size_t n, int stochastic,
                                 uint64_t seed, const StepOutcome *outcome, Stream stream) {
    (void)weights, (void)master, (void)n, (void)stochastic, (void)seed, (void)outcome, (void)stream;
}
#endif

#endif
