// Tiles of flash attention in shared memory, and the three products of them, each in bf16 (tensor cores) and
// in fp32 (FMA). The kernels (flash_forward.cuh, flash_backward.cuh) are the same for both.
//
// Shared memory: a tile is stored row by row, one row per token, in chunks of 16 bytes. The chunks of a row are
// permuted so that the eight rows that one ldmatrix phase reads at the same chunk are in different banks.
//
// Registers: a warp's part of a product is `sum[slabs][columns][4]`: slabs of 16 rows, blocks of 8 columns, and a
// lane's four elements of each 16 x 8, in the layout of mma (layers/ptx.h): element e is in row lane / 4 + 8 * (e /
// 2), column lane % 4 * 2 + e % 2. The fp32 products use the same layout, so everything between products - softmax,
// mask, dropout - is written once.
//
// Every function is executed by whole warps. All products accumulate: sum += A B.
#ifndef ATTENTION_FLASH_TILE_CUH
#define ATTENTION_FLASH_TILE_CUH

#include "attention.h"
#include "layers/kernel.cuh"
#include "layers/ptx.h"

namespace flash {

enum { CHUNK = 16 / sizeof(floatX) }; // elements

// Returns the number that is XORed with the index of a chunk in row `row`, in a tile with rows of `columns` elements.
template <int columns> __device__ __forceinline__ unsigned permutation(unsigned row) {
    constexpr unsigned chunks = columns / CHUNK;
    constexpr unsigned permuted = chunks % 8 == 0   ? 8
                                  : chunks % 4 == 0 ? 4
                                                    : 2; // adjacent chunks are swapped
    static_assert(chunks % permuted == 0, "a row is an even number of chunks");
    return row / (8 / permuted) % permuted;
}
// Returns the index in a tile of the first element of a chunk.
template <int columns> __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
    return row * columns + (chunk ^ permutation<columns>(row)) * CHUNK;
}
template <int columns> __device__ __forceinline__ unsigned place_of_element(unsigned row, unsigned column) {
    return place<columns>(row, column / CHUNK) + column % CHUNK;
}

// Return the row and the column of the lane's element 0 in a 16 x 8 block.
__device__ __forceinline__ unsigned lane_row() {
    return threadIdx.x % WARP / 4;
}
__device__ __forceinline__ unsigned lane_column() {
    return threadIdx.x % 4 * 2;
}

// Starts the copy of `rows` rows of HS elements, `stride` elements apart in global memory, into a tile. Rows from
// `valid` on (at least one is valid) and columns from HS on become zero: other values might be NaN, and 0 * NaN is NaN.
// `thread` is threadIdx.x, or reread_thread_index() where registers are scarce.
template <int rows, int columns, int threads>
__device__ __forceinline__ void copy_rows(unsigned thread, floatX *tile, const floatX *from, unsigned stride,
                                          unsigned valid, unsigned HS) {
    constexpr unsigned chunks = columns / CHUNK, lanes = chunks <= 4    ? 4
                                                         : chunks <= 8  ? 8
                                                         : chunks <= 16 ? 16
                                                         : chunks <= 32 ? 32
                                                                        : 64;
    constexpr unsigned rows_at_once = threads / lanes; // the column of a thread is the same in all rows
    static_assert(rows % rows_at_once == 0, "every thread copies the same number of chunks");
    const unsigned chunk = thread % lanes;
    unsigned row = thread / lanes;
    if (chunk >= chunks) return;
    unsigned at = row * stride + chunk * CHUNK;
#pragma unroll
    for (unsigned i = 0; i < rows / rows_at_once; i++) {
        bool inside = row < valid && chunk * CHUNK < HS;
        cp_async_16(tile + place<columns>(row, chunk), from + (inside ? at : 0), inside);
        row += rows_at_once, at += rows_at_once * stride;
    }
}

