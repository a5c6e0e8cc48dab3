// Our own matrix products on a GPU: in bf16 on the tensor cores (mma.sync), in fp32 with FMA.
//
//     MATMUL_NT   C (M, N) = A (M, K) B (N, K)^T
//     MATMUL_NN   C (M, N) = A (M, K) B (K, N)
//     MATMUL_TN   C (M, N) = A (K, M)^T B (K, N)
//
// A, B and C are dense and row-major; their rows are multiples of 8 elements, and M, N and K are otherwise arbitrary. A
// block of four warps computes TILE_M x TILE_N elements of C, each warp a quarter. The sum over K is computed in steps
// of TILE_K: while one step is multiplied, cp.async copies the tiles of A and B of the next step into the other buffer.
// Tiles are zero outside the matrices, so the products need no special cases. The sum over K is fp32, and its order is
// fixed by K alone.
//
// Shared memory: a tile is stored row by row, as in global memory, in chunks of 16 bytes. Chunk c of row r is stored at
// position c ^ (r % 8), so that the eight rows that one ldmatrix phase reads at the same chunk are in different banks.
#ifndef LAYERS_MATMUL_OWN_CUH
#define LAYERS_MATMUL_OWN_CUH

#include "ptx.h"
#include "kernel.cuh"
#include "matmul_cpu.h"

