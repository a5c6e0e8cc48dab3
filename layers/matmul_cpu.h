// Matrix products on the CPU: packed, cache-blocked, one register tile (simd_cpu.h) at a time.
//
//     MATMUL_NT   C (M, N) = A (M, K) B (N, K)^T
//     MATMUL_NN   C (M, N) = A (M, K) B (K, N)
//     MATMUL_TN   C (M, N) = A (K, M)^T B (K, N)
//
// Row-major, leading dimensions in elements. C = with MATMUL_OVERWRITE, C += with MATMUL_ACCUMULATE. Inputs
// are fp32; with PRECISION_BF16 they are rounded to bf16 (to nearest even) while they are packed, and
// products are summed in fp32. The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication" (TOMS 2008): a block of B and a block of A are packed by all threads, then tiles of
// C are handed out dynamically. The sum over K of an element of C has one order, fixed by K alone: neither
// the number of threads nor M and N change a bit of it; but products of up to 4 rows, as when text is generated,
// have another order than larger ones.
#ifndef LAYERS_MATMUL_CPU_H
#define LAYERS_MATMUL_CPU_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { MATMUL_NT, MATMUL_NN, MATMUL_TN } MatmulLayout;
typedef enum { MATMUL_OVERWRITE, MATMUL_ACCUMULATE } MatmulMode;
typedef enum { PRECISION_FP32, PRECISION_BF16 } Precision;

// What happens to a block of C while it is still in cache, in this order; NULL: nothing.
typedef struct {
    const float *bias;       // (N): C += bias
    float *gelu;             // (M, N): gelu = GELU(C), C keeps the pre-activation
    const float *gelu_input; // (M, N): C *= GELU'(gelu_input)
} MatmulEpilogue;

typedef struct {
    Precision precision;
    float *packed_a, *packed_b;
} MatmulCpu;

// Does this build, on this machine, round inputs to bf16 in hardware?
int matmul_bf16_available(void);
void matmul_cpu_open(MatmulCpu *context, Precision precision);
void matmul_cpu_close(MatmulCpu *context);

void matmul_cpu(const MatmulCpu *context, MatmulLayout layout, size_t M, size_t N, size_t K, const float *A,
                size_t lda, const float *B, size_t ldb, float *C, size_t ldc, MatmulMode mode,
                const MatmulEpilogue *epilogue);

// GFLOP/s of register tiles that never leave the first-level cache, all threads: the peak to compare with.
double matmul_measure_peak(Precision precision);

#ifdef __cplusplus
}
#endif
#endif
