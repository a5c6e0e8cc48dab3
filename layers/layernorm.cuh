// Layer normalisation (Ba, Kiros and Hinton, arXiv 1607.06450), fused with the residual addition and the dropout
// that precede it. For each row of C channels:
//
//     residual_out = residual_in + dropout(branch)           without a branch (NULL): residual_in
//     out          = xhat * gamma + beta                     xhat = (residual_out - mean) * rstd
//     mean, rstd   = mean of the row, 1 / sqrt(its variance + 1e-5)
//
// Shapes: residual_in, branch, residual_out, out (N, T, C); gamma, beta (C); mean, rstd (N, T). mean, rstd and
// residual_out are saved for backward. Statistics and out are computed from residual_out as it is stored, rounded, so
// that layernorm_normalise recomputes out from residual_out, mean and rstd bit for bit. In backward, g = dout * gamma:
//
//     dresidual += rstd (g - mean(g) - xhat mean(g xhat))    on entry the gradient of residual_out from all other
//                                                            consumers, on exit the gradient of residual_in
//     dbranch    = dropout'(dresidual)                       overwrites; not computed without a branch
//     dgamma    += sum over rows of dout * xhat
//     dbeta     += sum over rows of dout
//
// Sums over rows are computed within fixed chunks of rows, then over the chunks in order: the result is bitwise the
// same for any number of threads. `partial` is scratch space of layernorm_scratch(C) floats.
#ifndef LAYERS_LAYERNORM_CUH
#define LAYERS_LAYERNORM_CUH

#include "common.h"
#include "dropout.h"

enum {
    LAYERNORM_CHUNKS = 64,    // chunks of rows on the CPU
    LAYERNORM_BLOCKS = 1024,  // chunks of rows on a GPU, at most; each is processed by one block
    LARGEST_LAYERNORM = 8192, // maximum C on a GPU
};
#define LAYERNORM_EPSILON 1e-5f

static inline size_t layernorm_scratch(size_t C) {
    return (size_t)LAYERNORM_BLOCKS * 2 * C;
}

static inline void layernorm_row_cpu(float *restrict out, float *mean_out, float *rstd_out,
                                     const float *restrict x, const float *restrict gamma,
                                     const float *restrict beta, size_t C) {
    float sum, squares;
    SUM_IN_LANES(sum, C, x[i]);
    float mean = sum / (float)C;
    SUM_IN_LANES(squares, C, (x[i] - mean) * (x[i] - mean));
    float rstd = 1.0f / sqrtf(squares / (float)C + LAYERNORM_EPSILON);
    for (size_t c = 0; c < C; c++) out[c] = (x[c] - mean) * rstd * gamma[c] + beta[c];
    *mean_out = mean;
    *rstd_out = rstd;
}

// Computes out (rows, C) from x, mean and rstd.
static inline void layernorm_normalise_cpu(float *restrict out, const float *restrict x, const float *mean,
                                           const float *rstd, const float *restrict gamma,
                                           const float *restrict beta, size_t rows, size_t C) {
#pragma omp parallel for schedule(static)
    for (size_t row = 0; row < rows; row++) {
        const float m = mean[row], r = rstd[row];
        for (size_t c = 0; c < C; c++) out[row * C + c] = (x[row * C + c] - m) * r * gamma[c] + beta[c];
    }
}

// residual_out may be NULL only if there is no branch. It may be the same memory as residual_in.
static inline void layernorm_forward_cpu(float *residual_out, float *out, float *mean, float *rstd,
                                         const float *residual_in, const float *branch, const float *gamma,
                                         const float *beta, size_t N, size_t T, size_t C,
                                         const Dropout *dropout) {
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t row = 0; row < N * T; row++) {
        const float *x = residual_in + row * C;
        if (branch != NULL) {
            float *sum = residual_out + row * C, *normed = out + row * C;
            memcpy(normed, branch + row * C, C * sizeof(float));
            dropout_row(normed, C, row % T, row / T, dropout);
            for (size_t c = 0; c < C; c++) sum[c] = x[c] + normed[c];
            x = sum;
        }
        layernorm_row_cpu(out + row * C, &mean[row], &rstd[row], x, gamma, beta, C);
    }
}