// Writes a warp's sums times `factor` to rows `stride` elements apart in global memory, for rows below `valid` and
// columns below HS. They go through the tile, in which the warp may overwrite its rows from row0 on, so that global
// memory is written in chunks.
template <int tile_columns, int slabs, int blocks>
__device__ __forceinline__ void
store_rows(floatX *to, size_t stride, floatX *tile, const float (&sum)[slabs][blocks][4],
           const float (&factor)[slabs][2], unsigned row0, unsigned column0, unsigned valid, unsigned HS) {
#pragma unroll
    for (unsigned i = 0; i < slabs; i++)
#pragma unroll
        for (unsigned j = 0; j < blocks; j++)
#pragma unroll
            for (unsigned h = 0; h < 2; h++)
                store_pair(tile + place_of_element<tile_columns>(row0 + 16 * i + 8 * h + lane_row(),
                                                                 column0 + 8 * j + lane_column()),
                           sum[i][j][2 * h] * factor[i][h], sum[i][j][2 * h + 1] * factor[i][h]);
    __syncwarp(); // the warp's rows are complete
    constexpr unsigned chunks = blocks * 8 / CHUNK;
    for (unsigned at = threadIdx.x % WARP; at < slabs * 16 * chunks; at += WARP) {
        unsigned row = row0 + at / chunks, chunk = column0 / CHUNK + at % chunks;
        if (row < valid && chunk * CHUNK < HS)
            *reinterpret_cast<uint4 *>(to + row * stride + chunk * CHUNK) = *reinterpret_cast<const uint4 *>(
                tile + place<tile_columns>(row, chunk));
    }
}

// ---- products ---------------------------------------------------------------------------------------------

#ifndef PRECISION_IS_FP32

// load_16x16 loads the four 8 x 8 matrices of the 16 x 16 elements at (row, column) of a tile, in the order that mma
// needs: DOWN is (0, 0), (8, 0), (0, 8), (8, 8), and ACROSS is (0, 0), (0, 8), (8, 0), (8, 8).
enum Order { DOWN, ACROSS };
template <int columns, Order order>
__device__ __forceinline__ const floatX *row_to_load(const floatX *tile, unsigned row, unsigned column) {
    const unsigned lane = threadIdx.x % WARP; // supplies the address of row lane % 8 of matrix lane / 8
    return order == DOWN ? tile + place<columns>(row + lane % 16, column / 8 + lane / 16)
                         : tile + place<columns>(row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2);
}
template <int columns, Order order>
__device__ __forceinline__ void load_16x16(uint32_t (&r)[4], const floatX *tile, unsigned row,
                                           unsigned column) {
    ldmatrix_x4(r, row_to_load<columns, order>(tile, row, column));
}
// The same, but each 8 x 8 matrix is transposed.
template <int columns, Order order>
__device__ __forceinline__ void load_16x16_trans(uint32_t (&r)[4], const floatX *tile, unsigned row,
                                                 unsigned column) {
    ldmatrix_x4_trans(r, row_to_load<columns, order>(tile, row, column));
}

// sum[.][j] and sum[.][j + 1] += A B.
template <int slabs, int blocks>
__device__ __forceinline__ void multiply_fragments(float (&sum)[slabs][blocks][4], unsigned j,
                                                   const uint32_t (&a)[slabs][4], const uint32_t (&b)[4]) {
    static_assert(blocks % 2 == 0, "fragments of B are loaded for two blocks");
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
    for (unsigned i = 0; i < slabs; i++) {
        mma_m16n8k16_bf16(sum[i][j], a[i], first, sum[i][j]);
        mma_m16n8k16_bf16(sum[i][j + 1], a[i], second, sum[i][j + 1]);
    }
}

// sum += (rows from a_row on of tile a) (rows from b_row on of tile b)^T, over `depth` columns.
template <int depth, int slabs, int blocks>
__device__ __forceinline__ void multiply_rows_by_rows(float (&sum)[slabs][blocks][4], const floatX *a,
                                                      unsigned a_row, const floatX *b, unsigned b_row) {
    static_assert(depth % 16 == 0, "k goes in steps of 16");
#pragma unroll
    for (unsigned k = 0; k < depth; k += 16) {
        uint32_t fragment_a[slabs][4];
#pragma unroll
        for (unsigned i = 0; i < slabs; i++) load_16x16<depth, DOWN>(fragment_a[i], a, a_row + 16 * i, k);
#pragma unroll
        for (unsigned j = 0; j < blocks; j += 2) {
            uint32_t fragment_b[4];
            load_16x16<depth, ACROSS>(fragment_b, b, b_row + 8 * j, k);
            multiply_fragments(sum, j, fragment_a, fragment_b);
        }
    }
}

