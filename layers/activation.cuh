// The activation of the MLP: dispatches by the kind that the model's description names. The activation is computed
// alone, or together with the product before or after it, with which it is fused where the device supports that.
#ifndef LAYERS_ACTIVATION_CUH
#define LAYERS_ACTIVATION_CUH

#include "gelu.cuh"
#include "kinds.h"
#include "matmul.cuh"

// out (rows, F) = f(in), in (rows, UP); overwrites.
static inline void activation_forward(ActivationKind kind, floatX *out, const floatX *in, size_t rows,
                                      size_t F, Stream stream) {
    switch (kind) {
    case ACTIVATION_GELU:
        gelu_forward(out, in, rows * F, stream);
    }
}

// up (N, UP) = in (N, C) W (C, UP) + bias (UP), the pre-activation; activated (N, F) = f(up). Both overwrite.
static inline void matmul_activation_forward(ActivationKind kind, const MatmulContext *context,
                                             floatX *activated, floatX *up, const floatX *in,
                                             const floatX *weight, const floatX *bias, size_t N, size_t C,
                                             size_t UP, Stream stream) {
    switch (kind) {
    case ACTIVATION_GELU:
        matmul_gelu_forward(context, activated, up, in, weight, bias, N, C, UP, stream);
    }
}

// Backward through the activation and the product after it, out (N, C) = f(up) W (F, C) + bias (C). Overwrites
// dup (N, UP); dweight and dbias are written as by matmul_backward.
static inline void matmul_activation_backward(ActivationKind kind, const MatmulContext *context, floatX *dup,
                                              float *dweight, float *dbias, const floatX *dout,
                                              const floatX *activated, const floatX *weight, const floatX *up,
                                              size_t N, size_t F, size_t C, MatmulMode mode, Stream stream) {
    switch (kind) {
    case ACTIVATION_GELU:
        matmul_backward(context, dup, dweight, dbias, dout, activated, weight, up, N, F, C, mode, stream);
    }
}

#endif
