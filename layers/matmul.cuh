// The linear layer, weights stored (C, OC) as in Hugging Face's GPT-2 (Conv1D):
//
//     forward          out (N, OC) = in (N, C) W (C, OC) + bias (OC)
//     gelu forward     the same, and gelu (N, OC) = GELU(out); out is the pre-activation, saved for backward
//     backward         din (N, C)    = dout W^T                              overwrites
//                      din           = (dout W^T) * GELU'(in_pre_gelu)       when `in` came out of a GELU
//                      dW (C, OC)    = or += in^T dout                       (mode)
//                      dbias (OC)   += sum over rows of dout                 always adds
//     head forward     logits (N, V) = in (N, C) wte (V, C)^T                the tied output head
//     head backward    din (N, C)    = dlogits wte;   dwte (V, C) = or += dlogits^T in
//
// Bias, GELU and GELU' are applied to blocks of the output while they are in cache (matmul_cpu.h).
#ifndef LAYERS_MATMUL_CUH
#define LAYERS_MATMUL_CUH

#include "common.h"
#include "matmul_cpu.h"

// dbias += the sum over rows, in the order of the rows; threads share the columns.
static inline void bias_backward_cpu(float *dbias, const float *dout, size_t N, size_t OC) {
    enum { COLUMNS = 32 };
#pragma omp parallel for schedule(dynamic)
    for (size_t first = 0; first < OC; first += COLUMNS) {
        float sum[COLUMNS] = {0};
        size_t count = OC - first < COLUMNS ? OC - first : COLUMNS;
        if (count == COLUMNS) {
            for (size_t row = 0; row < N; row++)
                for (size_t c = 0; c < COLUMNS; c++) sum[c] += dout[row * OC + first + c];
        } else {
            for (size_t row = 0; row < N; row++)
                for (size_t c = 0; c < count; c++) sum[c] += dout[row * OC + first + c];
        }
        for (size_t c = 0; c < count; c++) dbias[first + c] += sum[c];
    }
}

static inline void matmul_forward(const MatmulContext *context, floatX *out, const floatX *in,
                                  const floatX *weight, const floatX *bias, size_t N, size_t C, size_t OC,
                                  Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {bias, NULL, NULL};
    matmul_cpu(context, MATMUL_NN, N, OC, C, in, C, weight, OC, out, OC, MATMUL_OVERWRITE, &epilogue);
}

static inline void matmul_gelu_forward(const MatmulContext *context, floatX *gelu, floatX *out,
                                       const floatX *in, const floatX *weight, const floatX *bias, size_t N,
                                       size_t C, size_t OC, Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {bias, gelu, NULL};
    matmul_cpu(context, MATMUL_NN, N, OC, C, in, C, weight, OC, out, OC, MATMUL_OVERWRITE, &epilogue);
}

// in_pre_gelu (N, C) or NULL: the pre-activation, when `in` is its GELU.
static inline void matmul_backward(const MatmulContext *context, floatX *din, floatX *dweight, floatX *dbias,
                                   const floatX *dout, const floatX *in, const floatX *weight,
                                   const floatX *in_pre_gelu, size_t N, size_t C, size_t OC, MatmulMode mode,
                                   Stream stream) {
    (void)stream;
    MatmulEpilogue epilogue = {NULL, NULL, in_pre_gelu};
    matmul_cpu(context, MATMUL_NT, N, C, OC, dout, OC, weight, OC, din, C, MATMUL_OVERWRITE, &epilogue);
    matmul_cpu(context, MATMUL_TN, C, OC, N, in, C, dout, OC, dweight, OC, mode, NULL);
    bias_backward_cpu(dbias, dout, N, OC);
}

static inline void matmul_head_forward(const MatmulContext *context, floatX *logits, const floatX *in,
                                       const floatX *wte, size_t N, size_t C, size_t V, Stream stream) {
    (void)stream;
    matmul_cpu(context, MATMUL_NT, N, V, C, in, C, wte, C, logits, V, MATMUL_OVERWRITE, NULL);
}

static inline void matmul_head_backward(const MatmulContext *context, floatX *din, floatX *dwte,
                                        const floatX *dlogits, const floatX *in, const floatX *wte, size_t N,
                                        size_t C, size_t V, MatmulMode mode, Stream stream) {
    (void)stream;
    matmul_cpu(context, MATMUL_NN, N, C, V, dlogits, V, wte, C, din, C, MATMUL_OVERWRITE, NULL);
    matmul_cpu(context, MATMUL_TN, V, C, N, dlogits, V, in, C, dwte, C, mode, NULL);
}

#endif
