// Launches flash attention (flash.h), with tiles that depend on the head size and the GPU.
//
// The maximum shared memory of a block is 163 KB on sm_80, 227 KB on sm_90 and sm_100, and 99 KB on sm_86, sm_89 and
// sm_120. If the best tiles for a head size do not fit into 99 KB, or would leave too few warps on a multiprocessor of
// such GPUs, there are separate small tiles for GPUs that have no more than 99 KB.
#include "flash.h"
#include "flash_backward.cuh"
#include "flash_forward.cuh"

namespace flash {

// ---- tiles ------------------------------------------------------------------------------------------------
// ForwardTile<head, warps, slabs of 16 queries per warp, keys, stages, blocks per multiprocessor>
// BackwardTile<head, warps, slabs of 16 keys per warp, column groups, queries, blocks per multiprocessor>

template <int head> struct Tiles;
#ifndef PRECISION_IS_FP32
template <> struct Tiles<32> {
    typedef ForwardTile<32, 4, 2, 64, 4, 2> Forward, SmallForward;
    typedef BackwardTile<32, 4, 2, 1, 64, 2> Backward, SmallBackward;
};
template <> struct Tiles<64> {
    typedef ForwardTile<64, 4, 2, 64, 4, 2> Forward, SmallForward;
    typedef BackwardTile<64, 4, 2, 1, 64, 2> Backward;
    typedef BackwardTile<64, 8, 1, 1, 64, 1> SmallBackward;
};
template <> struct Tiles<96> {
    typedef ForwardTile<96, 4, 2, 64, 3, 2> Forward, SmallForward;
    typedef BackwardTile<96, 4, 1, 1, 64, 2> Backward, SmallBackward;
};
template <> struct Tiles<128> {
    typedef ForwardTile<128, 4, 2, 64, 3, 2> Forward;
    typedef ForwardTile<128, 8, 1, 64, 3, 1> SmallForward;
    typedef BackwardTile<128, 8, 1, 1, 64, 1> Backward;
    typedef BackwardTile<128, 4, 1, 1, 32, 1> SmallBackward;
};
template <> struct Tiles<192> {
    typedef ForwardTile<192, 8, 1, 64, 2, 1> Forward, SmallForward;
    typedef BackwardTile<192, 4, 1, 2, 32, 2> Backward, SmallBackward;
};
template <> struct Tiles<256> {
    typedef ForwardTile<256, 4, 1, 64, 2, 2> Forward, SmallForward;
    typedef BackwardTile<256, 4, 1, 2, 32, 2> Backward, SmallBackward;
};
#else
template <> struct Tiles<32> {
    typedef ForwardTile<32, 4, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<32, 4, 1, 1, 32, 2> Backward, SmallBackward;
};
template <> struct Tiles<64> {
    typedef ForwardTile<64, 4, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<64, 4, 1, 1, 32, 2> Backward, SmallBackward;
};
template <> struct Tiles<96> {
    typedef ForwardTile<96, 4, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<96, 4, 1, 1, 16, 2> Backward, SmallBackward;
};
template <> struct Tiles<128> {
    typedef ForwardTile<128, 4, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<128, 2, 1, 1, 16, 2> Backward, SmallBackward;
};
template <> struct Tiles<192> {
    typedef ForwardTile<192, 4, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<192, 4, 1, 2, 16, 1> Backward, SmallBackward;
};
template <> struct Tiles<256> {
    typedef ForwardTile<256, 2, 1, 32, 2, 2> Forward, SmallForward;
    typedef BackwardTile<256, 4, 1, 4, 16, 1> Backward, SmallBackward;
};
#endif

static int device_attribute(cudaDeviceAttr name) {
    int device, value;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
}
// Returns whether a block can have more shared memory than the small tiles need.
enum { SMALL_SHARED_MEMORY = 99 * 1024 };
static bool shared_memory_is_large(void) {
    return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) > SMALL_SHARED_MEMORY;
}

// Returns the number of heads that are processed together (tile_of_head): as many as fit into half of the L2 cache, but
// enough that few tiles of one head run at the same time, because in backward they wait for each other.
static int heads_together(size_t heads, size_t bytes_of_head) {
    const size_t fit = (size_t)device_attribute(cudaDevAttrL2CacheSize) / 2 / bytes_of_head;
    const size_t enough = (size_t)device_attribute(cudaDevAttrMultiProcessorCount) / 4;
    const size_t together = fit > enough ? fit : enough;
    return (int)(together < 1 ? 1 : together < heads ? together : heads);
}

// Returns a factor with exp(a.scale * s) = 2^(s * factor). It is never 0, so that the product with a hidden score,
// -inf, is -inf even if the scale is 0.
static float exponent_scale(const Attention &a) {
    const float LOG2_E = 1.44269504088896340736f;
    return fmaxf(a.scale * LOG2_E, 1e-30f);
}

// ---- forward ----------------------------------------------------------------------------------------------

struct ForwardArguments {
    floatX *out;
    float *lse;
    const floatX *q, *k, *v;
    const Attention *a;
    Stream stream;
};