// sum += a b, where a (16 * slabs, 8 * k_blocks) is a product that this warp holds in registers, rounded to bf16, and b
// are the rows from b_row and columns from b_column on of tile b. The layout of a product is that of operand A of mma.
template <int b_columns, int slabs, int k_blocks, int blocks>
__device__ __forceinline__ void multiply_registers(float (&sum)[slabs][blocks][4],
                                                   const float (&a)[slabs][k_blocks][4], const floatX *b,
                                                   unsigned b_row, unsigned b_column) {
    static_assert(k_blocks % 2 == 0, "k goes in steps of 16");
#pragma unroll
    for (unsigned k = 0; k < k_blocks; k += 2) {
        uint32_t fragment_a[slabs][4];
#pragma unroll
        for (unsigned i = 0; i < slabs; i++)
#pragma unroll
            for (unsigned r = 0; r < 4; r++)
                fragment_a[i][r] = pack_bf16(a[i][k + r / 2][r % 2 * 2], a[i][k + r / 2][r % 2 * 2 + 1]);
#pragma unroll
        for (unsigned j = 0; j < blocks; j += 2) {
            uint32_t fragment_b[4];
            load_16x16_trans<b_columns, DOWN>(fragment_b, b, b_row + 8 * k, b_column + 8 * j);
            multiply_fragments(sum, j, fragment_a, fragment_b);
        }
    }
}

// sum += (columns from a_column on of tile a)^T (columns from b_column on of tile b), over the first k_rows rows.
template <int a_columns, int b_columns, int slabs, int blocks>
__device__ __forceinline__ void multiply_columns(float (&sum)[slabs][blocks][4], const floatX *a,
                                                 unsigned a_column, const floatX *b, unsigned b_column,
                                                 unsigned k_rows) {
#pragma unroll 2
    for (unsigned k = 0; k < k_rows; k += 16) {
        uint32_t fragment_a[slabs][4];
#pragma unroll
        for (unsigned i = 0; i < slabs; i++)
            load_16x16_trans<a_columns, ACROSS>(fragment_a[i], a, k, a_column + 16 * i);
#pragma unroll
        for (unsigned j = 0; j < blocks; j += 2) {
            uint32_t fragment_b[4];
            load_16x16_trans<b_columns, DOWN>(fragment_b, b, k, b_column + 8 * j);
            multiply_fragments(sum, j, fragment_a, fragment_b);
        }
    }
}

#else

// sum[.][j] += the outer product of a column of A and a row of B, of which the lane has its rows and columns.
template <int slabs, int blocks>
__device__ __forceinline__ void add_outer(float (&sum)[slabs][blocks][4], unsigned j,
                                          const float (&a)[slabs][2], float2 b) {
#pragma unroll
    for (unsigned i = 0; i < slabs; i++)
#pragma unroll
        for (unsigned e = 0; e < 4; e++) sum[i][j][e] = fmaf(a[i][e / 2], e % 2 ? b.y : b.x, sum[i][j][e]);
}
// The same for all j, with row `row` of a tile. If the row is a constant, the addresses of all blocks are one
// address that depends on the lane, plus constants; otherwise the compiler would keep all of them in registers.
template <int columns, int slabs, int blocks>
__device__ __forceinline__ void add_outer_row(float (&sum)[slabs][blocks][4], const float (&a)[slabs][2],
                                              const float *tile, unsigned row, unsigned column) {
    const unsigned p = permutation<columns>(row);
    const float *at = tile + row * columns + (lane_column() / CHUNK ^ p % 2) * CHUNK + lane_column() % CHUNK;
#pragma unroll
    for (unsigned j = 0; j < blocks; j++)
        add_outer(sum, j, a,
                  *reinterpret_cast<const float2 *>(at + ((column / CHUNK + 2 * j) ^ p / 2 * 2) * CHUNK));
}

template <int depth, int slabs, int blocks>
__device__ __forceinline__ void multiply_rows_by_rows(float (&sum)[slabs][blocks][4], const float *a,
                                                      unsigned a_row, const float *b, unsigned b_row) {
#pragma unroll 4
    for (unsigned k = 0; k < depth; k++) {
        float column_a[slabs][2];
#pragma unroll
        for (unsigned i = 0; i < 2 * slabs; i++)
            column_a[i / 2][i % 2] = a[place_of_element<depth>(a_row + 8 * i + lane_row(), k)];
#pragma unroll
        for (unsigned j = 0; j < blocks; j++) {
            unsigned row = b_row + 8 * j + lane_column();
            add_outer(
                sum, j, column_a,
                make_float2(b[place_of_element<depth>(row, k)], b[place_of_element<depth>(row + 1, k)]));
        }
    }
}

