// Attention by cuDNN (cudnn.cpp, in builds with HAVE_CUDNN: make DEVICE=cuda CUDNN=1): the yardstick for our own
// kernels, and an independent second opinion on them. What attention.h defines, with these differences:
//
// - Dropout has cuDNN's own masks, not the closed form of attention.h: its generator is seeded with a number
//   that is drawn by Philox from the key (seed, stream, layer), the step and the first sequence. They repeat from
//   run to run and backward sees forward's, but they depend on how the batch is split, and no other variant
//   has them. The keep rate is the same threshold / 256.
// - Only bf16, MASK_NONE, or MASK_CAUSAL with Tq = Tk, and the head sizes that cuDNN has backward kernels for.
// - Backward repeats bit for bit, unless `atomics` is set or cuDNN has no such kernel, which is said on stderr
//   once. On Hopper it takes 2 B NH Tq Tk bytes of memory of its own for that, Tq and Tk rounded up to
//   cuDNN's tiles.
//
// Shape, strides, mask, scale, keep rate and `atomics` are part of a plan, which cuDNN takes up to a second to
// build where they are new; it is kept until the program ends. Everything else may change from call to call.
// A call that fails ends the program with cuDNN's message. Not for more than one thread at a time.
#ifndef ATTENTION_CUDNN_H
#define ATTENTION_CUDNN_H

#include "attention.h"

#ifdef HAVE_CUDNN
#ifdef __cplusplus
extern "C" {
#endif

// NULL where cuDNN computes this, forward and backward, on this GPU; else a sentence that says why not, which is
// valid until the next call. Builds the plans.
const char *attention_cudnn_refusal(const Attention *a);

// Tensors as in attention.h. Forward alone also serves a single query and key, for which cuDNN has no backward
// pass.
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
