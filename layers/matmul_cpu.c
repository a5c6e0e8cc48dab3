#include "matmul_cpu.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common.h"
#include "gelu.cuh"
#include "simd_cpu.h"

// Sizes of blocks; along K in units of 32 bits (one fp32, or a pair of bf16). A block of B (BLOCK_K x BLOCK_N) stays in
// the last-level cache, which all threads share; the tiles of A of a task (TASK_TILES x TILE_ROWS x BLOCK_K) stay in
// the second-level cache.
enum {
    BLOCK_M = 2048,
    BLOCK_N = 3072,
    BLOCK_K = 384,
    TASK_TILES = 6,  // tiles of A in a task
    TASK_PANELS = 2, // panels of B in a task
    PACK_PANELS = 2, // tiles of A or panels of B packed at a time
    PREFETCH_K = 8,  // distance in k of the row that is prefetched while packing
};
#if defined(__AVX512BF16__)
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif

// ---- packing: source -> destination[k][width]; the first `filled` columns are copied, the rest are zero ----

// One panel. Element (i, k) of the source is source[i * stride + k] if k is contiguous, else source[k * stride + i].
typedef struct {
    uint32_t *destination;
    const float *source;
    size_t width, filled;
} Panel;

// Properties that all panels of a call share.
typedef struct {
    size_t stride, K;
    Precision precision;
} Packing;

#ifdef __AVX512F__
static __mmask16 mask16(ptrdiff_t count) {
    return count >= 16 ? (__mmask16)0xffff : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1);
}

