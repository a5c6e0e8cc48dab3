// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) on flat memory, preceded by the global gradient norm.
// Clipping and skipping of a step are decided on the device, so the host does not have to wait for them.
//
//     norm    = sqrt(sum of gradient^2)
//     skipped = loss or norm is not finite, or there is a veto: nothing is updated
//     clip    = min(1, max_norm / norm)         max_norm 0: always 1
//     g  = clip * gradient
//     m  = beta1 m + (1 - beta1) g              m^ = m / (1 - beta1^updates)     updates counts from 1
//     v  = beta2 v + (1 - beta2) g^2            v^ = v / (1 - beta2^updates)
//     master -= learning_rate (m^ / (sqrt(v^) + epsilon) + decay master)
//     weights = master rounded to floatX        to nearest even, or stochastically: up with the probability
//                                               that makes the mean exact
//
// master, m, v and gradients are fp32; if floatX is fp32, master and weights are the same memory. The arrays may have
// different layouts: a list of chunks gives the offset of each piece of a tensor in every array. A process may own only
// some of the chunks.
//
// The norm is summed in double within each chunk, then over all chunks in the order of their numbers. The result is
// therefore bitwise identical for any number of threads and of processes, once the processes have exchanged the sums of
// their chunks. These sums, and the other values that processes add up before they decide about a step, are called the
// totals of the step.
#ifndef LAYERS_ADAMW_CUH
#define LAYERS_ADAMW_CUH

#include "common.h"
#include "philox.h"

// Numbers that processes add up along with the loss of a step; what the first ones mean is the caller's business. A step
// with a veto is skipped: a process had no data for it.
enum { SIGNAL_VETO = 3, NUM_SIGNALS };

// The result of a whole step, in device memory.
typedef struct {
    double loss, norm;
    int64_t updates;                           // number of updates so far, including this step
    int32_t skipped;                           // 1 if nothing was updated
    int32_t signals[NUM_SIGNALS];              // sums over processes
    float clip, correction1, correction2;      // correction: 1 / (1 - beta^updates)
} StepOutcome;

typedef struct {
    double learning_rate, beta1, beta2, epsilon;
    double max_norm;
    int stochastic_rounding; // random bits: key (seed, RANDOM_ROUNDING), counter (element / 8, updates)
    uint64_t seed;
} AdamW;

// A piece of a tensor: ADAMW_CHUNK elements, or the remainder at the end of the tensor.
typedef struct {
    uint64_t number;                           // index among all chunks of the model, from 0
    uint64_t weight, master, gradient, moment; // offset of its first element in each array; multiples of 16
    uint32_t size;                             // elements
    float decay;
} AdamWChunk;

enum { ADAMW_CHUNK = 8192 };

// Indices of the totals of a step, each a double: the loss; the signals; and, from TOTAL_SQUARES on, the sum of squares
// of each chunk.
enum { TOTAL_LOSS, TOTAL_SIGNALS, TOTAL_SQUARES = TOTAL_SIGNALS + NUM_SIGNALS };

// Returns the number of totals of a step.
static inline size_t step_totals(size_t num_chunks) {
    return TOTAL_SQUARES + num_chunks;
}

static inline HOST_DEVICE void outcome_decide(StepOutcome *o, const double *totals, double square_sum,
                                              const AdamW *a) {
    const double norm = sqrt(square_sum);
    o->loss = totals[TOTAL_LOSS];
    for (int i = 0; i < NUM_SIGNALS; i++) o->signals[i] = (int32_t)totals[TOTAL_SIGNALS + i];
    o->norm = norm;
    o->skipped = o->signals[SIGNAL_VETO] != 0 || !(isfinite(o->loss) && isfinite(norm));
    o->clip = a->max_norm > 0 && norm > a->max_norm ? (float)(a->max_norm / norm) : 1.0f;
    if (o->skipped) return;
    o->updates++;
    o->correction1 = (float)(1.0 / (1.0 - pow(a->beta1, (double)o->updates)));
    o->correction2 = (float)(1.0 / (1.0 - pow(a->beta2, (double)o->updates)));
}

