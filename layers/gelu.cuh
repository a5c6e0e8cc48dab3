// GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415), element by element:
//
//     gelu(x)  = x/2 (1 + tanh(u)) = x s(2u)        u = sqrt(2/pi) (x + 0.044715 x^3),  s(y) = 1 / (1 + e^-y)
//     gelu'(x) = s(2u) + x s(2u) (1 - s(2u)) d(2u)/dx
//
//     forward     out = gelu(in)              saves in, the pre-activation
//     backward    din = dout * gelu'(in)      overwrites din; din and dout may be the same memory
//
// In training both run inside matmul's epilogue (matmul.cuh), which calls gelu_value and gelu_derivative.
#ifndef LAYERS_GELU_CUH
#define LAYERS_GELU_CUH

#include "common.h"

#define GELU_LINEAR 1.5957691216057308f // 2 sqrt(2/pi)
#define GELU_CUBIC  0.0713548162726f    // 0.044715 * 2 sqrt(2/pi)

static inline float gelu_value(float x) {
    float y = x * (GELU_LINEAR + GELU_CUBIC * x * x);
    return x / (1.0f + fast_exp(-y));
}

static inline float gelu_derivative(float x) {
    float y = x * (GELU_LINEAR + GELU_CUBIC * x * x);
    float e = fast_exp(-y), s = 1.0f / (1.0f + e);
    return s +
           x * s * (e * s) * (GELU_LINEAR + 3.0f * GELU_CUBIC * x * x); // e s = 1 - s, without cancellation
}

static inline void gelu_forward_cpu(float *out, const float *in, size_t n) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) out[i] = gelu_value(in[i]);
}

static inline void gelu_backward_cpu(float *din, const float *dout, const float *in, size_t n) {
#pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) din[i] = dout[i] * gelu_derivative(in[i]);
}

#endif