// Transposes 16 x 16 elements of 32 bits in registers: pairs, quadruples, then quarters of a register.
static inline __attribute__((always_inline)) void transpose16(__m512i row[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        row[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        row[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        row[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        row[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        row[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        row[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

// Loads 16 units of 32 bits along k from one row: 16 floats, or 32 floats rounded to pairs of bf16.
static inline __m512i load_units(const float *row, size_t unit, size_t K, Precision precision) {
#if HAS_BF16
    if (precision == PRECISION_BF16) {
        ptrdiff_t left = (ptrdiff_t)K - 2 * (ptrdiff_t)unit;
        const float *p = row + 2 * unit;
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(mask16(left - 16), p + 16),
                                            _mm512_maskz_loadu_ps(mask16(left), p));
    }
#endif
    (void)precision;
    return _mm512_maskz_loadu_epi32(mask16((ptrdiff_t)K - (ptrdiff_t)unit), row + unit);
}

static void pack_k_contiguous(const Panel *panel, const Packing *packing) {
    size_t units = packing->precision == PRECISION_BF16 ? divide_up(packing->K, 2) : packing->K;
    for (size_t first = 0; first < panel->width; first += 16) {
        __mmask16 store = mask16((ptrdiff_t)(panel->width - first));
        size_t rows = panel->filled > first ? min_size(16, panel->filled - first) : 0;
        const float *source = panel->source + first * packing->stride;
        for (size_t unit = 0; unit < units; unit += 16) {
            __m512i row[16];
            UNROLL for (int i = 0; i < 16; i++)
                row[i] = (size_t)i < rows ? load_units(source + (size_t)i * packing->stride, unit, packing->K,
                                                       packing->precision)
                                          : _mm512_setzero_si512();
            transpose16(row);
            uint32_t *out = panel->destination + unit * panel->width + first;
            size_t count = min_size(16, units - unit);
            UNROLL for (int i = 0; i < 16; i++) if ((size_t)i < count)
                _mm512_mask_storeu_epi32(out + (size_t)i * panel->width, store, row[i]);
        }
    }
}

// Loads one unit of 16 columns: one row of floats, or two rows interleaved as pairs of bf16.
static inline __m512i load_columns(const float *p, size_t stride, int two_rows, __mmask16 mask,
                                   Precision precision) {
#if HAS_BF16
    if (precision == PRECISION_BF16) {
        __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, p)));
        if (!two_rows) return even;
        __m512i odd = _mm512_cvtepu16_epi32(
            (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, p + stride)));
        return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    }
#endif
    (void)stride, (void)two_rows, (void)precision;
    return _mm512_maskz_loadu_epi32(mask, p);
}

// Packs adjacent panels, one row of the source at a time, so that each row is read in long contiguous pieces.
static void pack_k_strided(const Panel *panels, size_t count, const Packing *packing) {
    const size_t step = packing->precision == PRECISION_BF16 ? 2 : 1;
    for (size_t k = 0, unit = 0; k < packing->K; k += step, unit++)
        for (const Panel *panel = panels; panel < panels + count; panel++)
            for (size_t first = 0; first < panel->width; first += 16) {
                // The stride between rows is too large for the hardware prefetcher.
                __builtin_prefetch(panel->source +
                                   min_size(k + PREFETCH_K, packing->K - 1) * packing->stride + first);
                _mm512_mask_storeu_epi32(panel->destination + unit * panel->width + first,
                                         mask16((ptrdiff_t)(panel->width - first)),
                                         load_columns(panel->source + k * packing->stride + first,
                                                      packing->stride, k + 1 < packing->K,
                                                      mask16((ptrdiff_t)panel->filled - (ptrdiff_t)first),
                                                      packing->precision));
            }
}
#else
static void pack_k_contiguous(const Panel *panel, const Packing *packing) {
    enum { STRETCH = 16 }; // of k: the cache lines of the rows are fully used before the next stretch
    float *out = (float *)panel->destination;
    for (size_t k0 = 0; k0 < packing->K; k0 += STRETCH)
        for (size_t i = 0; i < panel->width; i++)
            for (size_t k = k0; k < min_size(packing->K, k0 + STRETCH); k++)
                out[k * panel->width + i] = i < panel->filled ? panel->source[i * packing->stride + k] : 0.0f;
}

static void pack_k_strided(const Panel *panels, size_t count, const Packing *packing) {
    for (size_t k = 0; k < packing->K; k++)
        for (const Panel *panel = panels; panel < panels + count; panel++) {
            float *out = (float *)panel->destination + k * panel->width;
            memcpy(out, panel->source + k * packing->stride, panel->filled * sizeof(float));
            memset(out + panel->filled, 0, (panel->width - panel->filled) * sizeof(float));
        }
}
#endif

// ---- register tiles: packed A [k][rows] times packed B [k][TILE_COLUMNS] ----------------------------------

typedef void (*TileKernel)(size_t units, const float *a, const float *b, float *c, size_t ldc,
                           int accumulate);

#define DEFINE_FP32(rows)                                                                                    \
    static void tile_fp32_##rows(size_t units, const float *a, const float *b, float *c, size_t ldc,         \
                                 int accumulate) {                                                           \
        multiply_tile(rows, units, a, 1, rows, b, TILE_COLUMNS, c, ldc, accumulate);                         \
    }
EACH_TILE_HEIGHT(DEFINE_FP32)
#define NAME_FP32(rows) tile_fp32_##rows,
static const TileKernel tiles_fp32[] = {NULL, EACH_TILE_HEIGHT(NAME_FP32)};

#if HAS_BF16
static inline __attribute__((always_inline)) void multiply_tile_bf16(const int rows, size_t units,
                                                                     const float *a, const float *b, float *c,
                                                                     size_t ldc, int accumulate) {
    __m512 sum[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (size_t k = 0; k < units; k++, a += rows, b += TILE_COLUMNS) {
        __m512bh b0 = (__m512bh)_mm512_loadu_ps(b), b1 = (__m512bh)_mm512_loadu_ps(b + 16);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)bits_from_float(a[i]));
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], pair, b0);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], pair, b1);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < 2; j++) {
        float *p = c + (size_t)i * ldc + 16 * j;
        _mm512_storeu_ps(p, accumulate ? _mm512_add_ps(_mm512_loadu_ps(p), sum[i][j]) : sum[i][j]);
    }
}
#define DEFINE_BF16(rows)                                                                                    \
    static void tile_bf16_##rows(size_t units, const float *a, const float *b, float *c, size_t ldc,         \
                                 int accumulate) {                                                           \
        multiply_tile_bf16(rows, units, a, b, c, ldc, accumulate);                                           \
    }
EACH_TILE_HEIGHT(DEFINE_BF16)
#define NAME_BF16(rows) tile_bf16_##rows,
static const TileKernel tiles_bf16[] = {NULL, EACH_TILE_HEIGHT(NAME_BF16)};
#endif

static const TileKernel *tile_kernels(Precision precision) {
#if HAS_BF16
    if (precision == PRECISION_BF16) return tiles_bf16;
#endif
    (void)precision;
    return tiles_fp32;
}

