// The register tile from which matmul and flash attention on the CPU are built.
//
//     C (rows, TILE_COLUMNS) (+)= A (rows, K) B (K, TILE_COLUMNS)
//
// Elements of A are broadcast and have two strides; rows of B and C are contiguous. For every tile height, the sum over
// K is in the order of k, one fused multiply-add after the other, so results do not depend on how a matrix is divided
// into tiles. The code uses the vector types of the compiler; its target determines the sizes.
#ifndef LAYERS_SIMD_CPU_H
#define LAYERS_SIMD_CPU_H

#include <stddef.h>

#if defined(__AVX512F__)
#define SIMD_WIDTH 16 // floats
#define SIMD_NAME  "AVX-512"
#define TILE_ROWS  14 // accumulators use 28 of 32 registers
#elif defined(__AVX2__)
#define SIMD_WIDTH 8
#define SIMD_NAME  "AVX2"
#define TILE_ROWS  6 // accumulators use 12 of 16 registers
#else
#define SIMD_WIDTH 4
#define SIMD_NAME  "128-bit"
#define TILE_ROWS  6
#endif
#define TILE_COLUMNS (2 * SIMD_WIDTH)

typedef float Vector __attribute__((vector_size(SIMD_WIDTH * 4)));
typedef float VectorAnywhere __attribute__((vector_size(SIMD_WIDTH * 4), aligned(4), may_alias));

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// `rows` must be a compile-time constant at every call.
static inline __attribute__((always_inline)) void multiply_tile(const int rows, size_t K, const float *a,
                                                                size_t a_row_stride, size_t a_k_stride,
                                                                const float *b, size_t b_k_stride, float *c,
                                                                size_t c_row_stride, int accumulate) {
    Vector sum[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = (Vector){0};
    for (size_t k = 0; k < K; k++, a += a_k_stride, b += b_k_stride) {
        Vector b0 = *(const VectorAnywhere *)b, b1 = *(const VectorAnywhere *)(b + SIMD_WIDTH);
        UNROLL for (int i = 0; i < rows; i++) {
            float broadcast = a[(size_t)i * a_row_stride];
            sum[i][0] += broadcast * b0;
            sum[i][1] += broadcast * b1;
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        VectorAnywhere *row = (VectorAnywhere *)(c + (size_t)i * c_row_stride);
        if (accumulate) {
            sum[i][0] += row[0];
            sum[i][1] += row[1];
        }
        row[0] = sum[i][0];
        row[1] = sum[i][1];
    }
}

// Expands to X(1) X(2) .. X(TILE_ROWS): one instance of a kernel for every tile height.
#define EACH_UP_TO_6(X) X(1) X(2) X(3) X(4) X(5) X(6)
#if TILE_ROWS == 14
#define EACH_TILE_HEIGHT(X) EACH_UP_TO_6(X) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#else
#define EACH_TILE_HEIGHT(X) EACH_UP_TO_6(X)
#endif

#endif
