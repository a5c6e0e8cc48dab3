// Attention as the trainer calls it: the variant is chosen at run time. The choice affects speed and memory; results
// are the same up to rounding (attention.h).
#ifndef ATTENTION_ATTENTION_CUH
#define ATTENTION_ATTENTION_CUH

#include "attention.h"
#include "cudnn.h"
#include "flash.h"
#include "naive.cuh"

typedef enum { ATTENTION_AUTO, ATTENTION_NAIVE, ATTENTION_FLASH, ATTENTION_CUDNN } AttentionVariant;

// Returns NULL if `variant` supports this shape in this build and on this device, else a sentence that says why not.
static inline const char *attention_refusal(AttentionVariant variant, const Attention *a) {
    (void)a;
    if (variant != ATTENTION_CUDNN) return NULL;
#ifdef HAVE_CUDNN
    return attention_cudnn_refusal(a);
#else
    return "this build has no cuDNN: build with make DEVICE=cuda CUDNN=1";
#endif
}

// Returns `variant`, or the fastest available one for ATTENTION_AUTO.
static inline AttentionVariant attention_choose(AttentionVariant variant) {
    return variant == ATTENTION_AUTO ? ATTENTION_FLASH : variant;
}

// Returns the number of floats that the forward pass saves for the backward pass in addition to out and lse.
static inline size_t attention_saved_size(AttentionVariant variant, size_t B, size_t NH, size_t Tq,
                                          size_t Tk) {
    return variant == ATTENTION_NAIVE ? B * NH * Tq * Tk : 0;
}
// Returns the number of floats of scratch space that the backward pass needs.
static inline size_t attention_scratch_size(AttentionVariant variant, int on_gpu, size_t B, size_t NH,
                                            size_t Tq, size_t HS) {
    return variant == ATTENTION_FLASH && on_gpu ? attention_flash_scratch_size(B, NH, Tq, HS) : 0;
}

// `saved` has room for attention_saved_size floats. attention_refusal must be NULL for the variant.
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

// `scratch` has room for attention_scratch_size floats; its contents need not be preserved between calls.
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
