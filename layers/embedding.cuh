// Token and position embedding (GPT-2), with dropout on their sum:
//
//     forward     out (B, T, C) = dropout(wte[token] + wpe[position])      tokens (B, T), wte (V, C), wpe (T, C)
//     backward    dwte[token] += dropout'(dout), dwpe[position] += dropout'(dout)
//                 dout is overwritten with its product with the mask
//
// Nothing is saved but the tokens. Backward's sums run over the tokens in their order whatever the number of
// threads: threads share the channels, not the tokens.
#ifndef LAYERS_EMBEDDING_CUH
#define LAYERS_EMBEDDING_CUH

#include "common.h"
#include "dropout.h"

static inline void embedding_forward_cpu(float *out, const int32_t *tokens, const float *wte,
                                         const float *wpe, size_t B, size_t T, size_t C,
                                         const Dropout *dropout) {
#pragma omp parallel for schedule(dynamic, 16)
    for (size_t row = 0; row < B * T; row++) {
        float *restrict o = out + row * C;
        const float *token = wte + (size_t)tokens[row] * C, *position = wpe + row % T * C;
        for (size_t c = 0; c < C; c++) o[c] = token[c] + position[c];
        dropout_row(o, C, row % T, row / T, dropout);
    }
}

static inline void embedding_backward_cpu(float *dwte, float *dwpe, float *dout, const int32_t *tokens,
                                          size_t B, size_t T, size_t C, const Dropout *dropout) {
    enum { COLUMNS = 64 };
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 16)
        for (size_t row = 0; row < B * T; row++) dropout_row(dout + row * C, C, row % T, row / T, dropout);
#pragma omp for schedule(dynamic)
        for (size_t first = 0; first < C; first += COLUMNS) {
            size_t count = C - first < COLUMNS ? C - first : COLUMNS;
            for (size_t row = 0; row < B * T; row++) {
                const float *restrict d = dout + row * C + first;
                float *restrict token = dwte + (size_t)tokens[row] * C + first;
                float *restrict position = dwpe + row % T * C + first;
                for (size_t c = 0; c < count; c++) {
                    token[c] += d[c];
                    position[c] += d[c];
                }
            }
        }
    }
}

static inline void embedding_forward(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                                     size_t B, size_t T, size_t C, const Dropout *dropout, Stream stream) {
    (void)stream;
    embedding_forward_cpu(out, tokens, wte, wpe, B, T, C, dropout);
}
static inline void embedding_backward(floatX *dwte, floatX *dwpe, floatX *dout, const int32_t *tokens,
                                      size_t B, size_t T, size_t C, const Dropout *dropout, Stream stream) {
    (void)stream;
    embedding_backward_cpu(dwte, dwpe, dout, tokens, B, T, C, dropout);
}

#endif
