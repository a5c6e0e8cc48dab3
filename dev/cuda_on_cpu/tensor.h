// The emulation of layers/ptx.h: mma.sync, ldmatrix and cp.async, with the fragment layouts of the PTX ISA, and the
// rest.
//
// It checks that the whole warp takes part, that operands are aligned and in shared memory where required, and that
// every cp.async is waited for. By default, cp.async writes NaN immediately and the data only when they are waited for,
// as late as allowed; with a seed, about half of the copies are performed immediately, as early as allowed.
#pragma once
#include "bf16.h"
#include "memory.h"
#include "sync.h"

namespace emulation {

// ---- mma.m16n8k16 -----------------------------------------------------------------------------------------

// Return row and column of the first element of register r of a lane, in the 16x16 A fragment, and of pair r in the
// 16x8 C and D fragments.
inline unsigned fragment_row(unsigned lane, unsigned r) {
    return lane / 4 + (r & 1) * 8;
}
inline unsigned fragment_column(unsigned lane, unsigned r) {
    return lane % 4 * 2 + (r >> 1) * 8;
}

inline float low_bf16(uint32_t pair) {
    return Bf16Format::unpack(uint16_t(pair));
}
inline float high_bf16(uint32_t pair) {
    return Bf16Format::unpack(uint16_t(pair >> 16));
}

struct MmaSlot {
    const uint32_t *a, *b;
    const float *c;
    float *d;
};

typedef float MmaRow __attribute__((vector_size(32))); // a row of b, c or d; vectors make the product fast

EMU_UNTRACED inline void gather_mma(void **slots, float a[16][16], MmaRow b[16], MmaRow c[16]) {
    for (unsigned lane = 0; lane < 32; lane++) {
        auto *s = static_cast<MmaSlot *>(slots[lane]);
        for (unsigned r = 0; r < 4; r++) {
            float *element = &a[fragment_row(lane, r)][fragment_column(lane, r)];
            element[0] = low_bf16(s->a[r]), element[1] = high_bf16(s->a[r]);
        }
        for (unsigned r = 0; r < 2; r++) {
            unsigned k = lane % 4 * 2 + r * 8;
            b[k][lane / 4] = low_bf16(s->b[r]), b[k + 1][lane / 4] = high_bf16(s->b[r]);
            MmaRow &row = c[fragment_row(lane, r)];
            row[fragment_column(lane, 0)] = s->c[2 * r], row[fragment_column(lane, 0) + 1] = s->c[2 * r + 1];
        }
    }
}

EMU_UNTRACED inline void run_mma_m16n8k16(void **slots, unsigned) {
    float a[16][16];
    MmaRow b[16], c[16];
    gather_mma(slots, a, b, c);
    for (int i = 0; i < 16; i++) {
        MmaRow sum = c[i];
        for (int k = 0; k < 16; k++) sum += a[i][k] * b[k];
        c[i] = sum;
    }
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned r = 0; r < 2; r++) {
            const MmaRow &row = c[fragment_row(lane, r)];
            float *d = static_cast<MmaSlot *>(slots[lane])->d;
            d[2 * r] = row[fragment_column(lane, 0)], d[2 * r + 1] = row[fragment_column(lane, 0) + 1];
        }
}

// ---- ldmatrix ---------------------------------------------------------------------------------------------

// Eight rows of 16 bytes are one phase. Rows that share banks need more than one wavefront; each extra wavefront counts
// as a conflict.
inline uint64_t ldmatrix_phases = 0, ldmatrix_conflicts = 0;

struct LdmatrixSlot {
    const char *row;
    const char *wanted[8]; // the rows of this lane's eight elements
};

EMU_UNTRACED inline void count_conflicts(void **slots) {
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        unsigned used[8] = {}, wavefronts = 0;
        for (unsigned i = 0; i < 8; i++) {
            auto address = reinterpret_cast<uintptr_t>(
                static_cast<LdmatrixSlot *>(slots[matrix * 8 + i])->row);
            unsigned rows = ++used[address / 16 % 8];
            if (rows > wavefronts) wavefronts = rows;
        }
        __atomic_fetch_add(&ldmatrix_phases, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&ldmatrix_conflicts, wavefronts - 1, __ATOMIC_RELAXED);
    }
}

