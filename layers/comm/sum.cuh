// Sums over processes, and sums of gradients.
//
//     sum_ranks     out = ((x_0 + x_1) + x_2) + ..., fp32 or double, x_r (n) of process r. The order of ranks makes
//                   the bits independent of which process adds and of when parts arrive. `out` may be the process's x.
//     accumulate    y += x, fp32, (n); both aligned to 16 bytes
#ifndef LAYERS_COMM_SUM_CUH
#define LAYERS_COMM_SUM_CUH

#include "comm.h"

// Where x_0, x_1, ... are stored.
typedef struct {
    const void *mine;   // x of process `rank`
    const void *others; // x of process r is at r * stride elements; the slot of `rank` is not read
    size_t stride;
    int rank, size;
} RankBuffers;

static inline HOST_DEVICE const void *buffer_of_rank(const RankBuffers *x, int r, size_t element) {
    return r == x->rank ? x->mine : (const char *)x->others + (size_t)r * x->stride * element;
}

enum { SUM_CHUNK = 1024 }; // elements whose sum stays in the first-level cache

// Uses one thread: a transport adds while the other threads compute.
#define DEFINE_SUM_RANKS_CPU(name, T)                                                                        \
    static inline void name(T *out, const RankBuffers *x, size_t n) {                                        \
        T sum[SUM_CHUNK];                                                                                    \
        for (size_t first = 0; first < n; first += SUM_CHUNK) {                                              \
            const size_t count = min_size(n - first, SUM_CHUNK);                                             \
            memcpy(sum, (const T *)buffer_of_rank(x, 0, sizeof(T)) + first, count * sizeof(T));              \
            for (int r = 1; r < x->size; r++) {                                                              \
                const T *addend = (const T *)buffer_of_rank(x, r, sizeof(T)) + first;                        \
                for (size_t i = 0; i < count; i++) sum[i] += addend[i];                                      \
            }                                                                                                \
            memcpy(out + first, sum, count * sizeof(T));                                                     \
        }                                                                                                    \
    }
DEFINE_SUM_RANKS_CPU(sum_ranks_float_cpu, float)
DEFINE_SUM_RANKS_CPU(sum_ranks_double_cpu, double)

static inline void sum_ranks_cpu(void *out, const RankBuffers *x, size_t n, CommType type) {
    if (type == COMM_FLOAT)
        sum_ranks_float_cpu((float *)out, x, n);
    else
        sum_ranks_double_cpu((double *)out, x, n);
}

static inline void accumulate_cpu(float *y, const float *x, size_t n) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

#ifdef DEVICE_CUDA
#include "layers/kernel.cuh"

// One element per thread, as pieces are not aligned.
template <class T>
static __global__ void __launch_bounds__(256) sum_ranks_kernel(T *out, RankBuffers x, size_t n) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    T sum = static_cast<const T *>(buffer_of_rank(&x, 0, sizeof(T)))[i];
#pragma unroll 4
    for (int r = 1; r < x.size; r++) sum += static_cast<const T *>(buffer_of_rank(&x, r, sizeof(T)))[i];
    out[i] = sum;
}

// Eight elements per thread.
static __global__ void __launch_bounds__(256) accumulate_kernel(float *y, const float *x, size_t n) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i + 8 <= n) {
        Float8 sum = load8(y + i), addend = load8(x + i);
#pragma unroll
        for (int k = 0; k < 8; k++) sum.v[k] += addend.v[k];
        store8(y + i, sum);
    } else {
        for (size_t k = i; k < n; k++) y[k] += x[k];
    }
}

static inline void sum_ranks(void *out, const RankBuffers *x, size_t n, CommType type, Stream stream) {
    if (n == 0) return;
    if (type == COMM_FLOAT)
        launch(sum_ranks_kernel<float>, blocks_for(n, 256), 256, 0, stream, (float *)out, *x, n);
    else
        launch(sum_ranks_kernel<double>, blocks_for(n, 256), 256, 0, stream, (double *)out, *x, n);
}
static inline void accumulate(float *y, const float *x, size_t n, Stream stream) {
    CHECK(((uintptr_t)y | (uintptr_t)x) % 16 == 0);
    if (n > 0) launch(accumulate_kernel, blocks_for(n, 256 * 8), 256, 0, stream, y, x, n);
}
#else
static inline void sum_ranks(void *out, const RankBuffers *x, size_t n, CommType type, Stream stream) {
    (void)stream;
    sum_ranks_cpu(out, x, n, type);
}
static inline void accumulate(float *y, const float *x, size_t n, Stream stream) {
    (void)stream;
    accumulate_cpu(y, x, n);
}
#endif

#endif