// The factors of an update, in the precision of the computation.
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
        const AdamWChunk *c = &chunks[chunk];
        const AdamWFactors f = adamw_factors(a, outcome, c->decay);
        float *w = weights + c->weight, *m_at = m + c->moment, *v_at = v + c->moment;
        const float *g = gradients + c->gradient;
#pragma omp simd
        for (size_t i = 0; i < c->size; i++) w[i] = adamw_element(w[i], &m_at[i], &v_at[i], g[i], &f);
    }
}

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

static inline void square_sums_cpu(double *totals, const float *gradients, const AdamWChunk *chunks,
                                   size_t num_chunks) {
#pragma omp parallel for schedule(static)
    for (size_t chunk = 0; chunk < num_chunks; chunk++)
        totals[TOTAL_SQUARES + chunks[chunk].number] = square_sum_chunk_cpu(
            gradients + chunks[chunk].gradient, chunks[chunk].size);
}

static inline void step_outcome_cpu(StepOutcome *outcome, const double *totals, size_t num_chunks,
                                    const AdamW *a) {
    double sum = 0;
    for (size_t chunk = 0; chunk < num_chunks; chunk++) sum += totals[TOTAL_SQUARES + chunk];
    outcome_decide(outcome, totals, sum, a);
}

#ifdef DEVICE_CUDA
#include "kernel.cuh"

// One block per chunk.
static __global__ void __launch_bounds__(256)
    square_sums_kernel(double *totals, const float *gradients, const AdamWChunk *chunks) {
    __shared__ double sums[WARP];
    const AdamWChunk chunk = chunks[blockIdx.x];
    const float *x = gradients + chunk.gradient;
    double sum = 0;
    for (size_t i = threadIdx.x * 8; i < chunk.size; i += blockDim.x * 8) {
        if (i + 8 <= chunk.size) {
            Float8 x8 = load8(x + i);
#pragma unroll
            for (int k = 0; k < 8; k++) sum += (double)x8.v[k] * (double)x8.v[k];
        } else {
            for (size_t k = i; k < chunk.size; k++) sum += (double)x[k] * (double)x[k];
        }
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) totals[TOTAL_SQUARES + chunk.number] = sum;
}

static __global__ void __launch_bounds__(1024)
    step_outcome_kernel(StepOutcome *outcome, const double *totals, size_t num_chunks, AdamW a) {
    __shared__ double sums[WARP];
    double sum = 0;
    for (size_t i = threadIdx.x; i < num_chunks; i += blockDim.x) sum += totals[TOTAL_SQUARES + i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) outcome_decide(outcome, totals, sum, &a);
}

// Rounds eight weights up or down, with 16 random bits each.
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

// One block per chunk; each thread processes eight elements at a time.
static __global__ void __launch_bounds__(256)
    adamw_kernel(floatX *weights, float *master, float *m, float *v, const float *gradients,
                 const AdamWChunk *chunks, AdamW a, const StepOutcome *outcome) {
    if (outcome->skipped) return;
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWFactors f = adamw_factors(&a, outcome, chunk.decay);
    const float *g = gradients + chunk.gradient;
    weights += chunk.weight, master += chunk.master, m += chunk.moment, v += chunk.moment;
    for (size_t i = threadIdx.x * 8; i < chunk.size; i += blockDim.x * 8) {
        if (i + 8 <= chunk.size) {
            Float8 w = load8(master + i), g8 = load8(g + i), m8 = load8(m + i), v8 = load8(v + i);
#pragma unroll
            for (int k = 0; k < 8; k++) w.v[k] = adamw_element(w.v[k], &m8.v[k], &v8.v[k], g8.v[k], &f);
            store8(m + i, m8);
            store8(v + i, v8);
            store8(master + i, w);
            if (sizeof(floatX) == sizeof(float)) continue;
            if (a.stochastic_rounding) round_stochastically(w, chunk.weight + i, a.seed, outcome);
            store8(weights + i, w);
        } else {
            for (size_t k = i; k < chunk.size; k++) {
                master[k] = adamw_element(master[k], &m[k], &v[k], g[k], &f);
                weights[k] = from_float<floatX>(master[k]);
            }
        }
    }
}