// Adds one row's terms to dresidual, dgamma and dbeta.
static inline void layernorm_backward_row_cpu(float *restrict dresidual, float *restrict dgamma,
                                              float *restrict dbeta, const float *restrict dout,
                                              const float *restrict x, const float *restrict gamma,
                                              float mean, float rstd, size_t C) {
    float sum, product;
    SUM_IN_LANES(sum, C, dout[i] * gamma[i]);
    SUM_IN_LANES(product, C, dout[i] * gamma[i] * ((x[i] - mean) * rstd));
    float mean_g = sum / (float)C, mean_g_xhat = product / (float)C;
    for (size_t c = 0; c < C; c++) {
        float xhat = (x[c] - mean) * rstd;
        dgamma[c] += dout[c] * xhat;
        dbeta[c] += dout[c];
        dresidual[c] += rstd * (dout[c] * gamma[c] - mean_g - xhat * mean_g_xhat);
    }
}

static inline void layernorm_backward_cpu(float *dresidual, float *dbranch, float *dgamma, float *dbeta,
                                          float *partial, const float *dout, const float *residual_out,
                                          const float *mean, const float *rstd, const float *gamma, size_t N,
                                          size_t T, size_t C, const Dropout *dropout) {
#pragma omp parallel for schedule(dynamic)
    for (size_t chunk = 0; chunk < LAYERNORM_CHUNKS; chunk++) {
        float *chunk_gamma = partial + chunk * 2 * C, *chunk_beta = chunk_gamma + C;
        memset(chunk_gamma, 0, 2 * C * sizeof(float));
        for (size_t row = N * T * chunk / LAYERNORM_CHUNKS; row < N * T * (chunk + 1) / LAYERNORM_CHUNKS;
             row++) {
            size_t first = row * C;
            layernorm_backward_row_cpu(dresidual + first, chunk_gamma, chunk_beta, dout + first,
                                       residual_out + first, gamma, mean[row], rstd[row], C);
            if (dbranch == NULL) continue;
            memcpy(dbranch + first, dresidual + first, C * sizeof(float));
            dropout_row(dbranch + first, C, row % T, row / T, dropout);
        }
    }
    for (size_t chunk = 0; chunk < LAYERNORM_CHUNKS; chunk++)
        for (size_t c = 0; c < C; c++) {
            dgamma[c] += partial[chunk * 2 * C + c];
            dbeta[c] += partial[chunk * 2 * C + C + c];
        }
}

#ifdef DEVICE_CUDA
#include "kernel.cuh"

enum {
    LAYERNORM_WARPS = 4,          // maximum number of rows in a forward block
    LAYERNORM_SHARED = 96 * 1024, // maximum bytes of shared memory for them; available from sm_80 on
};

// Returns (x - mean) rstd gamma + beta for eight channels. Used by forward and by recomputation, so that both give the
// same bits.
__device__ __forceinline__ Float8 normalised8(const Float8 &x, float mean, float rstd, const floatX *gamma,
                                              const floatX *beta) {
    Float8 g = load8(gamma), b = load8(beta), y;
#pragma unroll
    for (int k = 0; k < 8; k++) y.v[k] = fmaf((x.v[k] - mean) * rstd, g.v[k], b.v[k]);
    return y;
}

