// Barriers and warp collectives (shuffles, votes, __syncwarp). Detects what they forbid: a barrier that threads reach
// at different lines, a mask without the calling lane, a shuffle from a lane that does not take part, deadlocks.
#pragma once
#include "scheduler.h"
#include <type_traits>

namespace emulation {

// ---- block barriers ---------------------------------------------------------------------------------------

EMU_UNTRACED inline void release_barrier(Worker &w, Barrier &b) {
    b.result = b.predicate;
    b.predicate = 0;
    b.phase++;
    w.progress++;
    unsigned first = w.ready_count;
    for (unsigned i = b.arrived; i-- > 0;)
        if (b.waiting[i] != self) make_ready(w, b.waiting[i]);
    b.arrived = 0;
    shuffle_ready(w, first);
}

// With count 0 this is __syncthreads, for all threads that have not exited. Otherwise it is `bar.sync id, count`, or
// `bar.arrive` if not blocking.
EMU_UNTRACED inline int sync_block(unsigned id, unsigned count, int predicate, Site site,
                                   bool blocking = true) {
    Worker &w = *worker;
    Barrier &b = w.barriers[id];
    if (b.arrived && count == 0 && (b.site.line != site.line || b.site.what != site.what))
        fail("divergent barrier: %s at %s:%d while other threads wait in %s at %s:%d", site.what, site.file,
             site.line, b.site.what, b.site.file, b.site.line);
    char *order = order_of_barrier(w, id, b.phase);
    release(order);
    b.site = site;
    b.predicate += predicate;
    b.waiting[b.arrived++] = self;
    if (b.arrived == (count ? count : w.live))
        release_barrier(w, b);
    else if (blocking)
        wait(AT_BARRIER, site);
    if (blocking) acquire(order);
    return b.result;
}

// ---- warp collectives -------------------------------------------------------------------------------------

EMU_UNTRACED inline void complete_group(Worker &w, Warp &warp, Group *group) {
    unsigned lanes = group->arrived, base = self->warp * 32, first = w.ready_count;
    if (group->run) group->run(group->slots, lanes);
    for (int lane = 31; lane >= 0; lane--)
        if ((lanes >> lane & 1) && w.thread[base + lane] != self) make_ready(w, w.thread[base + lane]);
    shuffle_ready(w, first);
    w.progress++;
    group->mask = 0;
    while (warp.groups && !warp.group[warp.groups - 1].mask) warp.groups--;
}

// Returns the group with this mask, or a new one: a free entry among those in use, or the next entry.
EMU_UNTRACED inline Group *join_group(Warp &warp, unsigned mask, void (*run)(void **, unsigned),
                                      const Site &site) {
    Group *group = warp.group, *end = warp.group + warp.groups;
    while (group != end && group->mask != mask) group++;
    if (group == end) {
        for (group = warp.group; group != end && group->mask; group++) {
        }
        if (group == end) warp.groups++;
        group->mask = mask, group->arrived = 0, group->site = site, group->run = run;
    } else if (group->site.line != site.line || group->site.what != site.what) {
        fail("divergent warp: %s at %s:%d while other lanes of the mask %08x wait in %s at %s:%d", site.what,
             site.file, site.line, mask, group->site.what, group->site.file, group->site.line);
    }
    return group;
}

// Each lane passes a slot on its own stack; the last lane to arrive calls `run` with all of them. Exited lanes do not
// count. `aligned` is true for an instruction that needs the whole warp.
EMU_UNTRACED inline void warp_collective(unsigned mask, void *slot, void (*run)(void **, unsigned),
                                         const Site &site, bool aligned = false) {
    Worker &w = *worker;
    Warp &warp = w.warps[self->warp];
    if (!(mask >> self->lane & 1))
        fail("%s at %s:%d: the mask %08x lacks the calling lane", site.what, site.file, site.line, mask);
    if (aligned && warp.live != full_mask)
        fail("%s at %s:%d needs all 32 lanes of the warp", site.what, site.file, site.line);
    Group *group = join_group(warp, mask, run, site);
    group->slots[self->lane] = slot;
    group->arrived |= 1u << self->lane;
    if (group->arrived == (mask & warp.live))
        complete_group(w, warp, group);
    else
        wait(AT_COLLECTIVE, site);
}

// Called when a thread exits: completes collectives and barriers that waited only for it.
EMU_UNTRACED inline void leave_collectives() {
    Worker &w = *worker;
    Warp &warp = w.warps[self->warp];
    for (unsigned i = 0; i < warp.groups; i++) {
        Group &group = warp.group[i];
        if (group.mask && group.arrived == (group.mask & warp.live)) complete_group(w, warp, &group);
    }
    if (w.live && w.barriers[0].arrived == w.live) release_barrier(w, w.barriers[0]);
}

// ---- shuffles and votes -----------------------------------------------------------------------------------

template <class T> struct ShuffleSlot {
    T value;
    int source;
    T result;
    const Site *site;
};
template <class T> EMU_UNTRACED void run_shuffle(void **slots, unsigned lanes) {
    for (int lane = 0; lane < 32; lane++) {
        if (!(lanes >> lane & 1)) continue;
        auto *slot = static_cast<ShuffleSlot<T> *>(slots[lane]);
        if (!(lanes >> slot->source & 1))
            fail("%s at %s:%d: lane %d reads lane %d, which does not take part (lanes %08x do)",
                 slot->site->what, slot->site->file, slot->site->line, lane, slot->source, lanes);
        slot->result = static_cast<ShuffleSlot<T> *>(slots[slot->source])->value;
    }
}
template <class T>
EMU_UNTRACED __forceinline__ T shuffle(unsigned mask, T value, int source, int width, const Site &site) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("%s at %s:%d: the width %d is not a power of two up to 32", site.what, site.file, site.line,
             width);
    ShuffleSlot<T> slot{value, source, value, &site};
    warp_collective(mask, &slot, run_shuffle<T>, site);
    return slot.result;
}

