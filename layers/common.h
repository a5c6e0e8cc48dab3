// What every layer stands on: the number types, device memory, streams, error checks, and a few numeric
// helpers that give the same bits in vector bodies and in tails, whatever the number of threads.
//
// This is the CPU's implementation of the device contract: memory is the host's, a stream is nothing.
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

typedef float floatX; // the type of weights and activations on the device
typedef int Stream;   // work on the CPU is done when the call returns

// A programming error: prints the place and the statement, and ends the program.
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);                    \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

// ---- memory -----------------------------------------------------------------------------------------------

enum { DEVICE_ALIGNMENT = 4096 };

// NULL when there is not that much memory. Aligned to pages; the content is not defined.
static inline void *device_alloc(size_t bytes) {
    return aligned_alloc(DEVICE_ALIGNMENT, (bytes + DEVICE_ALIGNMENT) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT);
}
static inline void device_free(void *pointer) {
    free(pointer);
}
static inline void device_zero(void *pointer, size_t bytes, Stream stream) {
    (void)stream;
    memset(pointer, 0, bytes);
}
static inline void copy_to_device(void *device, const void *host, size_t bytes, Stream stream) {
    (void)stream;
    memcpy(device, host, bytes);
}

// ---- sizes ----------------------------------------------------------------------------------------------

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }
static inline size_t round_up(size_t a, size_t multiple) { return divide_up(a, multiple) * multiple; }

// ---- numbers ----------------------------------------------------------------------------------------------

// Sums run over LANES partial sums (element i goes to lane i mod LANES) that are added in a fixed tree at the
// end: fast in vectors of any width up to LANES, and always the same bits.
enum { LANES = 16 };

static inline float sum_lanes(const float lane[LANES]) {
    float half[LANES / 2];
    for (int i = 0; i < LANES / 2; i++) half[i] = lane[i] + lane[i + LANES / 2];
    for (int width = LANES / 4; width > 0; width /= 2)
        for (int i = 0; i < width; i++) half[i] += half[i + width];
    return half[0];
}

// Adds `expression`, a function of the index `i`, over 0 <= i < n in that order. `result` must be a float.
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

static inline float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}
static inline uint32_t bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// e^x to about 2 ulp; below -87.3 the result stays at e^-87.3 (1.2e-38), above 88.3 at e^88.3; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7. No branch: vectorises.
static inline float fast_exp(float x) {
    const float round_to_integer = 12582912.0f; // 1.5 * 2^23: the sum's low mantissa bits are the integer n
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float shifted = x * 1.44269504f + round_to_integer;
    float n = shifted - round_to_integer;
    float r = x - n * 0.693359375f; // ln 2 in two parts, the first exact in 10 bits
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