// ---- one product ------------------------------------------------------------------------------------------

typedef struct {
    const MatmulCpu *context;
    MatmulLayout layout;
    size_t M, N, K;
    const float *A, *B;
    size_t lda, ldb;
    float *C;
    size_t ldc;
    const MatmulEpilogue *epilogue;
} Product;

// A block of the product: rows m0 .. m0 + m - 1, columns n0 .. n0 + n - 1, sum over k0 .. k0 + k - 1.
typedef struct {
    size_t m0, m, n0, n, k0, k;
    size_t units;   // number of units of 32 bits along K
    size_t tiles;   // number of tiles of A; the m rows are divided evenly among them
    size_t panels;  // number of panels of B
    int accumulate; // 1: adds to C, 0: overwrites C
    int last;       // 1 if the sum over K is complete after this block
} Block;

static size_t tile_start(const Block *block, size_t tile) {
    return block->m * tile / block->tiles;
}

// Packs panels first .. first + count - 1 of A (tiles of rows) or, if of_b, of B (TILE_COLUMNS columns each).
static void pack_panels(const Product *p, const Block *block, int of_b, size_t first, size_t count) {
    const int strided = of_b ? p->layout != MATMUL_NT : p->layout == MATMUL_TN;
    const size_t stride = of_b ? p->ldb : p->lda;
    const float *matrix = (of_b ? p->B : p->A) + block->k0 * (strided ? stride : 1);
    Packing packing = {stride, block->k, p->context->precision};
    Panel panels[PACK_PANELS];
    for (size_t i = 0; i < count; i++) {
        size_t begin = of_b ? (first + i) * TILE_COLUMNS : tile_start(block, first + i);
        size_t filled = of_b ? min_size(TILE_COLUMNS, block->n - begin)
                             : tile_start(block, first + i + 1) - begin;
        size_t index = (of_b ? block->n0 : block->m0) + begin;
        panels[i].destination = (uint32_t *)(of_b ? p->context->packed_b : p->context->packed_a) +
                                begin * block->units;
        panels[i].source = matrix + index * (strided ? 1 : stride);
        panels[i].width = of_b ? TILE_COLUMNS : filled;
        panels[i].filled = filled;
    }
    if (strided) pack_k_strided(panels, count, &packing);
    for (size_t i = 0; i < count && !strided; i++) pack_k_contiguous(&panels[i], &packing);
}

static void apply_epilogue(const Product *p, size_t m0, size_t rows, size_t n0, size_t columns) {
    const MatmulEpilogue *e = p->epilogue;
    for (size_t m = m0; m < m0 + rows; m++) {
        float *restrict c = p->C + m * p->ldc + n0;
        if (e->bias != NULL) {
            const float *restrict bias = e->bias + n0;
            for (size_t n = 0; n < columns; n++) c[n] += bias[n];
        }
        if (e->gelu != NULL) {
            float *restrict gelu = e->gelu + m * p->N + n0;
            for (size_t n = 0; n < columns; n++) gelu[n] = gelu_value(c[n]);
        }
        if (e->gelu_input != NULL) {
            const float *restrict input = e->gelu_input + m * p->N + n0;
            for (size_t n = 0; n < columns; n++) c[n] *= gelu_derivative(input[n]);
        }
    }
}

// Computes one register tile of C. A tile that extends past the columns of the matrix is computed in a scratch tile.
static void compute_tile(const Product *p, const Block *block, const TileKernel *kernels, size_t tile,
                         size_t panel) {
    size_t first = tile_start(block, tile), rows = tile_start(block, tile + 1) - first;
    size_t columns = min_size(TILE_COLUMNS, block->n - panel * TILE_COLUMNS);
    const float *a = p->context->packed_a + first * block->units;
    const float *b = p->context->packed_b + panel * TILE_COLUMNS * block->units;
    float *c = p->C + (block->m0 + first) * p->ldc + block->n0 + panel * TILE_COLUMNS;
    // The tile of C is needed only after the sum; it is fetched into cache meanwhile.
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j += 16) __builtin_prefetch(c + i * p->ldc + j, 1);
    if (columns == TILE_COLUMNS) {
        kernels[rows](block->units, a, b, c, p->ldc, block->accumulate);
        return;
    }
    float scratch[TILE_ROWS * TILE_COLUMNS];
    kernels[rows](block->units, a, b, scratch, TILE_COLUMNS, 0);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            float sum = scratch[i * TILE_COLUMNS + j];
            c[i * p->ldc + j] = block->accumulate ? c[i * p->ldc + j] + sum : sum;
        }
}