struct VoteSlot {
    long long value;
    unsigned ballot;
    long long sum, minimum, maximum;
};
EMU_UNTRACED inline void run_vote(void **slots, unsigned lanes) {
    VoteSlot r{0, 0, 0, INT64_MAX, INT64_MIN};
    for (int lane = 0; lane < 32; lane++) {
        if (!(lanes >> lane & 1)) continue;
        long long value = static_cast<VoteSlot *>(slots[lane])->value;
        r.ballot |= unsigned(value != 0) << lane;
        r.sum += value;
        r.minimum = value < r.minimum ? value : r.minimum;
        r.maximum = value > r.maximum ? value : r.maximum;
    }
    for (int lane = 0; lane < 32; lane++)
        if (lanes >> lane & 1) *static_cast<VoteSlot *>(slots[lane]) = r;
}
EMU_UNTRACED inline VoteSlot vote(unsigned mask, long long value, Site site) {
    VoteSlot slot{value, 0, 0, 0, 0};
    warp_collective(mask, &slot, run_vote, site);
    return slot;
}
template <class T> VoteSlot reduce(unsigned mask, T value, Site site) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>,
                  "__reduce_*_sync takes 32-bit integers");
    return vote(mask, value, site);
}
} // namespace emulation

// ---- functions that kernels call --------------------------------------------------------------------------

inline void __syncthreads(EMU_CALLER) {
    emulation::sync_block(0, 0, 0, EMU_HERE("__syncthreads"));
}
inline int __syncthreads_count(int predicate, EMU_CALLER) {
    return emulation::sync_block(0, 0, predicate != 0, EMU_HERE("__syncthreads_count"));
}
inline int __syncthreads_or(int predicate, EMU_CALLER) {
    return emulation::sync_block(0, 0, predicate != 0, EMU_HERE("__syncthreads_or")) != 0;
}
inline int __syncthreads_and(int predicate, EMU_CALLER) {
    return emulation::sync_block(0, 0, predicate == 0, EMU_HERE("__syncthreads_and")) == 0;
}

// The only warp collective that orders memory accesses.
EMU_UNTRACED inline void __syncwarp(unsigned mask = emulation::full_mask, EMU_CALLER) {
    emulation::Warp &warp = emulation::worker->warps[emulation::self->warp];
    unsigned phase = warp.sync_phase, kind = mask == emulation::full_mask ? phase % 2 : 2;
    char *order = emulation::order_of_warp(*emulation::worker, emulation::self->warp, kind);
    emulation::release(order);
    emulation::warp_collective(mask, nullptr, nullptr, EMU_HERE("__syncwarp"));
    if (mask == emulation::full_mask && warp.sync_phase == phase) warp.sync_phase++;
    emulation::acquire(order);
}

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_CALLER) {
    int self = int(emulation::self->lane);
    return emulation::shuffle(mask, value, (self & ~(width - 1)) | (lane & (width - 1)), width,
                              EMU_HERE("__shfl_sync"));
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_CALLER) {
    int self = int(emulation::self->lane), position = self & (width - 1);
    int source = position >= int(delta) ? self - int(delta) : self;
    return emulation::shuffle(mask, value, source, width, EMU_HERE("__shfl_up_sync"));
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_CALLER) {
    int self = int(emulation::self->lane), position = self & (width - 1);
    int source = position + int(delta) < width ? self + int(delta) : self;
    return emulation::shuffle(mask, value, source, width, EMU_HERE("__shfl_down_sync"));
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_CALLER) {
    int self = int(emulation::self->lane), wanted = self ^ lanes, end = (self & ~(width - 1)) + width;
    return emulation::shuffle(mask, value, wanted < end ? wanted : self, width, EMU_HERE("__shfl_xor_sync"));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_CALLER) {
    return emulation::vote(mask, predicate != 0, EMU_HERE("__ballot_sync")).ballot;
}
inline int __any_sync(unsigned mask, int predicate, EMU_CALLER) {
    return emulation::vote(mask, predicate != 0, EMU_HERE("__any_sync")).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_CALLER) {
    return emulation::vote(mask, predicate == 0, EMU_HERE("__all_sync")).ballot == 0;
}
template <class T> T __reduce_add_sync(unsigned mask, T value, EMU_CALLER) {
    return T(emulation::reduce(mask, value, EMU_HERE("__reduce_add_sync")).sum);
}
template <class T> T __reduce_max_sync(unsigned mask, T value, EMU_CALLER) {
    return T(emulation::reduce(mask, value, EMU_HERE("__reduce_max_sync")).maximum);
}
template <class T> T __reduce_min_sync(unsigned mask, T value, EMU_CALLER) {
    return T(emulation::reduce(mask, value, EMU_HERE("__reduce_min_sync")).minimum);
}