template <class Tile> static void launch_forward(const ForwardArguments &x) {
    static_assert(sizeof(ForwardShared<Tile>) <= 227 * 1024, "no GPU has so much shared memory");
    unsigned blocks = blocks_for(x.a->B * x.a->NH * divide_up(x.a->Tq, Tile::QUERIES), 1);
    launch(x.a->dropout.threshold < 256 ? forward_kernel<Tile, true> : forward_kernel<Tile, false>, blocks,
           Tile::THREADS, sizeof(ForwardShared<Tile>), x.stream, x.out, x.lse, x.q, x.k, x.v, *x.a,
           exponent_scale(*x.a),
           heads_together(x.a->B * x.a->NH, x.a->Tk * x.a->HS * 2 * sizeof(floatX))); // K and V
}
template <int head> static void forward_with_columns(const ForwardArguments &x) {
    typedef typename Tiles<head>::SmallForward Small;
    static_assert(sizeof(ForwardShared<Small>) <= SMALL_SHARED_MEMORY, "the second choice fits every GPU");
    if (shared_memory_is_large())
        launch_forward<typename Tiles<head>::Forward>(x);
    else
        launch_forward<Small>(x);
}

// ---- backward ---------------------------------------------------------------------------------------------

struct BackwardArguments {
    floatX *dq, *dk, *dv;
    const floatX *dout, *q, *k, *v, *out;
    const float *lse;
    float *scratch;
    const Attention *a;
    Stream stream;
};

template <class Tile> static void launch_backward(const BackwardArguments &x) {
    static_assert(sizeof(BackwardShared<Tile>) <= 227 * 1024, "no GPU has so much shared memory");
    static_assert(FLASH_MAX_QUERY_TILE % Tile::QUERIES == 0 && Tile::QUERIES % FLASH_MIN_QUERY_TILE == 0,
                  "attention_flash_scratch_size is enough");
    const Attention &a = *x.a;
    const size_t heads = a.B * a.NH, padded = round_up(a.Tq, Tile::QUERIES),
                 query_tiles = padded / Tile::QUERIES;
    BackwardScratch s;
    s.padded = padded;
    s.dq = x.scratch;
    s.statistics = (QueryStatistics *)(s.dq + heads * padded * Tile::HEAD);
    s.ticket = (unsigned *)(s.statistics + heads * padded);
    s.parts = s.ticket + 1;
    launch(prepare_kernel, blocks_for(heads * padded * LANES_PER_QUERY, PREPARE_THREADS), PREPARE_THREADS, 0,
           x.stream, s.statistics, s.ticket, 1 + heads * query_tiles, x.dout, x.out, x.lse, a, padded);
    if (a.atomics) device_zero(s.dq, heads * padded * Tile::HEAD * sizeof(float), x.stream);
    launch(a.dropout.threshold < 256 ? backward_kernel<Tile, true> : backward_kernel<Tile, false>,
           blocks_for(a.B * a.NKV * divide_up(a.Tk, Tile::KEYS), 1), Tile::THREADS,
           sizeof(BackwardShared<Tile>), x.stream, x.dq, x.dk, x.dv, x.dout, x.q, x.k, x.v, s, a,
           exponent_scale(a),
           heads_together(a.B * a.NKV, // Q, dO and the sums of dQ
                          a.NH / a.NKV * padded * (2 * a.HS * sizeof(floatX) + Tile::HEAD * sizeof(float))));
    if (a.atomics)
        launch(finish_dq_kernel<Tile>, blocks_for(heads * query_tiles, 1), Tile::THREADS, 0, x.stream, x.dq,
               s, a);
}
template <int head> static void backward_with_columns(const BackwardArguments &x) {
    typedef typename Tiles<head>::SmallBackward Small;
    static_assert(sizeof(BackwardShared<Small>) <= SMALL_SHARED_MEMORY, "the second choice fits every GPU");
    if (shared_memory_is_large())
        launch_backward<typename Tiles<head>::Backward>(x);
    else
        launch_backward<Small>(x);
}

// ---- head sizes -------------------------------------------------------------------------------------------

// Calls the instance of `function` for tiles of `columns` columns.
#define FOR_COLUMNS(columns, function, arguments)                                                            \
    ((columns) == 32    ? function<32>(arguments)                                                            \
     : (columns) == 64  ? function<64>(arguments)                                                            \
     : (columns) == 96  ? function<96>(arguments)                                                            \
     : (columns) == 128 ? function<128>(arguments)                                                           \
     : (columns) == 192 ? function<192>(arguments)                                                           \
                        : function<256>(arguments))

static void check_shapes(const Attention *a) {
    CHECK(a->HS % 8 == 0 && a->HS >= 8 && a->HS <= ATTENTION_LARGEST_HEAD && a->B >= 1 && a->NKV >= 1 &&
          a->NH % a->NKV == 0);
    CHECK(a->q_sequence % 8 == 0 && a->kv_sequence % 8 == 0 && a->out_sequence % 8 == 0);
    CHECK(a->q_token % 8 == 0 && a->kv_token % 8 == 0 && a->out_token % 8 == 0); // chunks of 16 bytes
    CHECK(a->Tq >= 1 && a->Tq < 1u << 29 && a->Tk >= 1 && a->Tk < 1u << 29);
}

} // namespace flash

void attention_flash_forward(floatX *out, float *lse, const floatX *q, const floatX *k, const floatX *v,
                             const Attention *a, Stream stream) {
    using namespace flash;
    check_shapes(a);
    const ForwardArguments x = {out, lse, q, k, v, a, stream};
    FOR_COLUMNS(attention_flash_columns(a->HS), forward_with_columns, x);
}

void attention_flash_backward(floatX *dq, floatX *dk, floatX *dv, const floatX *dout, const floatX *q,
                              const floatX *k, const floatX *v, const floatX *out, const float *lse,
                              float *scratch, const Attention *a, Stream stream) {
    using namespace flash;
    check_shapes(a);
    const BackwardArguments x = {dq, dk, dv, dout, q, k, v, out, lse, scratch, a, stream};
    FOR_COLUMNS(attention_flash_columns(a->HS), backward_with_columns, x);
}
