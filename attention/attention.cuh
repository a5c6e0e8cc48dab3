// Attention as the trainer calls it: one variant chosen at run time. The choice changes speed and memory;
// results are the same up to rounding (attention.h).
#ifndef ATTENTION_ATTENTION_CUH
#define ATTENTION_ATTENTION_CUH

#include "attention.h"
#include "naive.cuh"

typedef enum { ATTENTION_NAIVE, ATTENTION_FLASH } AttentionVariant;

// Floats of scratch that the forward pass leaves for the backward pass beside out and lse.
static inline size_t attention_saved_size(AttentionVariant variant, size_t B, size_t NH, size_t Tq,
                                          size_t Tk) {
    return variant == ATTENTION_NAIVE ? B * NH * Tq * Tk : 0;
}

// `saved`: attention_saved_size floats.
static inline void attention_forward(AttentionVariant variant, floatX *out, float *lse, float *saved,
                                     const floatX *q, const floatX *k, const floatX *v, const Attention *a,
                                     Stream stream) {
    (void)stream;
    if (variant == ATTENTION_NAIVE)
        attention_naive_forward_cpu(out, lse, saved, q, k, v, a);
    else
        attention_flash_forward_cpu(out, lse, q, k, v, a);
}

static inline void attention_backward(AttentionVariant variant, floatX *dq, floatX *dk, floatX *dv,
                                      const floatX *dout, const floatX *q, const floatX *k, const floatX *v,
                                      const floatX *out, const float *lse, const float *saved,
                                      const Attention *a, Stream stream) {
    (void)stream;
    if (variant == ATTENTION_NAIVE)
        attention_naive_backward_cpu(dq, dk, dv, dout, q, k, v, out, saved, a);
    else
        attention_flash_backward_cpu(dq, dk, dv, dout, q, k, v, out, lse, a);
}

#endif