// One warp per row. The row is kept in shared memory, rounded as it is stored, because it is read three times.
static __global__ void __launch_bounds__(LAYERNORM_WARPS *WARP)
    layernorm_forward_kernel(floatX *residual_out, floatX *out, float *mean_out, float *rstd_out,
                             const floatX *residual_in, const floatX *branch, const floatX *gamma,
                             const floatX *beta, size_t rows, size_t T, size_t C, Dropout dropout) {
    DYNAMIC_SHARED(floatX, shared_rows);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    size_t row = (size_t)blockIdx.x * (blockDim.x / WARP) + warp, first = row * C;
    if (row >= rows) return;
    floatX *kept = shared_rows + warp * C; // a lane reads only what it wrote
    float sum = 0, squares = 0;
    for (size_t c = lane * 8; c < C; c += WARP * 8) {
        Float8 x = load8(residual_in + first + c);
        if (branch != NULL) {
            Float8 b = load8(branch + first + c);
            dropout8(b, c, row % T, row / T, dropout);
#pragma unroll
            for (int k = 0; k < 8; k++) x.v[k] += b.v[k];
            round_to_floatX(x);
            store8(residual_out + first + c, x);
        }
        store8(kept + c, x);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += x.v[k];
    }
    float mean = warp_sum(sum) / (float)C;
    for (size_t c = lane * 8; c < C; c += WARP * 8) {
        Float8 x = load8(kept + c);
#pragma unroll
        for (int k = 0; k < 8; k++) squares += (x.v[k] - mean) * (x.v[k] - mean);
    }
    float rstd = rsqrtf(warp_sum(squares) / (float)C + LAYERNORM_EPSILON);
    for (size_t c = lane * 8; c < C; c += WARP * 8)
        store8(out + first + c, normalised8(load8(kept + c), mean, rstd, gamma + c, beta + c));
    if (lane == 0) {
        mean_out[row] = mean;
        rstd_out[row] = rstd;
    }
}

static __global__ void __launch_bounds__(256)
    layernorm_normalise_kernel(floatX *out, const floatX *x, const float *mean, const float *rstd,
                               const floatX *gamma, const floatX *beta, size_t rows, size_t C) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= rows * C) return;
    size_t row = i / C, c = i % C;
    store8(out + i, normalised8(load8(x + i), mean[row], rstd[row], gamma + c, beta + c));
}

// One block per chunk of rows. Thread t handles channels 8 t .. 8 t + 7 and, with UNITS = 2, also those one block width
// further; it keeps their sums of dgamma and dbeta in registers.
template <int UNITS>
static __global__ void __launch_bounds__(512)
    layernorm_backward_kernel(floatX *dresidual, floatX *dbranch, float *partial, const floatX *dout,
                              const floatX *residual, const float *mean, const float *rstd,
                              const floatX *gamma, size_t rows, size_t T, size_t C, Dropout dropout) {
    // Sums of each warp over a row. With two buffers, one barrier per row suffices.
    __shared__ float2 sums[2][WARP];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    Float8 g[UNITS], dgamma[UNITS], dbeta[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        size_t c = (u * blockDim.x + threadIdx.x) * 8;
        dgamma[u] = dbeta[u] = Float8{};
        g[u] = c < C ? load8(gamma + c) : Float8{};
    }
    size_t from = rows * blockIdx.x / gridDim.x, to = rows * (blockIdx.x + 1) / gridDim.x;
    for (size_t row = from; row < to; row++) {
        Float8 d[UNITS], xhat[UNITS];
        float2 sum = make_float2(0, 0); // sums of d gamma and of d gamma xhat
        float m = mean[row], r = rstd[row];
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            size_t c = (u * blockDim.x + threadIdx.x) * 8;
            d[u] = c < C ? load8(dout + row * C + c) : Float8{};
            xhat[u] = c < C ? load8(residual + row * C + c) : Float8{};
#pragma unroll
            for (int k = 0; k < 8; k++) {
                xhat[u].v[k] = (xhat[u].v[k] - m) * r;
                dgamma[u].v[k] += d[u].v[k] * xhat[u].v[k];
                dbeta[u].v[k] += d[u].v[k];
                d[u].v[k] *= g[u].v[k];
                sum.x += d[u].v[k];
                sum.y += d[u].v[k] * xhat[u].v[k];
            }
        }
        sum = make_float2(warp_sum(sum.x), warp_sum(sum.y));
        if (lane == 0) sums[row % 2][warp] = sum;
        __syncthreads(); // the sums of this row are written; those of the previous row may be overwritten
        sum = lane < warps ? sums[row % 2][lane] : make_float2(0, 0);
        float mean_g = warp_sum(sum.x) / (float)C, mean_g_xhat = warp_sum(sum.y) / (float)C;
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            size_t c = (u * blockDim.x + threadIdx.x) * 8;
            if (c >= C) continue;
            Float8 x = load8(dresidual + row * C + c);
#pragma unroll
            for (int k = 0; k < 8; k++) x.v[k] += r * (d[u].v[k] - mean_g - xhat[u].v[k] * mean_g_xhat);
            round_to_floatX(x);
            store8(dresidual + row * C + c, x);
            if (dbranch == NULL) continue;
            dropout8(x, c, row % T, row / T, dropout);
            store8(dbranch + row * C + c, x);
        }
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        size_t c = (u * blockDim.x + threadIdx.x) * 8;
        if (c >= C) continue;
        store8(partial + blockIdx.x * 2 * C + c, dgamma[u]);
        store8(partial + blockIdx.x * 2 * C + C + c, dbeta[u]);
    }
}