namespace own_matmul {

enum {
    TILE_M = 128,
    TILE_N = 64,
    TILE_K = 128 / sizeof(floatX), // a tile row along K is 8 chunks
    CHUNK = 16 / sizeof(floatX),   // elements
    THREADS = 128,                 // 2 x 2 warps
    RESIDENT = 3,                  // blocks resident on a multiprocessor
    BLOCKS_M = TILE_M / 2 / 16,    // height of a warp's part of C, in blocks of 16 x 8, the unit of mma
    BLOCKS_N = TILE_N / 2 / 8,     // its width
    STRIP = 8,                     // rows of tiles in a strip, see matmul_own_kernel
    SHARED_BYTES = 2 * (TILE_M + TILE_N) * TILE_K * sizeof(floatX),
};
static_assert(SHARED_BYTES <= 48 * 1024, "more shared memory than every GPU provides by default");
static_assert(BLOCKS_N % 2 == 0, "fragments of B are loaded for two blocks at a time");
static_assert(TILE_M / CHUNK % 8 == 0 && TILE_N / CHUNK % 8 == 0, "the swizzle permutes 8 chunks");

// Returns the index of the first element of a chunk in a tile whose rows have `columns` elements.
__device__ __forceinline__ unsigned swizzled(unsigned row, unsigned chunk, unsigned columns) {
    return row * columns + (chunk ^ row % 8) * CHUNK;
}

// Starts the copy of a tile from a matrix (rows, columns); its first element is (row0, column0).
template <int tile_rows, int tile_columns>
__device__ __forceinline__ void copy_tile(floatX *tile, const floatX *matrix, size_t rows, size_t columns,
                                          size_t row0, size_t column0) {
    const unsigned chunks = tile_columns / CHUNK, rows_at_once = THREADS / chunks;
    const unsigned chunk = threadIdx.x % chunks;
    const size_t column = column0 + chunk * CHUNK;
    unsigned row = threadIdx.x / chunks;
    size_t at = (row0 + row) * columns + column;
#pragma unroll
    for (unsigned i = 0; i < tile_rows / rows_at_once; i++) {
        bool inside = row0 + row < rows && column < columns;
        cp_async_16(tile + swizzled(row, chunk, tile_columns), matrix + (inside ? at : 0), inside);
        row += rows_at_once, at += rows_at_once * columns;
    }
}

// A tile of A has TILE_M of its rows, or of its columns if the layout transposes it; likewise TILE_N for B.
template <MatmulLayout layout>
__device__ __forceinline__ void copy_tiles(floatX *tile_a, floatX *tile_b, const floatX *A, const floatX *B,
                                           size_t M, size_t N, size_t K, size_t m0, size_t n0, size_t k0) {
    if (layout == MATMUL_TN)
        copy_tile<TILE_K, TILE_M>(tile_a, A, K, M, k0, m0);
    else
        copy_tile<TILE_M, TILE_K>(tile_a, A, M, K, m0, k0);
    if (layout == MATMUL_NT)
        copy_tile<TILE_N, TILE_K>(tile_b, B, N, K, n0, k0);
    else
        copy_tile<TILE_K, TILE_N>(tile_b, B, K, N, k0, n0);
    cp_async_commit();
}

// A thread's elements of its warp's part of C: of each block of 16 x 8, rows r and r + 8, columns c and c + 1
// (r = lane / 4, c = lane % 4 * 2), in this order. This is the layout of mma; the fp32 kernel uses it too.
typedef float WarpSums[BLOCKS_M][BLOCKS_N][4];

#ifndef PRECISION_IS_FP32
// sum += the rows of tile A from m on times the columns of tile B from n on, as many as a warp computes.
template <MatmulLayout layout>
__device__ __forceinline__ void multiply_tiles(WarpSums &sum, const floatX *tile_a, const floatX *tile_b,
                                               unsigned m, unsigned n) {
    const unsigned lane = threadIdx.x % WARP;
    // ldmatrix: lane l supplies the address of row l % 8 of the (l / 8)-th of four 8 x 8 matrices. mma requires
    // them in the order (0, 0), (8, 0), (0, 8), (8, 8), with coordinates (row, k) for A and (k, column) for two blocks
    // of B. If the rows of the tile are the first coordinate, a lane supplies `row` and `chunk`, else `row2` and
    // `chunk2`.
    const unsigned row = lane % 16, chunk = lane / 16, row2 = lane % 8 + lane / 16 * 8, chunk2 = lane / 8 % 2;
#pragma unroll
    for (unsigned k = 0; k < TILE_K; k += 16) {
        uint32_t a[BLOCKS_M][4], b[BLOCKS_N / 2][4];
#pragma unroll
        for (unsigned i = 0; i < BLOCKS_M; i++)
            if (layout == MATMUL_TN)
                ldmatrix_x4_trans(a[i], tile_a + swizzled(k + row2, (m + 16 * i) / 8 + chunk2, TILE_M));
            else
                ldmatrix_x4(a[i], tile_a + swizzled(m + 16 * i + row, k / 8 + chunk, TILE_K));
#pragma unroll
        for (unsigned j = 0; j < BLOCKS_N / 2; j++)
            if (layout == MATMUL_NT)
                ldmatrix_x4(b[j], tile_b + swizzled(n + 16 * j + row2, k / 8 + chunk2, TILE_K));
            else
                ldmatrix_x4_trans(b[j], tile_b + swizzled(k + row, (n + 16 * j) / 8 + chunk, TILE_N));
#pragma unroll
        for (unsigned i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (unsigned j = 0; j < BLOCKS_N; j++) {
                const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                mma_m16n8k16_bf16(sum[i][j], a[i], pair, sum[i][j]);
            }
    }
}
#else
template <MatmulLayout layout>
__device__ __forceinline__ void multiply_tiles(WarpSums &sum, const floatX *tile_a, const floatX *tile_b,
                                               unsigned m, unsigned n) {
    const unsigned lane = threadIdx.x % WARP;
    m += lane / 4, n += lane % 4 * 2;
#pragma unroll 4
    for (unsigned k = 0; k < TILE_K; k++) {
        float a[BLOCKS_M][2], b[BLOCKS_N][2];
#pragma unroll
        for (unsigned i = 0; i < 2 * BLOCKS_M; i++) {
            unsigned at = m + 8 * i;
            a[i / 2][i % 2] = layout == MATMUL_TN ? tile_a[swizzled(k, at / CHUNK, TILE_M) + at % CHUNK]
                                                  : tile_a[swizzled(at, k / CHUNK, TILE_K) + k % CHUNK];
        }
#pragma unroll
        for (unsigned j = 0; j < 2 * BLOCKS_N; j++) {
            unsigned at = n + j / 2 * 8 + j % 2;
            b[j / 2][j % 2] = layout == MATMUL_NT ? tile_b[swizzled(at, k / CHUNK, TILE_K) + k % CHUNK]
                                                  : tile_b[swizzled(k, at / CHUNK, TILE_N) + at % CHUNK];
        }
#pragma unroll
        for (unsigned i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (unsigned j = 0; j < BLOCKS_N; j++)
#pragma unroll
                for (unsigned e = 0; e < 4; e++) sum[i][j][e] = fmaf(a[i][e / 2], b[j][e % 2], sum[i][j][e]);
    }
}
#endif

// C = or += sum (+ bias), for the rows from m and columns from n on that are inside C (M, N).
template <class Out>
__device__ __forceinline__ void store_sums(Out *C, const WarpSums &sum, const floatX *bias, size_t M,
                                           size_t N, size_t m, size_t n, MatmulMode mode) {
    const unsigned lane = threadIdx.x % WARP;
    m += lane / 4, n += lane % 4 * 2;
#pragma unroll
    for (unsigned j = 0; j < BLOCKS_N; j++) {
        size_t column = n + 8 * j;
        if (column >= N) continue; // N is even, so column + 1 is inside too
        float bias0 = bias != NULL ? to_float(bias[column]) : 0.0f;
        float bias1 = bias != NULL ? to_float(bias[column + 1]) : 0.0f;
#pragma unroll
        for (unsigned i = 0; i < 2 * BLOCKS_M; i++) {
            if (m + 8 * i >= M) continue;
            Out *to = C + (m + 8 * i) * N + column;
            float x = sum[i / 2][j][i % 2 * 2] + bias0, y = sum[i / 2][j][i % 2 * 2 + 1] + bias1;
            if (mode == MATMUL_ACCUMULATE) x += to_float(to[0]), y += to_float(to[1]);
            store_pair(to, x, y);
        }
    }
}

// One block per tile of C. Tiles are numbered column by column within strips that are STRIP tiles high, so that blocks
// that run at the same time read few rows of A and few columns of B.
template <MatmulLayout layout, class Out>
static __global__ void __launch_bounds__(THREADS, RESIDENT)
    matmul_own_kernel(Out *C, const floatX *A, const floatX *B, const floatX *bias, size_t M, size_t N,
                      size_t K, MatmulMode mode) {
    DYNAMIC_SHARED(floatX, shared); // two buffers of (a tile of A, a tile of B)
    const unsigned tiles_m = (unsigned)divide_up(M, TILE_M), tiles_n = (unsigned)divide_up(N, TILE_N);
    const unsigned strip = blockIdx.x / (STRIP * tiles_n), in_strip = blockIdx.x % (STRIP * tiles_n);
    const unsigned height = min((unsigned)STRIP, tiles_m - strip * STRIP);
    const size_t m0 = (size_t)(strip * STRIP + in_strip % height) * TILE_M,
                 n0 = (size_t)(in_strip / height) * TILE_N;
    const unsigned warp = threadIdx.x / WARP, warp_m = warp / 2 * (TILE_M / 2),
                   warp_n = warp % 2 * (TILE_N / 2);

    WarpSums sum = {};
    floatX *tile_a = shared, *tile_b = tile_a + TILE_M * TILE_K;
    floatX *next_a = tile_b + TILE_N * TILE_K, *next_b = next_a + TILE_M * TILE_K;
    copy_tiles<layout>(tile_a, tile_b, A, B, M, N, K, m0, n0, 0);
    for (size_t k0 = 0; k0 < K; k0 += TILE_K) {
        cp_async_wait<0>();
        __syncthreads(); // the tiles of this step are complete, and no thread reads the other buffer any more
        if (k0 + TILE_K < K) copy_tiles<layout>(next_a, next_b, A, B, M, N, K, m0, n0, k0 + TILE_K);
        multiply_tiles<layout>(sum, tile_a, tile_b, warp_m, warp_n);
        floatX *done_a = tile_a, *done_b = tile_b;
        tile_a = next_a, tile_b = next_b;
        next_a = done_a, next_b = done_b;
    }
    store_sums(C, sum, bias, M, N, m0 + warp_m, n0 + warp_n, mode);
}

} // namespace own_matmul

// C (M, N) = or += A B + bias. `bias` (N) may be NULL.
template <MatmulLayout layout, class Out>
static inline void matmul_own(Out *C, const floatX *A, const floatX *B, const floatX *bias, size_t M,
                              size_t N, size_t K, MatmulMode mode, Stream stream) {
    using namespace own_matmul;
    CHECK(M > 0 && N > 0 && K > 0);
    CHECK(N % 8 == 0 && (layout == MATMUL_TN ? M : K) % 8 == 0);
    CHECK(divide_up(M, TILE_M) <= 0x7fffffff / STRIP / divide_up(N, TILE_N));
    unsigned tiles = (unsigned)(divide_up(M, TILE_M) * divide_up(N, TILE_N));
    launch(matmul_own_kernel<layout, Out>, tiles, THREADS, SHARED_BYTES, stream, C, A, B, bias, M, N, K,
           mode);
}

#endif