template <bool transposed> EMU_UNTRACED void run_ldmatrix_x4(void **slots, unsigned) {
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 8; i++) {
            unsigned row = i / 2 * 8 + (transposed ? lane % 4 * 2 + i % 2 : lane / 4);
            static_cast<LdmatrixSlot *>(slots[lane])->wanted[i] = static_cast<LdmatrixSlot *>(slots[row])
                                                                      ->row;
        }
    count_conflicts(slots);
}

// Every lane loads its own elements, so that a race detector reports the right thread.
template <bool transposed> void ldmatrix_x4(uint32_t (&r)[4], const void *row, Site site) {
    check_shared(row, 16, site);
    LdmatrixSlot slot{static_cast<const char *>(row), {}};
    warp_collective(full_mask, &slot, run_ldmatrix_x4<transposed>, site, true);
    for (unsigned i = 0; i < 4; i++) {
        auto *even = reinterpret_cast<const uint16_t *>(slot.wanted[2 * i]);
        auto *odd = reinterpret_cast<const uint16_t *>(slot.wanted[2 * i + 1]);
        unsigned column = transposed ? self->lane / 4 : self->lane % 4 * 2;
        r[i] = even[column] | uint32_t(transposed ? odd[column] : even[column + 1]) << 16;
    }
}

// ---- cp.async ---------------------------------------------------------------------------------------------

// Sanitizers instrument this function, unlike its callers.
__attribute__((noinline)) inline void store_16(void *target, const void *source) {
    *static_cast<uint4 *>(target) = *static_cast<const uint4 *>(source);
}

EMU_UNTRACED inline void cp_async_16(void *target, const void *source, bool valid, Site site) {
    static const uint4 zero = {0, 0, 0, 0}, nan = {~0u, ~0u, ~0u, ~0u};
    check_shared(target, 16, site);
    if (reinterpret_cast<uintptr_t>(source) % 16)
        fail("%s at %s:%d: the global address %p is not aligned to 16 bytes", site.what, site.file, site.line,
             source);
    if (valid && !find_allocation(source))
        fail("%s at %s:%d: the source %p is not global memory", site.what, site.file, site.line, source);
    if (self->copy_count == max_copies)
        fail("%s at %s:%d: more than %u copies in flight", site.what, site.file, site.line, max_copies);
    if (!valid) source = &zero;
    if (seed() && next_random(worker->random) % 2) return store_16(target, source);
    store_16(target, &nan);
    self->copies[self->copy_count++] = {target, source, self->copy_group};
}

EMU_UNTRACED inline void cp_async_wait(unsigned allowed) {
    unsigned kept = 0;
    for (unsigned i = 0; i < self->copy_count; i++) {
        const AsyncCopy copy = self->copies[i];
        if (copy.group + allowed < self->copy_group)
            store_16(copy.target, copy.source);
        else
            self->copies[kept++] = copy;
    }
    self->copy_count = kept;
}
} // namespace emulation

// ---- functions that kernels call: see layers/ptx.h -----------------------------------------------------

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], EMU_CALLER) {
    emulation::MmaSlot slot{a, b, c, d};
    emulation::warp_collective(emulation::full_mask, &slot, emulation::run_mma_m16n8k16,
                               EMU_HERE("mma.m16n8k16"), true);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, EMU_CALLER) {
    emulation::ldmatrix_x4<false>(r, row, EMU_HERE("ldmatrix.x4"));
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, EMU_CALLER) {
    emulation::ldmatrix_x4<true>(r, row, EMU_HERE("ldmatrix.x4.trans"));
}
inline void cp_async_16(void *target, const void *source, bool valid = true, EMU_CALLER) {
    emulation::cp_async_16(target, source, valid, EMU_HERE("cp.async"));
}
EMU_UNTRACED inline void cp_async_commit() {
    emulation::self->copy_group++;
}
template <int allowed> void cp_async_wait() {
    emulation::cp_async_wait(allowed);
}
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y; // NaN stays
}
inline unsigned reread_thread_index() {
    return threadIdx.x;
}
inline unsigned load_acquire(const unsigned *p) {
    unsigned x = __atomic_load_n(p, __ATOMIC_ACQUIRE);
    emulation::acquire(const_cast<unsigned *>(p));
    return x;
}
inline void store_release(unsigned *p, unsigned x) {
    emulation::release(p);
    __atomic_store_n(p, x, __ATOMIC_RELEASE);
}
