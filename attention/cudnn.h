// Attention by cuDNN (cudnn.cpp, in builds with HAVE_CUDNN: make DEVICE=cuda CUDNN=1): the baseline for the speed of
// our own kernels, and an independent check of their results. It follows attention.h, with these differences:
//
// - Dropout uses cuDNN's own masks, not the closed form of attention.h: its generator is seeded with a number that
//   Philox computes from the key (seed, stream, layer), the step and the first sequence. The masks repeat from run to
//   run, and backward uses those of forward, but they depend on how the batch is split, and no other variant has the
//   same ones. The keep rate is also threshold / 256.
// - It supports only bf16, MASK_NONE or MASK_CAUSAL with Tq = Tk, and the head sizes of cuDNN's backward kernels.
// - Backward repeats bit for bit, unless `atomics` is set or cuDNN has no such kernel; the latter causes a note on
//   stderr, once. On Hopper, a reproducible backward pass needs an additional 2 B NH Tq Tk bytes of memory, with Tq and
//   Tk rounded up to cuDNN's tiles.
//
// Shape, strides, mask, scale, keep rate and `atomics` are part of a plan. cuDNN needs up to a second to build a new
// one; it is kept until the program ends. Everything else may change from call to call. A call that fails ends the
// program with cuDNN's message. The functions are not thread-safe.
#ifndef ATTENTION_CUDNN_H
#define ATTENTION_CUDNN_H

#include "attention.h"

#ifdef HAVE_CUDNN
#ifdef __cplusplus
extern "C" {
#endif

// Builds the plans for forward and backward. Returns NULL if cuDNN supports both on this GPU, else a sentence that says
// why not; it is valid until the next call.
const char *attention_cudnn_refusal(const Attention *a);

// Tensors are those of attention.h. Forward also supports a single query and key, for which cuDNN has no backward pass.
void attention_cudnn_forward(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v,
                             const Attention *a, Stream stream);
void attention_cudnn_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q,
                              const floatX *k, const floatX *v, const floatX *out, const float *lse,
                              const Attention *a, Stream stream);

#ifdef __cplusplus
}
#endif
#endif
#endif
