// Flash attention, forward (Dao, arXiv 2307.08691, algorithm 1): overwrites out and lse of attention.h; no tensor of
// size Tq * Tk is stored.
//
// A block of warps computes one tile of queries of one head. A warp owns 16 * SLABS rows of it, so the softmax of a row
// needs only the four lanes that share the row. Tiles of K and V alternate, K0 V0 K1 V1 ..., in a ring of STAGES
// buffers: while one is multiplied, cp.async copies the next STAGES - 1.
#ifndef ATTENTION_FLASH_FORWARD_CUH
#define ATTENTION_FLASH_FORWARD_CUH

#include "flash_tile.cuh"

namespace flash {

template <int head, int warps, int slabs, int keys, int stages, int resident> struct ForwardTile {
    enum : int {
        HEAD = head, // columns of a tile: the head size, rounded up to an available one
        THREADS = warps * WARP,
        SLABS = slabs,
        QUERIES = 16 * slabs * warps,
        KEYS = keys,
        STAGES = stages,
        RESIDENT = resident, // blocks resident on a multiprocessor
    };
    static_assert(keys % DROPOUT_BLOCK_KEYS == 0, "a tile of keys is whole blocks of dropout");
    static_assert(stages >= 2, "one tile is multiplied while another one is copied");
};

// State of a row of scores: the maximum so far, and this lane's part of the sum of exponentials relative to it.
struct RunningSoftmax {
    float maximum, sum;
};

__device__ __forceinline__ float max_of_quad(float x) {
    x = fmaxf(x, __shfl_xor_sync((unsigned)FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync((unsigned)FULL_WARP, x, 2));
}
__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync((unsigned)FULL_WARP, x, 1);
    return x + __shfl_xor_sync((unsigned)FULL_WARP, x, 2);
}

// Sets the scores of keys that a row does not see to -inf. The tile begins at key `key`, the warp's rows at `query`.
template <int slabs, int blocks>
__device__ __forceinline__ void hide(float (&s)[slabs][blocks][4], const Visibility &visible, int query,
                                     int key) {
#pragma unroll
    for (int i = 0; i < 2 * slabs; i++) {
        const int last = last_key(visible, query + 8 * i + (int)lane_row()) - key - (int)lane_column();
#pragma unroll
        for (int j = 0; j < blocks; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * j + e > last) s[i / 2][j][i % 2 * 2 + e] = -INFINITY;
    }
}

// Updates the running maximum of each row with its new scores. The sums, which are relative to the old maximum, are
// rescaled to the new one (Milakov and Gimelshein, arXiv 1805.02867), but only if any maximum changed, which becomes
// rare after the first tiles.
template <int slabs, int blocks, int columns>
__device__ __forceinline__ void update_maximum(RunningSoftmax (&rows)[slabs][2],
                                               float (&out)[slabs][columns][4],
                                               const float (&s)[slabs][blocks][4], float scale) {
    float factor[slabs][2];
    bool moved = false;
#pragma unroll
    for (int i = 0; i < slabs; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float old = rows[i][h].maximum, maximum = old;
#pragma unroll
            for (int j = 0; j < blocks; j++)
                maximum = fmaxf(maximum, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
            maximum = max_of_quad(maximum);
            moved |= maximum != old;
            factor[i][h] = maximum == old ? 1.0f : exp2_approx((old - maximum) * scale);
            rows[i][h].maximum = maximum;
        }
    if (!__any_sync((unsigned)FULL_WARP, moved)) return;
#pragma unroll
    for (int i = 0; i < slabs; i++) {
        rows[i][0].sum *= factor[i][0];
        rows[i][1].sum *= factor[i][1];
#pragma unroll
        for (int j = 0; j < columns; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[i][j][e] *= factor[i][e / 2];
    }
}

// Replaces scores by exponentials relative to the maximum of their row, which is -inf while the row has seen no key.
template <int slabs, int blocks>
__device__ __forceinline__ void exponentiate(float (&s)[slabs][blocks][4], RunningSoftmax (&rows)[slabs][2],
                                             float scale) {
#pragma unroll
    for (int i = 0; i < slabs; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float offset = rows[i][h].maximum == -INFINITY ? 0.0f : rows[i][h].maximum * scale;
#pragma unroll
            for (int j = 0; j < blocks; j++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    s[i][j][e] = exp2_approx(fmaf(s[i][j][e], scale, -offset));
                    rows[i][h].sum += s[i][j][e];
                }
        }
}

// Sets dropped elements to zero; rows begin at `query`, a multiple of 16, keys at `key`, a multiple of 32.
template <int slabs, int blocks>
__device__ __forceinline__ void drop(float (&p)[slabs][blocks][4], const Dropout &dropout,
                                     uint32_t sequence_head, unsigned query, unsigned key) {
#pragma unroll
    for (int i = 0; i < slabs; i++)
#pragma unroll
        for (int j = 0; j < blocks; j += 4) {
            uint32_t kept = kept_in_block(dropout, query / DROPOUT_BLOCK_QUERIES + i,
                                          key / DROPOUT_BLOCK_KEYS + j / 4, sequence_head);
#pragma unroll
            for (int e = 0; e < 16; e++) { // element e % 4 of block j + e / 4
                int byte = e / 4 % 2 * 2 + e % 2, word = e % 4 / 2 * 2 + e / 8;
                if (!(kept >> (8 * byte + word) & 1)) p[i][j + e / 4][e % 4] = 0.0f;
            }
        }
}

// The work of a block. It is stored in shared memory, because registers are scarce.
struct ForwardBlock {
    int b, head;
    int first, count; // first query and number of queries
    int key_tiles;    // number of tiles of keys that they see
    int HS;
    uint32_t sequence_head; // as dropout counts them
    Visibility visible;
    float dropout_scale;
    size_t kv; // offset of the head's keys in k and v
};

// Determines the work of a block. The last queries see most keys, so the blocks with most work come first.
template <class Tile>
__device__ __forceinline__ ForwardBlock place_block(const Attention &a, int heads_together) {
    const int NH = (int)a.NH, tiles = ((int)a.Tq + Tile::QUERIES - 1) / Tile::QUERIES;
    const TileOfHead at = tile_of_head(blockIdx.x, (int)a.B * NH, tiles, heads_together);
    ForwardBlock x;
    x.b = at.head / NH;
    x.head = at.head % NH;
    x.first = (tiles - 1 - at.tile) * Tile::QUERIES;
    x.count = min((int)Tile::QUERIES, (int)a.Tq - x.first);
    x.visible = visibility(a);
    x.key_tiles = (max(last_key(x.visible, x.first + x.count - 1) + 1, 0) + Tile::KEYS - 1) / Tile::KEYS;
    x.HS = (int)a.HS;
    x.sequence_head = dropout_sequence_head(a, x.b, x.head);
    x.dropout_scale = dropout_scale(&a.dropout);
    x.kv = x.b * a.kv_sequence + x.head / (NH / (int)a.NKV) * a.HS;
    return x;
}

template <class Tile> struct ForwardShared {
    floatX queries[Tile::QUERIES * Tile::HEAD], ring[Tile::STAGES][Tile::KEYS * Tile::HEAD];
    ForwardBlock block;
};

template <class Tile, bool dropout>
static __global__ void __launch_bounds__(Tile::THREADS, Tile::RESIDENT)
    forward_kernel(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v, Attention a,
                   float scale, int heads_together) {
    constexpr int SLABS = Tile::SLABS, KEYS = Tile::KEYS, HEAD = Tile::HEAD, QUERIES = Tile::QUERIES;
    DYNAMIC_SHARED(ForwardShared<Tile>, shared);
    floatX *queries = shared->queries;
    ForwardBlock &block = shared->block;

    if (threadIdx.x == 0) block = place_block<Tile>(a, heads_together);
    __syncthreads(); // the block is visible to all threads
    const int warp_row = (int)threadIdx.x / WARP * 16 * SLABS;

    // Starts the copy of tile `index` of K0 V0 K1 V1 ... into the ring. A group is committed even if no tile is left,
    // so that waiting for a tile is always waiting for all but the STAGES - 2 most recent groups.
    auto fetch = [&](int index) {
        const int key = index / 2 * KEYS;
        if (index < 2 * block.key_tiles)
            copy_rows<KEYS, HEAD, Tile::THREADS>(threadIdx.x, shared->ring[index % Tile::STAGES],
                                                 (index % 2 ? v : k) + block.kv + key * a.kv_token,
                                                 (unsigned)a.kv_token, (int)a.Tk - key, block.HS);
        cp_async_commit();
    };
    // Waits until tile `index` is complete for all threads, and returns it. All threads have finished with the previous
    // tile then, so its buffer is filled with the next one to fetch.
    auto receive = [&](int index) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();
        fetch(index + Tile::STAGES - 1);
        return shared->ring[index % Tile::STAGES];
    };
    copy_rows<QUERIES, HEAD, Tile::THREADS>(
        threadIdx.x, queries, q + block.b * a.q_sequence + block.first * a.q_token + block.head * block.HS,
        (unsigned)a.q_token, block.count, block.HS); // waited for together with K0
    for (int index = 0; index + 1 < Tile::STAGES; index++) fetch(index);

    float sum[SLABS][HEAD / 8][4] = {};
    RunningSoftmax rows[SLABS][2];
#pragma unroll
    for (int i = 0; i < 2 * SLABS; i++) rows[i / 2][i % 2] = {-INFINITY, 0.0f};
    for (int j = 0; j < block.key_tiles; j++) {
        float s[SLABS][KEYS / 8][4] = {};
        const floatX *keys = receive(2 * j);
        // Whether any query of the warp sees any of the keys; rows past the last query see none.
        const int query = block.first + warp_row, end = min(warp_row + 16 * SLABS, block.count) + block.first;
        const bool sees = query < end && j * KEYS <= last_key(block.visible, end - 1);
        if (sees) {
            multiply_rows_by_rows<HEAD>(s, queries, warp_row, keys, 0);
            if (j * KEYS + KEYS - 1 > last_key(block.visible, query)) hide(s, block.visible, query, j * KEYS);
            update_maximum(rows, sum, s, scale);
            exponentiate(s, rows, scale);
            if (dropout) drop(s, a.dropout, block.sequence_head, query, j * KEYS);
        }
        const floatX *values = receive(2 * j + 1);
        if (sees) multiply_registers<HEAD>(sum, s, values, 0, 0);
    }

    // out = sum / (row sum * keep rate), and lse. A row that sees no key has sum 0.
    float factor[SLABS][2];
#pragma unroll
    for (int i = 0; i < 2 * SLABS; i++) {
        const RunningSoftmax &row = rows[i / 2][i % 2];
        const int query = warp_row + 8 * i + (int)lane_row();
        const bool blind = last_key(block.visible, block.first + query) < 0;
        const float total = sum_of_quad(row.sum), LN_2 = 0.693147180559945309f;
        factor[i / 2][i % 2] = blind ? 0.0f : __fdividef(block.dropout_scale, total);
        if (lane_column() == 0 && query < block.count)
            lse[(block.b * a.NH + block.head) * a.Tq + block.first + query] = blind ? INFINITY
                                                                                    : row.maximum * scale *
                                                                                              LN_2 +
                                                                                          logf(total);
    }
    cp_async_wait<0>();
    __syncthreads(); // also if there was no key: all copies to `queries` are complete
    store_rows<HEAD>(out + block.b * a.out_sequence + block.first * a.out_token + block.head * block.HS,
                     a.out_token, queries, sum, factor, warp_row, 0, block.count, block.HS);
}

} // namespace flash

#endif