static void compute_task(const Product *p, const Block *block, const TileKernel *kernels, size_t task) {
    size_t groups = divide_up(block->tiles, TASK_TILES);
    size_t tile0 = task % groups * TASK_TILES, tile1 = min_size(tile0 + TASK_TILES, block->tiles);
    size_t panel0 = task / groups * TASK_PANELS, panel1 = min_size(panel0 + TASK_PANELS, block->panels);
    for (size_t panel = panel0; panel < panel1; panel++)
        for (size_t tile = tile0; tile < tile1; tile++) compute_tile(p, block, kernels, tile, panel);
    if (block->last && p->epilogue != NULL) {
        size_t row0 = tile_start(block, tile0), column0 = panel0 * TILE_COLUMNS;
        apply_epilogue(p, block->m0 + row0, tile_start(block, tile1) - row0, block->n0 + column0,
                       min_size(panel1 * TILE_COLUMNS, block->n) - column0);
    }
}

// Computes a block of C; packs its block of B only if pack_b. All threads of the team call it, and it returns when the
// block is complete.
static void compute_block(const Product *p, const Block *block, int pack_b) {
    const TileKernel *kernels = tile_kernels(p->context->precision);
    size_t groups_a = divide_up(block->tiles, PACK_PANELS);
    size_t groups_b = pack_b ? divide_up(block->panels, PACK_PANELS) : 0;
#pragma omp for schedule(dynamic)
    for (size_t group = 0; group < groups_a + groups_b; group++) {
        int of_b = group >= groups_a;
        size_t first = (group - (of_b ? groups_a : 0)) * PACK_PANELS;
        pack_panels(p, block, of_b, first,
                    min_size(PACK_PANELS, (of_b ? block->panels : block->tiles) - first));
    }
    size_t tasks = divide_up(block->tiles, TASK_TILES) * divide_up(block->panels, TASK_PANELS);
#pragma omp for schedule(dynamic)
    for (size_t task = 0; task < tasks; task++) compute_task(p, block, kernels, task);
}

// ---- few rows, as in text generation: B is not packed, because it is read only once -----------------------

enum {
    FEW_ROWS = 4, // maximum number of rows
    STRIP = 128,  // columns of C that a task computes
};

static void multiply_few_rows_by_columns(const Product *p, size_t n, size_t columns, MatmulMode mode) {
    for (size_t k0 = 0; k0 < p->K; k0 += BLOCK_K) {
        size_t k = min_size(BLOCK_K, p->K - k0);
        int accumulate = mode == MATMUL_ACCUMULATE || k0 > 0;
        for (size_t m = 0; m < p->M; m++) {
            const float *a = p->A + m * p->lda + k0, *b = p->B + k0 * p->ldb + n;
            float *c = p->C + m * p->ldc + n;
            size_t done = 0;
            for (; done + TILE_COLUMNS <= columns; done += TILE_COLUMNS)
                multiply_tile(1, k, a, p->lda, 1, b + done, p->ldb, c + done, p->ldc, accumulate);
            for (; done < columns; done++) {
                float sum = 0.0f;
                for (size_t i = 0; i < k; i++) sum += a[i] * b[i * p->ldb + done];
                c[done] = accumulate ? c[done] + sum : sum;
            }
        }
    }
}

static void multiply_few_rows_by_dots(const Product *p, size_t n0, size_t columns, MatmulMode mode) {
    for (size_t n = n0; n < n0 + columns; n++)
        for (size_t m = 0; m < p->M; m++) {
            const float *a = p->A + m * p->lda, *b = p->B + n * p->ldb;
            float *c = p->C + m * p->ldc + n, sum;
            SUM_IN_LANES(sum, p->K, a[i] * b[i]);
            *c = mode == MATMUL_ACCUMULATE ? *c + sum : sum;
        }
}

static void multiply_few_rows(const Product *p, MatmulMode mode) {
#pragma omp parallel for schedule(dynamic)
    for (size_t n = 0; n < p->N; n += STRIP) {
        size_t columns = min_size(STRIP, p->N - n);
        (p->layout == MATMUL_NT ? multiply_few_rows_by_dots : multiply_few_rows_by_columns)(p, n, columns,
                                                                                            mode);
        if (p->epilogue != NULL) apply_epilogue(p, 0, p->M, n, columns);
    }
}