// Eight weights per thread.
static __global__ void __launch_bounds__(256)
    round_weights_kernel(floatX *weights, const float *master, size_t first, size_t n, int stochastic,
                         uint64_t seed, const StepOutcome *outcome) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= n) {
        Float8 w = load8(master + i);
        if (stochastic) round_stochastically(w, first + i, seed, outcome);
        store8(weights + i, w);
    } else {
        for (size_t k = i; k < n; k++) weights[k] = from_float<floatX>(master[k]);
    }
}

static inline void square_sums(double *totals, const float *gradients, const AdamWChunk *chunks,
                               size_t num_chunks, Stream stream) {
    if (num_chunks > 0)
        launch(square_sums_kernel, blocks_for(num_chunks, 1), 256, 0, stream, totals, gradients, chunks);
}
static inline void step_outcome(StepOutcome *outcome, const double *totals, size_t num_chunks, const AdamW *a,
                                Stream stream) {
    launch(step_outcome_kernel, 1, 1024, 0, stream, outcome, totals, num_chunks, *a);
}
static inline void adamw_update(floatX *weights, float *master, float *m, float *v, const float *gradients,
                                const AdamWChunk *chunks, size_t num_chunks, const AdamW *a,
                                const StepOutcome *outcome, Stream stream) {
    if (num_chunks > 0)
        launch(adamw_kernel, blocks_for(num_chunks, 1), 256, 0, stream, weights, master, m, v, gradients,
               chunks, *a, outcome);
}
// weights = master, rounded: for weights that were loaded or initialised. Rounds to nearest, or, with `stochastic`, as
// adamw_update did in update number outcome->updates. Both pointers are at element `first` of all the weights.
static inline void round_weights(floatX *weights, const float *master, size_t first, size_t n, int stochastic,
                                 uint64_t seed, const StepOutcome *outcome, Stream stream) {
    if ((const void *)weights != (const void *)master)
        launch(round_weights_kernel, blocks_for(n, 256 * 8), 256, 0, stream, weights, master, first, n,
               stochastic, seed, outcome);
}
#else
// Writes the sums of squares of the given chunks into the totals.
static inline void square_sums(double *totals, const float *gradients, const AdamWChunk *chunks,
                               size_t num_chunks, Stream stream) {
    (void)stream;
    square_sums_cpu(totals, gradients, chunks, num_chunks);
}
// Computes loss, norm, clipping and whether the step is skipped, from the totals of all processes. Unless the step is
// skipped, outcome->updates is incremented.
static inline void step_outcome(StepOutcome *outcome, const double *totals, size_t num_chunks, const AdamW *a,
                                Stream stream) {
    (void)stream;
    step_outcome_cpu(outcome, totals, num_chunks, a);
}
static inline void adamw_update(floatX *weights, float *master, float *m, float *v, const float *gradients,
                                const AdamWChunk *chunks, size_t num_chunks, const AdamW *a,
                                const StepOutcome *outcome, Stream stream) {
    (void)master, (void)stream;
    adamw_update_cpu(weights, m, v, gradients, chunks, num_chunks, a, outcome);
}
static inline void round_weights(floatX *weights, const float *master, size_t first, size_t n, int stochastic,
                                 uint64_t seed, const StepOutcome *outcome, Stream stream) {
    if (weights != master) memcpy(weights, master, n * sizeof(float));
    (void)first, (void)stochastic, (void)seed, (void)outcome, (void)stream;
}
#endif

#endif