static inline void layernorm_forward(floatX *residual_out, floatX *out, float *mean, float *rstd,
                                     const floatX *residual_in, const floatX *branch, const floatX *gamma,
                                     const floatX *beta, size_t N, size_t T, size_t C, const Dropout *dropout,
                                     Stream stream) {
    CHECK(C % 8 == 0 && C <= LARGEST_LAYERNORM);
    const size_t row = C * sizeof(floatX), warps = min_size(LAYERNORM_WARPS, LAYERNORM_SHARED / row);
    launch(layernorm_forward_kernel, blocks_for(N * T, warps), (unsigned)warps * WARP, warps * row, stream,
           residual_out, out, mean, rstd, residual_in, branch, gamma, beta, N * T, T, C, *dropout);
}

static inline void layernorm_normalise(floatX *out, const floatX *x, const float *mean, const float *rstd,
                                       const floatX *gamma, const floatX *beta, size_t rows, size_t C,
                                       Stream stream) {
    CHECK(C % 8 == 0);
    launch(layernorm_normalise_kernel, blocks_for(rows * C / 8, 256), 256, 0, stream, out, x, mean, rstd,
           gamma, beta, rows, C);
}

static inline void layernorm_backward(floatX *dresidual, floatX *dbranch, float *dgamma, float *dbeta,
                                      float *partial, const floatX *dout, const floatX *residual_out,
                                      const float *mean, const float *rstd, const floatX *gamma, size_t N,
                                      size_t T, size_t C, const Dropout *dropout, Stream stream) {
    CHECK(C % 8 == 0 && C <= LARGEST_LAYERNORM);
    size_t blocks = min_size(N * T, LAYERNORM_BLOCKS), units = C > 4096 ? 2 : 1;
    unsigned threads = (unsigned)round_up(divide_up(C, 8 * units), WARP);
    launch(units == 2 ? layernorm_backward_kernel<2> : layernorm_backward_kernel<1>, (unsigned)blocks,
           threads, 0, stream, dresidual, dbranch, partial, dout, residual_out, mean, rstd, gamma, N * T, T,
           C, *dropout);
    add_partial_sums(dgamma, partial, blocks, 2 * C, C, stream);
    add_partial_sums(dbeta, partial + C, blocks, 2 * C, C, stream);
}
#else
static inline void layernorm_forward(floatX *residual_out, floatX *out, float *mean, float *rstd,
                                     const floatX *residual_in, const floatX *branch, const floatX *gamma,
                                     const floatX *beta, size_t N, size_t T, size_t C, const Dropout *dropout,
                                     Stream stream) {
    (void)stream;
    layernorm_forward_cpu(residual_out, out, mean, rstd, residual_in, branch, gamma, beta, N, T, C, dropout);
}
static inline void layernorm_normalise(floatX *out, const floatX *x, const float *mean, const float *rstd,
                                       const floatX *gamma, const floatX *beta, size_t rows, size_t C,
                                       Stream stream) {
    (void)stream;
    layernorm_normalise_cpu(out, x, mean, rstd, gamma, beta, rows, C);
}
static inline void layernorm_backward(floatX *dresidual, floatX *dbranch, float *dgamma, float *dbeta,
                                      float *partial, const floatX *dout, const floatX *residual_out,
                                      const float *mean, const float *rstd, const floatX *gamma, size_t N,
                                      size_t T, size_t C, const Dropout *dropout, Stream stream) {
    (void)stream;
    layernorm_backward_cpu(dresidual, dbranch, dgamma, dbeta, partial, dout, residual_out, mean, rstd, gamma,
                           N, T, C, dropout);
}
#endif

#endif
