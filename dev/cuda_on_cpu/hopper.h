// mbarrier, TMA (cp.async.bulk.tensor) and wgmma of sm_90a: the emulation of layers/ptx_hopper.h.
//
// It checks that operands are aligned and in dynamic shared memory (only that has 32-bit shared addresses here), and
// reports unexpected arrivals, descriptors that differ within a warp, and asynchronous work that is not waited for.
//
// TMA and wgmma are asynchronous: by default they are performed as late as allowed, with a seed at random
// times. Under ThreadSanitizer they run when issued, so that races are attributed to the issuing thread.
#pragma once
#include "tensor.h"

// ---- mbarrier ---------------------------------------------------------------------------------------------

struct alignas(64) CUtensorMap {
    char *base;
    uint64_t size[5];   // elements
    uint64_t stride[5]; // bytes
    uint32_t box[5];    // elements
    uint16_t rank;
    uint16_t element; // bytes of an element
    uint32_t swizzle; // number of address bits that the swizzle changes
};

namespace emulation {
struct Mbarrier { // the layout of the 64 bits, which is opaque on a GPU
    int64_t transactions : 31;
    uint64_t phase : 1, pending : 16, expected : 16;
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier is 64 bits");

EMU_UNTRACED inline void mbarrier_update(uint64_t *address, int transactions, int arrivals, Site site) {
    auto *b = reinterpret_cast<Mbarrier *>(address);
    if (int(b->pending) < arrivals)
        fail("%s at %s:%d: more arrivals than mbarrier.init announced", site.what, site.file, site.line);
    b->transactions += transactions;
    b->pending -= unsigned(arrivals);
    worker->progress++;
    if (b->pending == 0 && b->transactions == 0) b->phase ^= 1, b->pending = b->expected;
}

// ---- TMA --------------------------------------------------------------------------------------------------

struct TmaCopy {
    void (*run)(const TmaCopy &);
    CUtensorMap map; // a copy: a __grid_constant__ parameter is on the stack of a thread that may exit first
    char *shared;
    uint64_t *barrier;
    int coordinate[5];
    Site site;
};

struct Wgmma { // the part of an operation that one warp computes: 16 of the 64 rows
    float *d[32];
    uint64_t a, b;
    int scale_d, n;
    bool a_mn_major, b_mn_major;
    unsigned group, warp;
};

constexpr unsigned max_tma = 256, max_wgmma = 32;
struct Queues { // operations in flight of the current block of an OS thread, and scratch for one operation
    TmaCopy tma[max_tma];
    Wgmma wgmma[max_warps][max_wgmma];
    unsigned wgmma_group[max_warps];
    float a[16][16], b[16][256], d[16][256];
};
// The object itself is not thread_local, because all thread_local data is reset together with __shared__ arrays.
EMU_UNTRACED inline Queues &queues() {
    static thread_local Queues *own = new Queues();
    return *own;
}

EMU_UNTRACED inline bool run_now() {
#ifdef EMU_TSAN
    return true;
#else
    return seed() && next_random(worker->random) % 2;
#endif
}

EMU_UNTRACED inline void deliver_tma(uint64_t *barrier) { // performs all copies that this barrier waits for
    TmaCopy *queue = queues().tma;
    for (unsigned i = 0; i < worker->outstanding;) {
        if (queue[i].barrier != barrier) {
            i++;
            continue;
        }
        const TmaCopy copy = queue[i];
        queue[i] = queue[--worker->outstanding];
        copy.run(copy);
    }
}

// A swizzle changes address bits: index of the 16-byte chunk ^= index of its 128-byte line.
inline unsigned swizzle_address(unsigned address, unsigned bits) {
    return address ^ ((address >> 3) & (((1u << bits) - 1) << 4));
}

// Returns the address of element (x, row) of the box, or NULL outside the tensor. `row` is a linear index over
// box[1] .. box[4].
EMU_UNTRACED inline char *tma_global(const TmaCopy &c, unsigned x, unsigned row) {
    const CUtensorMap &map = c.map;
    char *address = map.base;
    for (unsigned d = 0; d < 5; d++) {
        unsigned step = d == 0 ? x : row % map.box[d];
        if (d) row /= map.box[d];
        int64_t at = int64_t(c.coordinate[d]) + step;
        if (at < 0 || uint64_t(at) >= map.size[d]) return nullptr;
        address += at * int64_t(map.stride[d]);
    }
    return address;
}

template <bool store> void run_tma(const TmaCopy &c) {
    const CUtensorMap &map = c.map;
    unsigned address = unsigned(__cvta_generic_to_shared(c.shared)), bytes = 0;
    unsigned rows = map.box[1] * map.box[2] * map.box[3] * map.box[4];
    for (unsigned row = 0; row < rows; row++)
        for (unsigned x = 0; x < map.box[0]; x++, bytes += map.element) {
            char *shared = worker->window + swizzle_address(address + bytes, map.swizzle),
                 *global = tma_global(c, x, row);
            for (unsigned b = 0; b < map.element; b += 2) {
                auto *s = reinterpret_cast<uint16_t *>(shared + b);
                if (!store)
                    *s = global ? *reinterpret_cast<uint16_t *>(global + b) : uint16_t(0);
                else if (global)
                    *reinterpret_cast<uint16_t *>(global + b) = *s;
            }
        }
    if (store) return;
    release(c.barrier);
    mbarrier_update(c.barrier, -int(bytes), 0, c.site);
}

EMU_UNTRACED inline void check_tma(const TmaCopy &c) {
    const CUtensorMap &map = c.map;
    unsigned atom = map.swizzle ? 128u << map.swizzle : 128, bytes = map.element;
    for (unsigned d = 0; d < 5; d++) bytes *= map.box[d];
    if (__cvta_generic_to_shared(c.shared) % atom)
        fail("%s at %s:%d: the shared address is not aligned to %u bytes", c.site.what, c.site.file,
             c.site.line, atom);
    if (!is_shared(c.shared, bytes))
        fail("%s at %s:%d: a box of %u bytes at offset %td of %zu bytes of dynamic shared memory",
             c.site.what, c.site.file, c.site.line, bytes, c.shared - worker->dynamic_base,
             worker->dynamic_bytes);
}

EMU_UNTRACED inline void tma_load(void *shared, const CUtensorMap *map, uint64_t *barrier, int x, int y,
                                  int z, Site site) {
    TmaCopy copy{run_tma<false>, *map, static_cast<char *>(shared), barrier, {x, y, z, 0, 0}, site};
    check_tma(copy);
    if (run_now()) return copy.run(copy);
    if (worker->outstanding == max_tma)
        fail("%s at %s:%d: too many copies in flight", site.what, site.file, site.line);
    queues().tma[worker->outstanding++] = copy;
}

// ---- wgmma ------------------------------------------------------------------------------------------------

// Returns the address of element (mn, k) of a bf16 operand with 16 elements along k, given its matrix descriptor.
EMU_UNTRACED inline unsigned wgmma_address(uint64_t descriptor, bool mn_major, unsigned mn, unsigned k) {
    auto field = [&](int bit) { return unsigned(descriptor >> bit & 0x3fff) << 4; };
    unsigned start = field(0), leading = field(16), stride = field(32), mode = unsigned(descriptor >> 62);
    unsigned bits = mode ? 4 - mode : 0, span = 16u << bits;      // mode 1: 128 bytes, 2: 64, 3: 32
    unsigned row = mn_major ? k : mn, column = mn_major ? mn : k; // columns are contiguous
    unsigned address = start + row % 8 * span;
    if (!mn_major && mode == 0)
        address += row / 8 * stride + column / 8 * leading + column % 8 * 2;
    else if (!mn_major)
        address += row / 8 * stride + column * 2;
    else if (mode == 0)
        address += row / 8 * leading + column / 8 * stride + column % 8 * 2;
    else
        address += row / 8 * stride + column / (span / 2) * leading + column % (span / 2) * 2;
    return swizzle_address(address, bits);
}

struct WgmmaSlot {
    float *d;
    uint64_t a, b;
    int scale_d;
    Site site;
};
EMU_UNTRACED inline float wgmma_element(uint64_t descriptor, bool mn_major, unsigned mn, unsigned k) {
    const char *p = worker->window + wgmma_address(descriptor, mn_major, mn, k);
    if (p < worker->dynamic_base || p >= worker->dynamic_base + worker->dynamic_bytes)
        fail("wgmma reads offset %td of %zu bytes of dynamic shared memory", p - worker->dynamic_base,
             worker->dynamic_bytes);
    return Bf16Format::unpack(*reinterpret_cast<const uint16_t *>(p));
}

// Element r of a lane's accumulator is in row lane / 4 + 8 * (r / 2 % 2), column r / 4 * 8 + lane % 4 * 2 + r % 2.
EMU_UNTRACED inline void run_wgmma(const Wgmma &op) {
    Queues &q = queues();
    for (unsigned k = 0; k < 16; k++) {
        for (int n = 0; n < op.n; n++) q.b[k][n] = wgmma_element(op.b, op.b_mn_major, unsigned(n), k);
        for (unsigned i = 0; i < 16; i++)
            q.a[i][k] = wgmma_element(op.a, op.a_mn_major, op.warp % 4 * 16 + i, k);
    }
    auto cell = [&](unsigned lane, int r) -> float & {
        return q.d[lane / 4 + unsigned(r / 2 % 2 * 8)][unsigned(r / 4 * 8) + lane % 4 * 2 + unsigned(r % 2)];
    };
    for (unsigned lane = 0; lane < 32; lane++)
        for (int r = 0; r < op.n / 2; r++) cell(lane, r) = op.scale_d ? op.d[lane][r] : 0;
    for (unsigned i = 0; i < 16; i++)
        for (unsigned k = 0; k < 16; k++)
            for (int n = 0; n < op.n; n++) q.d[i][n] += q.a[i][k] * q.b[k][n];
    for (unsigned lane = 0; lane < 32; lane++)
        for (int r = 0; r < op.n / 2; r++) op.d[lane][r] = cell(lane, r);
}

template <int n, bool a_mn_major, bool b_mn_major> EMU_UNTRACED void issue_wgmma(void **slots, unsigned) {
    auto *first = static_cast<WgmmaSlot *>(slots[0]);
    Site site = first->site;
    Wgmma op{{},        first->a,   first->b,   first->scale_d,
             n,         a_mn_major, b_mn_major, queues().wgmma_group[self->warp],
             self->warp};
    for (int lane = 0; lane < 32; lane++) {
        auto *s = static_cast<WgmmaSlot *>(slots[lane]);
        if (s->a != op.a || s->b != op.b || s->scale_d != op.scale_d)
            fail("%s at %s:%d: descriptors differ between the lanes of a warp", site.what, site.file,
                 site.line);
        op.d[lane] = s->d;
    }
    unsigned &count = worker->warps[op.warp].outstanding;
    if (run_now() && count == 0) return run_wgmma(op);
    if (count == max_wgmma)
        fail("%s at %s:%d: too many operations in flight", site.what, site.file, site.line);
    queues().wgmma[op.warp][count++] = op;
}
template <unsigned allowed> EMU_UNTRACED void finish_wgmma(void **, unsigned) {
    Wgmma *queue = queues().wgmma[self->warp];
    unsigned &count = worker->warps[self->warp].outstanding, kept = 0;
    for (unsigned i = 0; i < count; i++)
        if (queue[i].group + allowed < queues().wgmma_group[self->warp])
            run_wgmma(queue[i]);
        else
            queue[kept++] = queue[i];
    count = kept;
}
EMU_UNTRACED inline void commit_wgmma(void **, unsigned) {
    queues().wgmma_group[self->warp]++;
}
} // namespace emulation

// ---- functions that kernels call: see layers/ptx_hopper.h ----------------------------------------------

EMU_UNTRACED inline void mbarrier_init(uint64_t *barrier, unsigned count, EMU_CALLER) {
    emulation::check_shared(barrier, 8, EMU_HERE("mbarrier.init"));
    emulation::Mbarrier fresh{0, 0, count, count};
    *barrier = emulation::bit_cast<uint64_t>(fresh);
}
EMU_UNTRACED inline void mbarrier_arrive(uint64_t *barrier, EMU_CALLER) {
    emulation::release(barrier);
    emulation::mbarrier_update(barrier, 0, 1, EMU_HERE("mbarrier.arrive"));
}
EMU_UNTRACED inline void mbarrier_arrive_expect_tx(uint64_t *barrier, unsigned bytes, EMU_CALLER) {
    emulation::release(barrier);
    emulation::mbarrier_update(barrier, int(bytes), 1, EMU_HERE("mbarrier.arrive.expect_tx"));
}
EMU_UNTRACED inline void mbarrier_wait(uint64_t *barrier, unsigned parity, EMU_CALLER) {
    auto *b = reinterpret_cast<emulation::Mbarrier *>(barrier);
    while (b->phase == (parity & 1)) {
        emulation::deliver_tma(barrier);
        if (b->phase == (parity & 1)) emulation::spin(EMU_HERE("mbarrier.try_wait"));
    }
    emulation::acquire(barrier);
}
inline void fence_mbarrier_init() {}
inline void fence_proxy_async() {}

inline void tma_load_2d(void *shared, const CUtensorMap *map, uint64_t *barrier, int x, int y, EMU_CALLER) {
    emulation::tma_load(shared, map, barrier, x, y, 0, EMU_HERE("TMA load"));
}
inline void tma_load_3d(void *shared, const CUtensorMap *map, uint64_t *barrier, int x, int y, int z,
                        EMU_CALLER) {
    emulation::tma_load(shared, map, barrier, x, y, z, EMU_HERE("TMA load"));
}
// Performed immediately.
inline void tma_store_2d(const CUtensorMap *map, const void *shared, int x, int y, EMU_CALLER) {
    char *source = const_cast<char *>(static_cast<const char *>(shared));
    emulation::TmaCopy copy{emulation::run_tma<true>, *map, source, nullptr, {x, y, 0, 0, 0},
                            EMU_HERE("TMA store")};
    emulation::check_tma(copy);
    copy.run(copy);
}
inline void tma_store_commit() {}
template <int allowed> void tma_store_wait() {}
inline void prefetch_tensor_map(const CUtensorMap *) {}

inline void wgmma_fence() {}
inline void wgmma_commit(EMU_CALLER) {
    emulation::warp_collective(emulation::full_mask, nullptr, emulation::commit_wgmma,
                               EMU_HERE("wgmma.commit_group"), true);
}
template <int allowed> void wgmma_wait(EMU_CALLER) {
    emulation::warp_collective(emulation::full_mask, nullptr, emulation::finish_wgmma<allowed>,
                               EMU_HERE("wgmma.wait_group"), true);
}
template <int n, bool a_mn_major = false, bool b_mn_major = false>
void wgmma_bf16(float (&d)[n / 2], uint64_t a, uint64_t b, int scale_d, EMU_CALLER) {
    static_assert(n % 8 == 0 && n >= 8 && n <= 256, "wgmma: n is a multiple of 8 up to 256");
    emulation::WgmmaSlot slot{d, a, b, scale_d, EMU_HERE("wgmma.mma_async")};
    emulation::warp_collective(emulation::full_mask, &slot, emulation::issue_wgmma<n, a_mn_major, b_mn_major>,
                               slot.site, true);
}

// ---- the driver's tensor maps -----------------------------------------------------------------------------

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle {
    CU_TENSOR_MAP_SWIZZLE_NONE,
    CU_TENSOR_MAP_SWIZZLE_32B,
    CU_TENSOR_MAP_SWIZZLE_64B,
    CU_TENSOR_MAP_SWIZZLE_128B
};
enum CUtensorMapL2promotion {
    CU_TENSOR_MAP_L2_PROMOTION_NONE,
    CU_TENSOR_MAP_L2_PROMOTION_L2_64B,
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B
};
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;

inline CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                       void *base, const cuuint64_t *size, const cuuint64_t *stride,
                                       const cuuint32_t *box, const cuuint32_t *element_stride,
                                       CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    unsigned element = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2, span = swizzle ? 16u << swizzle : 0;
    if (rank < 1 || rank > 5 || reinterpret_cast<uintptr_t>(base) % 16) return CUDA_ERROR_INVALID_VALUE;
    if (box[0] * element % 16 || (span && box[0] * element > span)) return CUDA_ERROR_INVALID_VALUE;
    if (!emulation::find_allocation(base))
        emulation::fail("cuTensorMapEncodeTiled: the base %p is not device memory", base);
    *map = {};
    map->base = static_cast<char *>(base), map->rank = uint16_t(rank), map->element = uint16_t(element);
    map->swizzle = swizzle;
    for (unsigned i = 0; i < 5; i++) {
        bool used = i < rank;
        map->size[i] = used ? size[i] : 1, map->box[i] = used ? box[i] : 1;
        map->stride[i] = i == 0 ? element : used ? stride[i - 1] : 0;
        if (map->box[i] > 256 || map->box[i] == 0 || (i && map->stride[i] % 16))
            return CUDA_ERROR_INVALID_VALUE;
        if (used && element_stride[i] != 1) return CUDA_ERROR_INVALID_VALUE; // not emulated
    }
    return CUDA_SUCCESS;
}