// Computes a product with K = 0, whose sums are empty: C = 0, or C unchanged if accumulating, then the epilogue.
static void multiply_empty(const Product *p, MatmulMode mode) {
    for (size_t m = 0; m < p->M && mode == MATMUL_OVERWRITE; m++)
        memset(p->C + m * p->ldc, 0, p->N * sizeof(float));
    if (p->epilogue != NULL) apply_epilogue(p, 0, p->M, 0, p->N);
}

void matmul_cpu(const MatmulCpu *context, MatmulLayout layout, size_t M, size_t N, size_t K, const float *A,
                size_t lda, const float *B, size_t ldb, float *C, size_t ldc, MatmulMode mode,
                const MatmulEpilogue *epilogue) {
    Product product = {context, layout, M, N, K, A, B, lda, ldb, C, ldc, epilogue};
    if (M == 0 || N == 0) return;
    if (K == 0) {
        multiply_empty(&product, mode);
        return;
    }
    if (M <= FEW_ROWS && layout != MATMUL_TN && context->precision == PRECISION_FP32) {
        multiply_few_rows(&product, mode);
        return;
    }
    // K is divided into equal blocks, so that there is no small last block.
    size_t per_unit = context->precision == PRECISION_BF16 ? 2 : 1;
    size_t blocks_k = divide_up(K, BLOCK_K * per_unit), block_k = divide_up(divide_up(K, blocks_k), 16) * 16;
#pragma omp parallel
    for (size_t n0 = 0; n0 < N; n0 += BLOCK_N)
        for (size_t k0 = 0; k0 < K; k0 += block_k)
            for (size_t m0 = 0; m0 < M; m0 += BLOCK_M) {
                Block block = {m0, min_size(BLOCK_M, M - m0),
                               n0, min_size(BLOCK_N, N - n0),
                               k0, min_size(block_k, K - k0),
                               0,  0,
                               0,  0,
                               0};
                block.units = divide_up(block.k, per_unit);
                block.tiles = divide_up(block.m, TILE_ROWS);
                block.panels = divide_up(block.n, TILE_COLUMNS);
                block.accumulate = mode == MATMUL_ACCUMULATE || k0 > 0;
                block.last = k0 + block.k == K;
                compute_block(&product, &block, m0 == 0);
            }
}

// ---- context and peak -------------------------------------------------------------------------------------

int matmul_bf16_available(void) {
    return HAS_BF16;
}

void matmul_cpu_open(MatmulCpu *context, Precision precision) {
    CHECK(precision == PRECISION_FP32 || HAS_BF16);
    context->precision = precision;
    const size_t a = (size_t)BLOCK_M * BLOCK_K * sizeof(float), b = (size_t)BLOCK_N * BLOCK_K * sizeof(float);
    context->packed_a = (float *)allocated(device_alloc(a), a);
    context->packed_b = (float *)allocated(device_alloc(b), b);
}

void matmul_cpu_close(MatmulCpu *context) {
    device_free(context->packed_a);
    device_free(context->packed_b);
    context->packed_a = context->packed_b = NULL;
}

// Every thread measures itself and keeps its best round, so that other programs on the machine have little influence.
double matmul_measure_peak(Precision precision) {
    enum { UNITS = 64, REPEATS = 200, ROUNDS = 100 };
    const TileKernel kernel = tile_kernels(precision)[TILE_ROWS];
    const double flop = 2.0 * (precision == PRECISION_BF16 ? 2 : 1) * UNITS * TILE_ROWS * TILE_COLUMNS *
                        REPEATS;
    double sum = 0;
#pragma omp parallel
    {
        float a[UNITS * TILE_ROWS] = {0}, b[UNITS * TILE_COLUMNS] = {0}, c[TILE_ROWS * TILE_COLUMNS] = {0};
        double best = 0;
        for (int round = 0; round < ROUNDS; round++) {
            double started = omp_get_wtime();
            for (int repeat = 0; repeat < REPEATS; repeat++) kernel(UNITS, a, b, c, TILE_COLUMNS, 1);
            double rate = flop / (omp_get_wtime() - started) / 1e9;
            best = rate > best ? rate : best;
        }
#pragma omp critical
        sum += best;
    }
    return sum;
}
