// Attention as the trainer calls it: one variant chosen at run time. The choice changes speed and memory;
// results are the same up to rounding (attention.h).
#ifndef ATTENTION_ATTENTION_CUH
#define ATTENTION_ATTENTION_CUH

#include "attention.h"
#include "naive.cuh"

typedef enum { ATTENTION_AUTO, ATTENTION_NAIVE, ATTENTION_FLASH } AttentionVariant;

// Floats of scratch that the forward pass leaves for the backward pass beside out and lse.
static inline size_t attention_saved_size(AttentionVariant variant, size_t B, size_t NH, size_t Tq,
                                          size_t Tk) {
    return variant == ATTENTION_NAIVE ? B * NH * Tq * Tk : 0;
}

static inline int attention_available(AttentionVariant variant, int on_gpu) {
    return variant == ATTENTION_NAIVE || (variant == ATTENTION_FLASH && !on_gpu);
}

// `variant` where it is available; else, and for ATTENTION_AUTO, the fastest there is.
static inline AttentionVariant attention_choose(AttentionVariant variant, int on_gpu) {
    if (attention_available(variant, on_gpu)) return variant;
    return attention_available(ATTENTION_FLASH, on_gpu) ? ATTENTION_FLASH : ATTENTION_NAIVE;
}

// `saved`: attention_saved_size floats. The variant must be available.
static inline void attention_forward(AttentionVariant variant, floatX *out, float *lse, float *saved,
                                     const floatX *q, const floatX *k, const floatX *v, const Attention *a,
                                     Stream stream) {
    CHECK(attention_available(variant, DEVICE_IS_GPU));
#ifdef DEVICE_CUDA
    attention_naive_forward(out, lse, saved, q, k, v, a, stream);
#else
    (void)stream;
    if (variant == ATTENTION_NAIVE)
        attention_naive_forward_cpu(out, lse, saved, q, k, v, a);
    else
        attention_flash_forward_cpu(out, lse, q, k, v, a);
#endif
}

static inline void attention_backward(AttentionVariant variant, floatX *dq, floatX *dk, floatX *dv,
                                      const floatX *dout, const floatX *q, const floatX *k, const floatX *v,
                                      const floatX *out, const float *lse, const float *saved,
                                      const Attention *a, Stream stream) {
    CHECK(attention_available(variant, DEVICE_IS_GPU));
#ifdef DEVICE_CUDA
    (void)lse;
    attention_naive_backward(dq, dk, dv, dout, q, k, v, out, saved, a, stream);
#else
    (void)stream;
    if (variant == ATTENTION_NAIVE)
        attention_naive_backward_cpu(dq, dk, dv, dout, q, k, v, out, saved, a);
    else
        attention_flash_backward_cpu(dq, dk, dv, dout, q, k, v, out, lse, a);
#endif
}

#endif
