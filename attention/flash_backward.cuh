// Flash attention, backward (Dao, arXiv 2307.08691, algorithm 2): overwrites dq, dk and dv of attention.h. The
// probabilities are recomputed, tile by tile.
//
// A block of warps owns one tile of keys of one key-value head and iterates over the queries that see it, of all query
// heads of its group. A warp owns 16 * SLABS keys and computes scores with keys as rows: transposed in this way, the
// results of the tensor cores are where the next product needs its operand, so P and dS go from registers directly into
// the sums of dV and dK, which also stay in registers. Only dS goes through shared memory, for dQ:
//
//     S^T (keys, queries) = K Q^T      dA^T = V dO^T      dV += A^T dO      dK += dS^T Q      dQ = dS K
//
// dQ of a tile of queries is a sum over the blocks of all its tiles of keys. It is added up in global memory in fp32,
// laid out so that each thread reads back the elements it wrote, and in the order of the keys: a block waits until the
// previous one has added its part. Therefore results repeat bit for bit. Blocks take their tiles by a ticket, so a
// block that another one waits for is already running. The last block writes dq. With `atomics`, no block waits,
// results are not reproducible, and finish_dq_kernel writes dq.
//
// For the largest heads, the columns of dK and dV do not fit into the registers of one warp. Then COLUMN_GROUPS > 1
// warps share the same keys, each with a part of the columns; all of them compute the scores.
#ifndef ATTENTION_FLASH_BACKWARD_CUH
#define ATTENTION_FLASH_BACKWARD_CUH

#include "flash_tile.cuh"

