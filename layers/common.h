// Shared by all layers: sizes, error checks, and a few numeric helpers whose results are bitwise identical in vector
// bodies and in tails, for any number of threads. Device memory and streams are in device.h, helpers for kernels in
// kernel.cuh.
#ifndef LAYERS_COMMON_H
#define LAYERS_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#define restrict __restrict
#endif
// Marks functions that kernels also call.
#ifdef DEVICE_CUDA
#include <cuda_runtime.h>
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

// ---- errors -----------------------------------------------------------------------------------------------

static inline void check_failed(const char *file, int line, const char *statement, const char *message) {
    fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, statement, *message ? ": " : "", message);
    abort();
}

// CHECK reports a programming error or a failed call of the CUDA runtime: it prints the source location, the statement
// and the message of the library, and aborts the program.
#ifdef DEVICE_CUDA
static inline void check(bool holds, const char *file, int line, const char *statement) {
    if (!holds) check_failed(file, line, statement, "");
}
static inline void check(cudaError_t error, const char *file, int line, const char *statement) {
    if (error != cudaSuccess) check_failed(file, line, statement, cudaGetErrorString(error));
}
#define CHECK(condition) check((condition), __FILE__, __LINE__, #condition)
#else
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, "");                                  \
    } while (0)
#endif

// Returns `pointer`, the result of an allocation of `bytes`. If it is NULL, prints an error and exits.
static inline void *allocated(void *pointer, size_t bytes) {
    if (pointer != NULL) return pointer;
    fprintf(stderr, "error: out of memory: cannot allocate %zu bytes\n", bytes);
    exit(EXIT_FAILURE);
}

#include "device.h"

// ---- sizes ----------------------------------------------------------------------------------------------

static inline HOST_DEVICE size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}
static inline HOST_DEVICE size_t max_size(size_t a, size_t b) {
    return a > b ? a : b;
}
static inline HOST_DEVICE size_t divide_up(size_t a, size_t b) {
    return (a + b - 1) / b;
}
static inline HOST_DEVICE size_t round_up(size_t a, size_t multiple) {
    return divide_up(a, multiple) * multiple;
}

// ---- numbers ----------------------------------------------------------------------------------------------

// Sums are computed as LANES partial sums (element i goes to lane i mod LANES), which are added in a fixed tree at the
// end. This vectorises for any width up to LANES, and the result is always bitwise the same.
enum { LANES = 16 };

static inline float sum_lanes(const float lane[LANES]) {
    float half[LANES / 2];
    for (int i = 0; i < LANES / 2; i++) half[i] = lane[i] + lane[i + LANES / 2];
    for (int width = LANES / 4; width > 0; width /= 2)
        for (int i = 0; i < width; i++) half[i] += half[i + width];
    return half[0];
}

// result = sum of `expression`, a function of the index `i`, over 0 <= i < n, in the order described above. `result`
// must be a float.
#define SUM_IN_LANES(result, n, expression)                                                                  \
    do {                                                                                                     \
        float lane_[LANES] = {0};                                                                            \
        size_t whole_ = (size_t)(n) / LANES * LANES;                                                         \
        for (size_t first_ = 0; first_ < whole_; first_ += LANES)                                            \
            for (int j_ = 0; j_ < LANES; j_++) {                                                             \
                size_t i = first_ + (size_t)j_;                                                              \
                lane_[j_] += (expression);                                                                   \
            }                                                                                                \
        for (size_t i = whole_; i < (size_t)(n); i++) lane_[i - whole_] += (expression);                     \
        (result) = sum_lanes(lane_);                                                                         \
    } while (0)

static inline HOST_DEVICE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
static inline HOST_DEVICE uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// e^x to about 2 ulp. x is clamped to -87.3 (e^-87.3 = 1.2e-38) .. 88.3; NaN stays NaN. x = n ln 2 + r with
// |r| <= ln 2 / 2, and e^r is its Taylor polynomial of degree 7. Has no branch, so it vectorises.
static inline float fast_exp(float x) {
    const float round_to_integer = 12582912.0f; // 1.5 * 2^23: the sum has the integer n in its low bits
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float shifted = x * 1.44269504f + round_to_integer;
    float n = shifted - round_to_integer;
    float r = x - n * 0.693359375f; // ln 2 in two parts, of which the first is exact in 10 bits
    r = r - n * -2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_from_bits(0x3f800000u + (bits_from_float(shifted) << 23));
}

#endif
