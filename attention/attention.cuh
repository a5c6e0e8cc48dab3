// Attention as the trainer calls it: one variant chosen at run time. The choice changes speed and memory;
// results are the same up to rounding (attention.h).
#ifndef ATTENTION_ATTENTION_CUH
#define ATTENTION_ATTENTION_CUH

#include "attention.h"
#include "cudnn.h"
#include "flash.h"
#include "naive.cuh"

typedef enum { ATTENTION_AUTO, ATTENTION_NAIVE, ATTENTION_FLASH, ATTENTION_CUDNN } AttentionVariant;

// NULL where `variant` computes this here, else a sentence that says why not.
static inline const char *attention_refusal(AttentionVariant variant, const Attention *a) {
    (void)a;
    if (variant != ATTENTION_CUDNN) return NULL;
#ifdef HAVE_CUDNN
    return attention_cudnn_refusal(a);
#else
    return "this build has no cuDNN: build with make DEVICE=cuda CUDNN=1";
#endif
}

// `variant`, or the fastest there is for ATTENTION_AUTO.
static inline AttentionVariant attention_choose(AttentionVariant variant) {
    return variant == ATTENTION_AUTO ? ATTENTION_FLASH : variant;
}

// Floats that the forward pass leaves for the backward pass beside out and lse.
static inline size_t attention_saved_size(AttentionVariant variant, size_t B, size_t NH, size_t Tq,
                                          size_t Tk) {
    return variant == ATTENTION_NAIVE ? B * NH * Tq * Tk : 0;
}
// Floats that the backward pass needs for itself.
static inline size_t attention_scratch_size(AttentionVariant variant, int on_gpu, size_t B, size_t NH,
                                            size_t Tq, size_t HS) {
    return variant == ATTENTION_FLASH && on_gpu ? attention_flash_scratch_size(B, NH, Tq, HS) : 0;
}

// `saved`: attention_saved_size floats. The variant must not be refused.
static inline void attention_forward(AttentionVariant variant, floatX *out, float *lse, float *saved,
                                     const floatX *q, const floatX *k, const floatX *v, const Attention *a,
                                     Stream stream) {
#ifdef HAVE_CUDNN
    if (variant == ATTENTION_CUDNN) return attention_cudnn_forward(out, lse, q, k, v, a, stream);
#endif
    CHECK(variant == ATTENTION_NAIVE || variant == ATTENTION_FLASH);
#ifdef DEVICE_CUDA
    if (variant == ATTENTION_NAIVE)
        attention_naive_forward(out, lse, saved, q, k, v, a, stream);
    else
        attention_flash_forward(out, lse, q, k, v, a, stream);
#else
    (void)stream;
    if (variant == ATTENTION_NAIVE)
        attention_naive_forward_cpu(out, lse, saved, q, k, v, a);
    else
        attention_flash_forward_cpu(out, lse, q, k, v, a);
#endif
}

// `scratch`: attention_scratch_size floats, of which nothing is needed before and after.
static inline void attention_backward(AttentionVariant variant, floatX *dq, floatX *dk, floatX *dv,
                                      const floatX *dout, const floatX *q, const floatX *k, const floatX *v,
                                      const floatX *out, const float *lse, const float *saved, float *scratch,
                                      const Attention *a, Stream stream) {
#ifdef HAVE_CUDNN
    if (variant == ATTENTION_CUDNN)
        return attention_cudnn_backward(dq, dk, dv, dout, q, k, v, out, lse, a, stream);
#endif
    CHECK(variant == ATTENTION_NAIVE || variant == ATTENTION_FLASH);
#ifdef DEVICE_CUDA
    if (variant == ATTENTION_NAIVE)
        attention_naive_backward(dq, dk, dv, dout, q, k, v, out, saved, a, stream);
    else
        attention_flash_backward(dq, dk, dv, dout, q, k, v, out, lse, scratch, a, stream);
#else
    (void)stream, (void)scratch;
    if (variant == ATTENTION_NAIVE)
        attention_naive_backward_cpu(dq, dk, dv, dout, q, k, v, out, saved, a);
    else
        attention_flash_backward_cpu(dq, dk, dv, dout, q, k, v, out, lse, a);
#endif
}

#endif