namespace flash {

template <int head, int warps, int slabs, int column_groups, int queries, int resident> struct BackwardTile {
    enum : int {
        HEAD = head,
        THREADS = warps * WARP,
        SLABS = slabs,
        COLUMN_GROUPS = column_groups,
        COLUMNS = head / column_groups, // columns of dK and dV that a warp computes
        KEYS = 16 * slabs * warps / column_groups,
        QUERIES = queries,
        RESIDENT = resident,
        // Each warp computes a part of dQ (QUERIES, HEAD).
        DQ_SLABS = queries / 16 < 2 ? 1 : 2,         // slabs of rows of a warp
        DQ_WARPS_DOWN = queries / 16 / DQ_SLABS,     // number of warps along the rows
        DQ_COLUMNS = head / (warps / DQ_WARPS_DOWN), // columns of a warp
    };
    static_assert(queries % 16 == 0 && head % 16 == 0 && DQ_COLUMNS % 8 == 0, "whole slabs and blocks");
    static_assert(slabs <= 2, "the keys of a warp are in one block of dropout");
};

// What backward needs of a query in addition to its rows of Q and dO. x: lse in units of ln 2, +inf in padding;
// y: D times the keep rate of dropout. dS has that factor too in the code below, until dQ and dK are written.
typedef float2 QueryStatistics;

// Computes the statistics, D from rowsum(dO * O), in rows of `padded` queries per head, and zeroes `counters`. Eight
// lanes per query.
enum { PREPARE_THREADS = 256, LANES_PER_QUERY = 8 };
static __global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_kernel(QueryStatistics *statistics, unsigned *counters, size_t num_counters, const floatX *dout,
                   const floatX *out, const float *lse, Attention a, size_t padded) {
    const float LOG2_E = 1.44269504088896340736f;
    const size_t thread = (size_t)blockIdx.x * PREPARE_THREADS + threadIdx.x;
    for (size_t i = thread; i < num_counters; i += (size_t)gridDim.x * PREPARE_THREADS) counters[i] = 0;
    const size_t index = thread / LANES_PER_QUERY, lane = thread % LANES_PER_QUERY;
    const size_t head = index % a.NH, query = index / a.NH % padded, b = index / (a.NH * padded);
    if (b >= a.B) return; // the same for all lanes of a query
    const size_t at = b * a.out_sequence + query * a.out_token + head * a.HS;
    float sum = 0;
    if (query < a.Tq)
        for (size_t c = lane * 8; c < a.HS; c += LANES_PER_QUERY * 8) {
            Float8 x = load8(dout + at + c), y = load8(out + at + c);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += x.v[i] * y.v[i];
        }
    const unsigned lanes = 0xffu << threadIdx.x % WARP / LANES_PER_QUERY * LANES_PER_QUERY;
#pragma unroll
    for (int distance = LANES_PER_QUERY / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(lanes, sum, distance);
    if (lane == 0)
        statistics[(b * a.NH + head) * padded + query] = make_float2(
            query < a.Tq ? lse[(b * a.NH + head) * a.Tq + query] * LOG2_E : INFINITY,
            sum / dropout_scale(&a.dropout));
}

// Dropout decisions for scores with keys as rows. The elements of a lane then belong to the random bytes of two other
// lanes (attention.h): those of even queries to lane `even`, those of odd queries to lane `even` + 4. Bit
// 16 * o + 2 * h + w is for the element at 16 * w + 8 * o keys and 8 * h queries from the lane's first element.
struct KeptTransposed {
    uint32_t even, odd;
};
__device__ __forceinline__ KeptTransposed transpose_kept(uint32_t kept) {
    const unsigned lane = threadIdx.x % WARP, even = lane % 4 * 8 + lane / 8, parity = lane / 4 % 2;
    return {__shfl_sync((unsigned)FULL_WARP, kept, (int)even) >> 8 * parity,
            __shfl_sync((unsigned)FULL_WARP, kept, (int)even + 4) >> 8 * parity};
}

// The position of a warp's scores.
struct ScorePosition {
    int key, query;         // the first key and the first query
    uint32_t sequence_head; // as dropout counts them
    Visibility visible;
};

// Computes from S^T in `s` and dA^T in `da`: s = A^T without its factor 1 / keep rate, da = dS^T.
template <bool dropout, int slabs, int blocks>
__device__ __forceinline__ void score_gradients(float (&s)[slabs][blocks][4], float (&da)[slabs][blocks][4],
                                                const QueryStatistics *statistics, const ScorePosition &at,
                                                const Dropout &d, float scale) {
    KeptTransposed kept = {~0u, ~0u};
#pragma unroll
    for (int j = 0; j < blocks; j++) {
        if (dropout && j % 2 == 0) {
            kept = transpose_kept(kept_in_block(d, (uint32_t)at.query / DROPOUT_BLOCK_QUERIES + j / 2,
                                                (uint32_t)at.key / DROPOUT_BLOCK_KEYS, at.sequence_head));
            const unsigned second = (unsigned)at.key / 16 % 2; // 1 if the keys begin in the middle of a block
            kept.even >>= second, kept.odd >>= second;
        }
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const int column = 8 * j + (int)lane_column() + odd;
            const QueryStatistics of_query = statistics[column];
            const int last = last_key(at.visible, at.query + column) - at.key - (int)lane_row();
            const uint32_t bits = odd ? kept.odd : kept.even;
#pragma unroll
            for (int i = 0; i < slabs; i++)
#pragma unroll
                for (int e = odd; e < 4; e += 2) {
                    float p = exp2_approx(fmaf(s[i][j][e], scale, -of_query.x));
                    if (16 * i + 8 * (e / 2) > last) p = 0.0f; // even if p is infinite
                    const bool keep = !dropout || (bits >> (16 * (e / 2) + 2 * (j % 2) + i) & 1);
                    s[i][j][e] = keep ? p : 0.0f;
                    da[i][j][e] = p * ((keep ? da[i][j][e] : 0.0f) - of_query.y);
                }
        }
    }
}

// Writes a warp's dS^T to the tile (KEYS, QUERIES), from row row0 and column column0 on.
template <int columns, int slabs, int blocks>
__device__ __forceinline__ void store_scores(floatX *tile, const float (&ds)[slabs][blocks][4], unsigned row0,
                                             unsigned column0) {
#pragma unroll
    for (unsigned i = 0; i < 2 * slabs; i++)
#pragma unroll
        for (unsigned j = 0; j < blocks; j++)
            store_pair(
                tile + place_of_element<columns>(row0 + 8 * i + lane_row(), column0 + 8 * j + lane_column()),
                ds[i / 2][j][i % 2 * 2], ds[i / 2][j][i % 2 * 2 + 1]);
}

// A warp's part of dQ, in slabs of rows and blocks of columns; dq_row and dq_column return its position in the tile.
template <class Tile> struct WarpDq { float sum[Tile::DQ_SLABS][Tile::DQ_COLUMNS / 8][4]; };
template <class Tile> __device__ __forceinline__ unsigned dq_row() {
    return threadIdx.x / WARP % Tile::DQ_WARPS_DOWN * (16 * Tile::DQ_SLABS);
}
template <class Tile> __device__ __forceinline__ unsigned dq_column() {
    return threadIdx.x / WARP / Tile::DQ_WARPS_DOWN * Tile::DQ_COLUMNS;
}

// Returns the place of four of the thread's partial sums in global memory; those of the tile begin at `at`.
template <class Tile> __device__ __forceinline__ float4 *partial_dq(float *at, int i, int j) {
    return reinterpret_cast<float4 *>(at) + (i * (Tile::DQ_COLUMNS / 8) + j) * Tile::THREADS + threadIdx.x;
}
template <class Tile> __device__ __forceinline__ void load_partial_dq(WarpDq<Tile> &dq, float *at) {
#pragma unroll
    for (int i = 0; i < Tile::DQ_SLABS; i++)
#pragma unroll
        for (int j = 0; j < Tile::DQ_COLUMNS / 8; j++) {
            const float4 four = __ldcg(partial_dq<Tile>(at, i, j)); // bypasses L1: another block wrote it
            dq.sum[i][j][0] = four.x, dq.sum[i][j][1] = four.y, dq.sum[i][j][2] = four.z,
            dq.sum[i][j][3] = four.w;
        }
}
template <class Tile> __device__ __forceinline__ void store_partial_dq(float *at, const WarpDq<Tile> &dq) {
#pragma unroll
    for (int i = 0; i < Tile::DQ_SLABS; i++)
#pragma unroll
        for (int j = 0; j < Tile::DQ_COLUMNS / 8; j++)
            __stcg(partial_dq<Tile>(at, i, j),
                   make_float4(dq.sum[i][j][0], dq.sum[i][j][1], dq.sum[i][j][2], dq.sum[i][j][3]));
}
// Returns the place of a partial sum for atomics: the lanes of a warp are adjacent, which is fastest.
template <class Tile> __device__ __forceinline__ float *atomic_dq(float *at, int i, int j, int e) {
    return at + ((i * (Tile::DQ_COLUMNS / 8) + j) * 4 + e) * Tile::THREADS + threadIdx.x;
}
template <class Tile> __device__ __forceinline__ void add_partial_dq(float *at, const WarpDq<Tile> &dq) {
#pragma unroll
    for (int i = 0; i < Tile::DQ_SLABS; i++)
#pragma unroll
        for (int j = 0; j < Tile::DQ_COLUMNS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) atomicAdd(atomic_dq<Tile>(at, i, j, e), dq.sum[i][j][e]);
}

// Writes dq = x * scale for the tile that begins at query `first`; dq points to its head and sequence.
template <class Tile>
__device__ __forceinline__ void store_dq(floatX *dq, const WarpDq<Tile> &x, float scale, int first,
                                         const Attention &a) {
#pragma unroll
    for (int i = 0; i < 2 * Tile::DQ_SLABS; i++) {
        const int query = first + (int)(dq_row<Tile>() + 8 * i + lane_row());
        if (query >= (int)a.Tq) continue;
#pragma unroll
        for (int j = 0; j < Tile::DQ_COLUMNS / 8; j++) {
            const unsigned column = dq_column<Tile>() + 8 * j + lane_column();
            if (column < a.HS)
                store_pair(dq + query * a.q_token + column, x.sum[i / 2][j][i % 2 * 2] * scale,
                           x.sum[i / 2][j][i % 2 * 2 + 1] * scale);
        }
    }
}

// Data in global memory that the kernels below share.
struct BackwardScratch {
    QueryStatistics *statistics; // (B, NH, padded)
    float *dq;                   // (B, NH, padded, HEAD): partial sums
    unsigned *ticket;            // number of blocks that have started
    unsigned *parts;             // (B, NH, padded / QUERIES): number of parts added to dq of a tile so far
    size_t padded;               // Tq, rounded up to whole tiles
};

// The work of a block. It is stored in shared memory, because registers are scarce.
struct BackwardBlock {
    int tile, first_key, valid_keys; // tile of keys, its first key and its number of keys
    int b, first_head;               // sequence, first head of the group
    int skipped, tiles;              // numbers of tiles of queries that see none of the keys, and of the rest
    int steps;                       // heads of the group * tiles
    int HS;
    Visibility visible;
    float dq_scale; // factor of the sums of dQ and dK
    size_t kv;      // offset of the keys in k and v
};

// Determines the work of a block. The first keys are seen by most queries, so the blocks with most work come first. The
// block of the first tile of keys processes all tiles of queries, so that every dq is written.
template <class Tile>
__device__ __forceinline__ BackwardBlock place_block(unsigned ticket, const Attention &a,
                                                     int heads_together) {
    const int NKV = (int)a.NKV, group = (int)a.NH / NKV, tiles = ((int)a.Tk + Tile::KEYS - 1) / Tile::KEYS;
    const TileOfHead at = tile_of_head(ticket, (int)a.B * NKV, tiles, heads_together);
    const int kv_head = at.head % NKV;
    BackwardBlock x;
    x.visible = visibility(a);
    x.tile = at.tile;
    x.b = at.head / NKV;
    x.first_head = kv_head * group;
    x.first_key = x.tile * Tile::KEYS;
    x.valid_keys = min((int)Tile::KEYS, (int)a.Tk - x.first_key);
    x.skipped = x.tile == 0 ? 0 : max(x.first_key - x.visible.diagonal, 0) / Tile::QUERIES;
    x.tiles = ((int)a.Tq + Tile::QUERIES - 1) / Tile::QUERIES - x.skipped;
    x.steps = group * x.tiles;
    x.HS = (int)a.HS;
    x.dq_scale = a.scale * dropout_scale(&a.dropout);
    x.kv = x.b * a.kv_sequence + x.first_key * a.kv_token + kv_head * a.HS;
    return x;
}

template <class Tile> struct BackwardShared {
    floatX keys[Tile::KEYS * Tile::HEAD], values[Tile::KEYS * Tile::HEAD];
    struct {
        floatX queries[Tile::QUERIES * Tile::HEAD], douts[Tile::QUERIES * Tile::HEAD];
    } stage[2];                                // for this step and the next
    QueryStatistics statistics[Tile::QUERIES]; // for this step; once dS is complete, for the next
    floatX ds[Tile::KEYS * Tile::QUERIES];     // transposed: (KEYS, QUERIES)
    BackwardBlock block;
};

template <class Tile, bool dropout>
static __global__ void __launch_bounds__(Tile::THREADS, Tile::RESIDENT)
    backward_kernel(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q, const floatX *k,
                    const floatX *v, BackwardScratch scratch, Attention a, float scale, int heads_together) {
    constexpr int SLABS = Tile::SLABS, HEAD = Tile::HEAD, KEYS = Tile::KEYS, QUERIES = Tile::QUERIES;
    // Number of queries whose scores a warp holds at a time; limited by registers.
    constexpr int SCORES = QUERIES > 32 && (SLABS == 2 || dropout) ? 32 : QUERIES;
    DYNAMIC_SHARED(BackwardShared<Tile>, shared);
    floatX *keys = shared->keys, *values = shared->values, *ds_tile = shared->ds;
    BackwardBlock &block = shared->block;

    if (threadIdx.x == 0) block = place_block<Tile>(atomicAdd(scratch.ticket, 1u), a, heads_together);
    __syncthreads(); // the ticket is drawn, and `block` is visible to all threads
    const int Tq = (int)a.Tq, warp = (int)threadIdx.x / WARP;
    const int warp_key = warp / Tile::COLUMN_GROUPS * 16 * SLABS, column_group = warp % Tile::COLUMN_GROUPS;

    // A step processes one tile of queries of one head; heads of the group come one after the other. The comparison
    // avoids a division, which takes as long as 20 other instructions, in the usual case of one head per group.
    auto head_in_group = [&](int step) { return block.steps == block.tiles ? 0 : step / block.tiles; };
    auto head_of = [&](int step) { return block.first_head + head_in_group(step); };
    auto query_of = [&](int step) {
        return (block.skipped + step - head_in_group(step) * block.tiles) * QUERIES;
    };
    auto row_of = [&](int step) {
        return ((size_t)block.b * a.NH + head_of(step)) * scratch.padded + query_of(step);
    };
    // The last key that any query of the step sees, and the number of keys of the tile that any of them sees.
    auto last_seen = [&](int step) { return last_key(block.visible, min(query_of(step) + QUERIES, Tq) - 1); };
    auto num_seen = [&](int step) { return max(min(last_seen(step) + 1 - block.first_key, KEYS), 0); };
    auto fetch = [&](int step) {
        if (step < block.steps) {
            const int head = head_of(step), query = query_of(step);
            auto &to = shared->stage[step % 2];
            copy_rows<QUERIES, HEAD, Tile::THREADS>(reread_thread_index(), to.queries,
                                                    q + block.b * a.q_sequence + query * a.q_token +
                                                        head * block.HS,
                                                    (unsigned)a.q_token, Tq - query, block.HS);
            copy_rows<QUERIES, HEAD, Tile::THREADS>(reread_thread_index(), to.douts,
                                                    dout + block.b * a.out_sequence + query * a.out_token +
                                                        head * block.HS,
                                                    (unsigned)a.out_token, Tq - query, block.HS);
        }
        cp_async_commit();
    };
    auto fetch_statistics = [&](int step) {
        if (step < block.steps && threadIdx.x < QUERIES / 2) // 16 bytes: two queries
            cp_async_16(shared->statistics + threadIdx.x * 2,
                        scratch.statistics + row_of(step) + threadIdx.x * 2);
        cp_async_commit();
    };
    copy_rows<KEYS, HEAD, Tile::THREADS>(reread_thread_index(), keys, k + block.kv, (unsigned)a.kv_token,
                                         block.valid_keys, block.HS); // waited for together with step 0
    copy_rows<KEYS, HEAD, Tile::THREADS>(reread_thread_index(), values, v + block.kv, (unsigned)a.kv_token,
                                         block.valid_keys, block.HS);
    fetch(0);
    fetch_statistics(0);

    float dk_sum[SLABS][Tile::COLUMNS / 8][4] = {}, dv_sum[SLABS][Tile::COLUMNS / 8][4] = {};
    bool unpublished = false; // the last step has added its part to an unfinished dq but not announced it
    for (int step = 0; step < block.steps; step++) {
        cp_async_wait<0>();
        __syncthreads(); // the step's tiles are complete; all threads have finished the last step and its part of dq
        if (unpublished && threadIdx.x == 0)
            store_release(scratch.parts + row_of(step - 1) / QUERIES, (unsigned)block.tile + 1);
        fetch(step + 1);
        const auto &stage = shared->stage[step % 2];
        if (warp_key < num_seen(step))
#pragma unroll 1
            for (int part = 0; part < QUERIES; part += SCORES) {
                float s[SLABS][SCORES / 8][4] = {}, da[SLABS][SCORES / 8][4] = {};
                multiply_rows_by_rows<HEAD>(s, keys, warp_key, stage.queries, part);
                multiply_rows_by_rows<HEAD>(da, values, warp_key, stage.douts, part);
                score_gradients<dropout>(s, da, shared->statistics + part,
                                         {block.first_key + warp_key, query_of(step) + part,
                                          dropout_sequence_head(a, block.b, head_of(step)), block.visible},
                                         a.dropout, scale);
                if (column_group == 0) store_scores<QUERIES>(ds_tile, da, warp_key, part);
                multiply_registers<HEAD>(dv_sum, s, stage.douts, part, column_group * Tile::COLUMNS);
                multiply_registers<HEAD>(dk_sum, da, stage.queries, part, column_group * Tile::COLUMNS);
            }

        // dQ is added to the sum over the previous tiles of keys.
        if (!a.atomics && block.tile > 0 && threadIdx.x == 0)
            while (load_acquire(scratch.parts + row_of(step) / QUERIES) != (unsigned)block.tile)
                __nanosleep(20);
        __syncthreads(); // dS is complete, the step's statistics are no longer needed, and it is this block's turn
        fetch_statistics(step + 1);
        float *partial = scratch.dq + row_of(step) * HEAD;
        WarpDq<Tile> x = {};
        if (!a.atomics && block.tile > 0) load_partial_dq(x, partial);
        constexpr int ROWS = 16 * SLABS; // only warps whose keys are seen wrote their rows of dS
        multiply_columns<QUERIES, HEAD>(x.sum, ds_tile, dq_row<Tile>(), keys, dq_column<Tile>(),
                                        (num_seen(step) + ROWS - 1) / ROWS * ROWS);
        const bool is_last = last_seen(step) < block.first_key + KEYS;
        unpublished = !a.atomics && !is_last;
        if (a.atomics)
            add_partial_dq(partial, x);
        else if (is_last)
            store_dq(dq + block.b * a.q_sequence + head_of(step) * block.HS, x, block.dq_scale,
                     query_of(step), a);
        else
            store_partial_dq(partial, x);
    }
    __syncthreads(); // the last part of dq is written, and the tiles are no longer read
    if (unpublished && threadIdx.x == 0)
        store_release(scratch.parts + row_of(block.steps - 1) / QUERIES, (unsigned)block.tile + 1);

    float dk_factor[SLABS][2], dv_factor[SLABS][2];
#pragma unroll
    for (int i = 0; i < 2 * SLABS; i++) {
        dk_factor[i / 2][i % 2] = block.dq_scale;
        dv_factor[i / 2][i % 2] = dropout_scale(&a.dropout);
    }
    store_rows<HEAD>(dk + block.kv, a.kv_token, keys, dk_sum, dk_factor, warp_key,
                     column_group * Tile::COLUMNS, block.valid_keys, block.HS);
    store_rows<HEAD>(dv + block.kv, a.kv_token, values, dv_sum, dv_factor, warp_key,
                     column_group * Tile::COLUMNS, block.valid_keys, block.HS);
}

// Writes dq from its sums, with atomics. One block per tile of queries.
template <class Tile>
static __global__ void __launch_bounds__(Tile::THREADS)
    finish_dq_kernel(floatX *dq, BackwardScratch scratch, Attention a) {
    const size_t query_tiles = divide_up(a.Tq, Tile::QUERIES), row = blockIdx.x / query_tiles;
    const size_t head = row % a.NH, b = row / a.NH;
    const int query = (int)(blockIdx.x % query_tiles) * Tile::QUERIES;
    WarpDq<Tile> x;
#pragma unroll
    for (int i = 0; i < Tile::DQ_SLABS; i++)
#pragma unroll
        for (int j = 0; j < Tile::DQ_COLUMNS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x.sum[i][j][e] = *atomic_dq<Tile>(scratch.dq + (row * scratch.padded + query) * Tile::HEAD, i,
                                                  j, e);
    store_dq(dq + b * a.q_sequence + head * a.HS, x, a.scale * dropout_scale(&a.dropout), query, a);
}

} // namespace flash

#endif
