// Matrix products on the CPU: packed and cache-blocked, computed in register tiles (simd_cpu.h).
//
//     MATMUL_NT   C (M, N) = A (M, K) B (N, K)^T
//     MATMUL_NN   C (M, N) = A (M, K) B (K, N)
//     MATMUL_TN   C (M, N) = A (K, M)^T B (K, N)
//
// Matrices are row-major, with leading dimensions in elements. MATMUL_OVERWRITE means C =, MATMUL_ACCUMULATE C +=.
// Inputs are fp32; with PRECISION_BF16 they are rounded to bf16 (to nearest even) while they are packed, and products
// are summed in fp32. The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (TOMS 2008): all threads pack a block of B and a block of A, then tiles of C are scheduled
// dynamically. The order of the sum over K is fixed by K alone: an element of C is bitwise the same for any number of
// threads and any M and N, except that products of up to 4 rows, as in text generation, use a different order from
// larger ones.
#ifndef LAYERS_MATMUL_CPU_H
#define LAYERS_MATMUL_CPU_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MATMUL_NT, MATMUL_NN, MATMUL_TN } MatmulLayout;
typedef enum { MATMUL_OVERWRITE, MATMUL_ACCUMULATE } MatmulMode;
typedef enum { PRECISION_FP32, PRECISION_BF16 } Precision;

// Operations on a block of C while it is still in cache, in this order; NULL skips one.
typedef struct {
    const float *bias;       // (N): C += bias
    float *gelu;             // (M, N): gelu = GELU(C); C remains the pre-activation
    const float *gelu_input; // (M, N): C *= GELU'(gelu_input)
} MatmulEpilogue;

typedef struct {
    Precision precision;
    float *packed_a, *packed_b; // the packed block of A and of B
} MatmulCpu;

// Returns 1 if this build rounds inputs to bf16 in hardware, so that PRECISION_BF16 can be used.
int matmul_bf16_available(void);
void matmul_cpu_open(MatmulCpu *context, Precision precision);
void matmul_cpu_close(MatmulCpu *context);

// Computes C from A and B, see above. `epilogue` may be NULL.
void matmul_cpu(const MatmulCpu *context, MatmulLayout layout, size_t M, size_t N, size_t K, const float *A,
                size_t lda, const float *B, size_t ldb, float *C, size_t ldc, MatmulMode mode,
                const MatmulEpilogue *epilogue);

// Measures the peak rate with which the trainer compares itself: returns the GFLOP/s of register tiles whose data stay
// in the first-level cache, summed over all threads.
double matmul_measure_peak(Precision precision);

#ifdef __cplusplus
}
#endif
#endif
