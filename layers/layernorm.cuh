// Layer normalisation (Ba, Kiros and Hinton, arXiv 1607.06450), fused with the residual addition and the dropout
// that come before it. Row by row of C channels:
//
//     residual_out = residual_in + dropout(branch)           without a branch (NULL): residual_in itself
//     out          = xhat * gamma + beta                     xhat = (residual_out - mean) * rstd
//     mean, rstd   = mean of the row, 1 / sqrt(its variance + 1e-5)
//
// residual_in, branch, residual_out, out (N, T, C); gamma, beta (C); mean, rstd (N, T): saved for backward, with
// residual_out. Backward, with g = dout * gamma:
//
//     dresidual += rstd (g - mean(g) - xhat mean(g xhat))    on entry the gradient that reaches residual_out by
//                                                            other ways, on exit also that of residual_in
//     dbranch    = dropout'(dresidual)                       overwrites; not computed without a branch
//     dgamma    += sum over rows of dout * xhat
//     dbeta     += sum over rows of dout
//
// The sums over rows run within LAYERNORM_CHUNKS fixed chunks of rows, then over the chunks in order: the same
// bits for any number of threads. `partial` is scratch of layernorm_scratch(C) floats.
#ifndef LAYERS_LAYERNORM_CUH
#define LAYERS_LAYERNORM_CUH

#include "common.h"
#include "dropout.h"

enum { LAYERNORM_CHUNKS = 64 };
#define LAYERNORM_EPSILON 1e-5f

static inline size_t layernorm_scratch(size_t C) {
    return (size_t)LAYERNORM_CHUNKS * 2 * C;
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

// residual_out may be NULL only when there is no branch, and may be residual_in itself.
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

// dresidual of one row, and its part of dgamma and dbeta.
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

static inline void layernorm_forward(floatX *residual_out, floatX *out, float *mean, float *rstd,
                                     const floatX *residual_in, const floatX *branch, const floatX *gamma,
                                     const floatX *beta, size_t N, size_t T, size_t C, const Dropout *dropout,
                                     Stream stream) {
    (void)stream;
    layernorm_forward_cpu(residual_out, out, mean, rstd, residual_in, branch, gamma, beta, N, T, C, dropout);
}
static inline void layernorm_backward(floatX *dresidual, floatX *dbranch, floatX *dgamma, floatX *dbeta,
                                      float *partial, const floatX *dout, const floatX *residual_out,
                                      const float *mean, const float *rstd, const floatX *gamma, size_t N,
                                      size_t T, size_t C, const Dropout *dropout, Stream stream) {
    (void)stream;
    layernorm_backward_cpu(dresidual, dbranch, dgamma, dbeta, partial, dout, residual_out, mean, rstd, gamma,
                           N, T, C, dropout);
}

#endif
