// GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415), element by element:
//
//     gelu(x)  = x/2 (1 + tanh(u)) = x s(2u)        u = sqrt(2/pi) (x + 0.044715 x^3),  s(y) = 1 / (1 + e^-y)
//     gelu'(x) = s(2u) + x s(2u) (1 - s(2u)) d(2u)/dx
//
//     forward     out = gelu(in)              saves in, the pre-activation
//     backward    din = dout * gelu'(in)      overwrites din; din and dout may be the same memory
//
// On the CPU, training computes both in the epilogue of the matrix products (matmul.cuh), which calls gelu_value and
// gelu_derivative. On a GPU they are kernels, with eight elements per thread.
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

// ---- on a GPU ---------------------------------------------------------------------------------------------
#ifdef DEVICE_CUDA
#include "kernel.cuh"

enum { GELU_THREADS = 256 };

// e^-y overflows to infinity for y < -88; x / infinity is 0, as it should be.
__device__ __forceinline__ float gelu_value_device(float x) {
    float y = x * (GELU_LINEAR + GELU_CUBIC * x * x);
    return __fdividef(x, 1.0f + __expf(-y));
}

// For y < -80 the derivative is below 1e-30 and taken as 0; otherwise e s would become infinity times 0.
__device__ __forceinline__ float gelu_derivative_device(float x) {
    float y = x * (GELU_LINEAR + GELU_CUBIC * x * x);
    if (y < -80.0f) return 0.0f;
    float e = __expf(-y), s = __fdividef(1.0f, 1.0f + e);
    return s + x * s * (e * s) * (GELU_LINEAR + 3.0f * GELU_CUBIC * x * x);
}

static __global__ void __launch_bounds__(GELU_THREADS)
    gelu_forward_kernel(floatX *out, const floatX *in, size_t n) {
    size_t i = ((size_t)blockIdx.x * GELU_THREADS + threadIdx.x) * 8;
    if (i + 8 <= n) {
        Float8 x = load8(in + i);
#pragma unroll
        for (int j = 0; j < 8; j++) x.v[j] = gelu_value_device(x.v[j]);
        store8(out + i, x);
    } else {
        for (; i < n; i++) out[i] = from_float<floatX>(gelu_value_device(to_float(in[i])));
    }
}

static __global__ void __launch_bounds__(GELU_THREADS)
    gelu_backward_kernel(floatX *din, const floatX *dout, const floatX *in, size_t n) {
    size_t i = ((size_t)blockIdx.x * GELU_THREADS + threadIdx.x) * 8;
    if (i + 8 <= n) {
        Float8 gradient = load8(dout + i), x = load8(in + i);
#pragma unroll
        for (int j = 0; j < 8; j++) gradient.v[j] *= gelu_derivative_device(x.v[j]);
        store8(din + i, gradient);
    } else {
        for (; i < n; i++)
            din[i] = from_float<floatX>(to_float(dout[i]) * gelu_derivative_device(to_float(in[i])));
    }
}

// The arrays must be aligned to 16 bytes; n may be any number.
static inline void gelu_forward(floatX *out, const floatX *in, size_t n, Stream stream) {
    launch(gelu_forward_kernel, blocks_for(n, 8 * GELU_THREADS), GELU_THREADS, 0, stream, out, in, n);
}
static inline void gelu_backward(floatX *din, const floatX *dout, const floatX *in, size_t n, Stream stream) {
    launch(gelu_backward_kernel, blocks_for(n, 8 * GELU_THREADS), GELU_THREADS, 0, stream, din, dout, in, n);
}

#else

static inline void gelu_forward(float *out, const float *in, size_t n, Stream stream) {
    (void)stream;
    gelu_forward_cpu(out, in, n);
}
static inline void gelu_backward(float *din, const float *dout, const float *in, size_t n, Stream stream) {
    (void)stream;
    gelu_backward_cpu(din, dout, in, n);
}

#endif
#endif