template <int b_columns, int slabs, int k_blocks, int blocks>
__device__ __forceinline__ void multiply_registers(float (&sum)[slabs][blocks][4],
                                                   const float (&a)[slabs][k_blocks][4], const float *b,
                                                   unsigned b_row, unsigned b_column) {
#pragma unroll
    for (unsigned k = 0; k < k_blocks; k++)
#pragma unroll
        for (unsigned e = 0; e < 8; e++) { // column of the block, held by lane e / 2 of the four of a row
            float column_a[slabs][2];
#pragma unroll
            for (unsigned i = 0; i < 2 * slabs; i++)
                column_a[i / 2][i % 2] = __shfl_sync((unsigned)FULL_WARP, a[i / 2][k][i % 2 * 2 + e % 2],
                                                     (int)(e / 2), 4);
            add_outer_row<b_columns>(sum, column_a, b, b_row + 8 * k + e, b_column);
        }
}

template <int a_columns, int b_columns, int slabs, int blocks>
__device__ __forceinline__ void multiply_columns(float (&sum)[slabs][blocks][4], const float *a,
                                                 unsigned a_column, const float *b, unsigned b_column,
                                                 unsigned k_rows) {
#pragma unroll 4
    for (unsigned k = 0; k < k_rows; k++) {
        float column_a[slabs][2];
#pragma unroll
        for (unsigned i = 0; i < 2 * slabs; i++)
            column_a[i / 2][i % 2] = a[place_of_element<a_columns>(k, a_column + 8 * i + lane_row())];
        add_outer_row<b_columns>(sum, column_a, b, k, b_column);
    }
}

#endif

// ---- order of blocks --------------------------------------------------------------------------------------

// Blocks process the heads (of all sequences) in groups whose tensors fit into the L2 cache together. Within a group,
// the first tiles of all heads come first, then the second tiles, and so on.
struct TileOfHead {
    int tile, head;
};
__device__ __forceinline__ TileOfHead tile_of_head(unsigned index, int heads, int tiles, int group) {
    const int first = (int)index / (group * tiles) * group, in_group = (int)index % (group * tiles);
    const int here = min(group, heads - first);
    return {in_group / here, first + in_group % here};
}

// ---- visibility -------------------------------------------------------------------------------------------

// attention_visible_keys with 32-bit numbers: query i sees the keys up to min(i + diagonal, last).
struct Visibility {
    int diagonal, last;
};
__device__ __forceinline__ Visibility visibility(const Attention &a) {
    return {a.mask == MASK_CAUSAL ? (int)a.Tk - (int)a.Tq : (int)a.Tk, (int)a.Tk - 1};
}
// Returns the last key that a query sees; negative if it sees none.
__device__ __forceinline__ int last_key(const Visibility &v, int query) {
    return min(query + v.diagonal, v.last);
}

// ---- dropout ----------------------------------------------------------------------------------------------

// Sets the highest bit of each of the four bytes that are <= the corresponding byte of `limit`; the four bytes of
// `limit` are equal.
__device__ __forceinline__ uint32_t bytes_at_most(uint32_t x, uint32_t limit) {
    const uint32_t high = 0x80808080u;
    uint32_t low_bits = (limit | high) - (x & ~high); // highest bit: the lower seven bits are <=
    return ((~x & limit) | (~(x ^ limit) & low_bits)) & high;
}

// Returns this lane's dropout decisions for a block of 16 queries x 32 keys (attention.h): bit 8 * b + w is 1 if the
// element of byte b of word w of its Philox output is kept.
__device__ __forceinline__ uint32_t kept_in_block(const Dropout &dropout, uint32_t row, uint32_t column,
                                                  uint32_t sequence_head) {
    Philox random = philox(dropout.key, row, column * 32 + threadIdx.x % WARP, sequence_head, dropout.step);
    const uint32_t limit = (dropout.threshold - 1) * 0x01010101u;
    return bytes_at_most(random.v[0], limit) >> 7 | bytes_at_most(random.v[1], limit) >> 6 |
           bytes_at_most(random.v[2], limit) >> 5 | bytes_at_most(random.v[3], limit) >> 4;
}
__device__ __forceinline__ uint32_t dropout_sequence_head(const Attention &a, size_t b, size_t head) {
    return (a.dropout.first_sequence + (uint32_t)b) * (uint32_t)a.NH + (uint32_t)head;
}

} // namespace flash

#endif
