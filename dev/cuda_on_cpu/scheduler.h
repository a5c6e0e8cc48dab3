// Runs a grid: every CUDA thread of a block is a fiber, a block runs on one OS thread, and OpenMP, if enabled,
// distributes blocks over OS threads.
//
// A thread yields only inside a barrier, a warp collective or a polling loop, so the order of threads is determined
// here: it is index order by default, and shuffled if CUDA_EMULATION_SEED is not zero.
#pragma once
#include "fibers.h"
#include "language.h"
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace emulation {
constexpr unsigned max_threads = 1024, max_warps = 32, named_barriers = 16, full_mask = 0xffffffffu;
constexpr size_t max_shared = 227 << 10;    // bytes per block on sm_90
constexpr size_t shared_window = 256 << 10; // bytes of the address range of 32-bit shared addresses
constexpr size_t shared_alignment = 1024;   // alignment of dynamic shared memory
constexpr size_t guard_below_shared = 256;  // guard bytes below dynamic shared memory
constexpr unsigned max_copies = 128;        // maximum number of cp.async copies of a thread in flight
// A fiber that runs in two blocks orders them for the race detector, so consecutive blocks use different sets.
#ifdef EMU_TSAN
constexpr unsigned thread_sets = 2;
#else
constexpr unsigned thread_sets = 1;
#endif
// Rounds of polling without any progress after which a deadlock is reported: for the only running block, and for one
// that may be waiting for a block on another OS thread (every round then takes 0.1 ms).
constexpr uint64_t max_idle_polls_alone = 1000, max_idle_polls = 200000;

struct AsyncCopy {
    void *target;
    const void *source;
    unsigned group;
};

enum State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, POLLING, FINISHED };

struct Thread : Fiber { // one CUDA thread
    uint3 index;
    unsigned warp, lane;
    State state;
    Site site;   // the call in which it waits
    bool fenced; // has executed __threadfence(), so that its atomics now publish its writes
    AsyncCopy copies[max_copies];
    unsigned copy_count, copy_group;
};

struct Barrier {
    unsigned arrived, phase;
    Site site;
    int predicate, result;
    Thread *waiting[max_threads];
};

struct Group { // lanes of one warp that have reached a collective with the same mask
    unsigned mask, arrived;
    Site site;
    void (*run)(void **slots, unsigned lanes);
    void *slots[32];
};

struct Warp {
    unsigned live;   // mask of the lanes that have not exited
    unsigned groups; // number of entries of `group` in use; those with mask 0 are free
    Group group[32];
    unsigned sync_phase;  // number of __syncwarps of the whole warp so far
    unsigned outstanding; // number of wgmma operations not yet waited for
};

struct Worker { // the state of one OS thread, kept between launches
    Thread host, threads[thread_sets][max_threads];
    Thread *thread[max_threads]; // the fiber of CUDA thread i of the current block
    Thread *ready[max_threads], *polling[max_threads];
    unsigned ready_count, polling_count, live, block_threads;
    Warp warps[max_warps];
    Barrier barriers[named_barriers];
    char *window, *dynamic_base, *order;
    size_t dynamic_bytes;
    unsigned outstanding; // number of TMA copies not yet waited for
    void (*body)(const void *);
    const void *body_data;
    uint64_t random, switches, blocks_run;
    uint64_t progress;               // incremented by every event that can end a polling loop
    uint64_t polled_at, poll_rounds; // progress at the last round of polling; rounds without progress since
    bool polled_alone;               // no other block was running at the last round of polling
    bool uniform;                    // picks the next thread uniformly instead of letting one warp run ahead
    char block_start, block_end;     // addresses for the race detector
};
inline thread_local Worker *worker = nullptr;
inline thread_local Thread *self = nullptr;
inline uint64_t total_switches = 0, launches = 0;

EMU_UNTRACED inline bool in_kernel() {
    return self && self != &worker->host;
}

// ---- errors -----------------------------------------------------------------------------------------------

EMU_UNTRACED inline void print_thread() {
    if (in_kernel())
        fprintf(stderr, "  in block (%u,%u,%u) thread (%u,%u,%u) warp %u lane %u\n", blockIdx.x, blockIdx.y,
                blockIdx.z, self->index.x, self->index.y, self->index.z, self->warp, self->lane);
}

EMU_UNTRACED inline void vcomplain(const char *format, va_list arguments) {
    fflush(stdout);
    fprintf(stderr, "cuda emulation: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    print_thread();
}

[[noreturn]] __attribute__((format(printf, 1, 2))) EMU_UNTRACED inline void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vcomplain(format, arguments);
    va_end(arguments);
    abort();
}

// Reports a deadlock, with one line for each place at which threads of the block are.
[[noreturn]] EMU_UNTRACED inline void report_stuck(const char *why) {
    fflush(stdout);
    fprintf(stderr, "cuda emulation: %s in block (%u,%u,%u); threads are at:\n", why, blockIdx.x, blockIdx.y,
            blockIdx.z);
    // Values are the first thread and the number of threads.
    std::map<std::tuple<std::string, int, std::string>, std::pair<unsigned, unsigned>> places;
    for (unsigned i = 0; i < worker->block_threads; i++) {
        const Thread &t = *worker->thread[i];
        Site site = t.state == FINISHED ? Site{"(exited)", "", 0} : t.site;
        places.emplace(std::make_tuple(site.file, site.line, site.what), std::make_pair(i, 0u))
            .first->second.second++;
    }
    for (auto &[place, threads] : places)
        fprintf(stderr, "  %4u thread(s), first is %u: %s %s:%d\n", threads.second, threads.first,
                std::get<2>(place).c_str(), std::get<0>(place).c_str(), std::get<1>(place));
    abort();
}

// ---- addresses that identify barriers to the race detector ------------------------------------------------

// The addresses are in the inaccessible page before the window, and different for each set of threads. A barrier has
// one address for each parity of its phase.
EMU_UNTRACED inline char *order_of_barrier(const Worker &w, unsigned id, unsigned phase) {
    return w.order + (id * 2 + phase % 2) * 8;
}
// For __syncwarp of a whole warp, `kind` is the parity of its phase; kind 2 is for partial masks.
EMU_UNTRACED inline char *order_of_warp(const Worker &w, unsigned warp, unsigned kind) {
    return w.order + (named_barriers * 2 + warp * 3 + kind) * 8;
}

// ---- choosing the next thread -----------------------------------------------------------------------------

EMU_UNTRACED inline void switch_to(Thread *next) {
    Thread *previous = self;
    if (next == previous) return;
    self = next;
    threadIdx = next->index;
    worker->switches++;
    fiber_switch(*previous, *next);
}

EMU_UNTRACED inline void make_ready(Worker &w, Thread *thread) {
    thread->state = READY;
    w.ready[w.ready_count++] = thread;
}

EMU_UNTRACED inline void exchange(Thread *&a, Thread *&b) { // the race detector would instrument std::swap
    Thread *t = a;
    a = b;
    b = t;
}

EMU_UNTRACED inline void shuffle_ready(Worker &w, unsigned first) {
    if (!seed()) return;
    for (unsigned i = w.ready_count; i > first + 1; i--)
        exchange(w.ready[i - 1], w.ready[first + next_random(w.random) % (i - first)]);
}

inline unsigned blocks_under_way = 0;

EMU_UNTRACED inline void let_all_poll(Worker &w) {
    const bool alone = __atomic_load_n(&blocks_under_way, __ATOMIC_RELAXED) == 1;
    if (w.progress != w.polled_at || alone != w.polled_alone) w.poll_rounds = 0;
    if (w.poll_rounds++ > (alone ? max_idle_polls_alone : max_idle_polls))
        report_stuck("deadlock (threads spin for ever)");
    if (!alone && w.poll_rounds > 1) usleep(100); // yields the processor to the other block
    w.polled_alone = alone;
    w.polled_at = w.progress;
    while (w.polling_count) make_ready(w, w.polling[--w.polling_count]);
    shuffle_ready(w, 0);
}

// Returns the next thread, or NULL if none can run. Last in, first out lets one warp run ahead as far as it can; odd
// seeds pick uniformly instead.
EMU_UNTRACED inline Thread *pick(Worker &w) {
    if (!w.ready_count && w.polling_count) let_all_poll(w);
    if (!w.ready_count) return nullptr;
    if (w.uniform) exchange(w.ready[next_random(w.random) % w.ready_count], w.ready[w.ready_count - 1]);
    return w.ready[--w.ready_count];
}

EMU_UNTRACED inline void wait(State state, const Site &site) {
    self->state = state;
    self->site = site;
    Thread *next = pick(*worker);
    if (!next) report_stuck("deadlock");
    switch_to(next);
}

// Must be called in every loop that polls memory: otherwise the other threads would never run.
EMU_UNTRACED inline void spin(Site site) {
    worker->polling[worker->polling_count++] = self;
    wait(POLLING, site);
}

// ---- running threads, blocks and grids --------------------------------------------------------------------

void leave_collectives(); // sync.h

EMU_UNTRACED inline void thread_finished() {
    Worker &w = *worker;
    Warp &warp = w.warps[self->warp];
    if (self->copy_count) fail("a thread exits with cp.async copies that it has not waited for");
    release(&w.block_end);
    self->state = FINISHED;
    w.live--;
    w.progress++;
    warp.live &= ~(1u << self->lane);
    if (!warp.live && warp.outstanding) fail("a warp exits with wgmma operations that it has not waited for");
    leave_collectives();
    Thread *next = pick(w);
    if (!next && w.live) report_stuck("deadlock");
    switch_to(next ? next : &w.host);
}

EMU_UNTRACED inline void thread_main() {
    fiber_entered(worker->host);
    for (;;) {
        acquire(&worker->block_start);
        worker->body(worker->body_data);
        thread_finished();
    }
}

void prepare_for_faults(); // memory.h

EMU_UNTRACED inline Worker &this_worker() {
    if (worker) return *worker;
    worker = new Worker();
    Worker &w = *worker;
    void *mapping = mmap(nullptr, page + shared_window + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) fail("no memory for a block's shared memory");
    w.window = static_cast<char *>(mapping) + page;
    mprotect(w.window, shared_window, PROT_READ | PROT_WRITE);
    fiber_adopt(w.host);
    prepare_for_faults();
    return w;
}

// Fills dynamic shared memory with NaN and places it so that it ends, up to alignment, at an inaccessible page.
EMU_UNTRACED inline void prepare_shared_memory(Worker &w) {
    ASAN_UNPOISON_MEMORY_REGION(w.window, shared_window);
    size_t rounded = round_up(w.dynamic_bytes, shared_alignment);
    char *end = w.window + shared_window;
    w.dynamic_base = end - rounded;
    forget_last_block(w.dynamic_base, rounded);
    w.order = w.window - page + w.blocks_run % thread_sets * (page / 2);
    fill_undefined(w.dynamic_base, w.dynamic_bytes);
    guard_bytes(w.dynamic_base - guard_below_shared, w.dynamic_base);
    guard_bytes(w.dynamic_base + w.dynamic_bytes, end);
    ASAN_POISON_MEMORY_REGION(w.window, shared_window - rounded);
}

EMU_UNTRACED inline void check_shared_memory(const Worker &w) {
    const char *base = w.dynamic_base, *end = base + w.dynamic_bytes;
    const char *damage = first_damaged_guard(base - guard_below_shared, base);
    if (!damage) damage = first_damaged_guard(end, w.window + shared_window);
    if (damage)
        fail("block (%u,%u,%u) of the kernel launched at %s:%d wrote out of bounds, at offset %td of %zu "
             "bytes of dynamic "
             "shared memory",
             blockIdx.x, blockIdx.y, blockIdx.z, gridDim.file, gridDim.line, damage - base, w.dynamic_bytes);
}

EMU_UNTRACED inline void prepare_thread(Worker &w, unsigned i) {
    Thread &t = w.threads[w.blocks_run % thread_sets][i];
    if (!t.stack && !fiber_create(t, i, thread_main)) fail("no memory for the stack of a thread");
    w.thread[i] = &t;
    t.warp = i / 32;
    t.lane = i % 32;
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    t.fenced = false;
    t.copy_count = t.copy_group = 0;
    t.site = {"(not yet waited)", "", 0};
    make_ready(w, &t);
}

EMU_UNTRACED inline void run_block(Worker &w, uint3 block) {
    blockIdx = block;
    self = &w.host;
    prepare_shared_memory(w);
    w.live = w.block_threads;
    w.ready_count = w.polling_count = 0;
    for (Barrier &b : w.barriers) b.arrived = 0, b.predicate = 0;
    for (unsigned i = 0; i * 32 < w.block_threads; i++) {
        unsigned lanes = w.block_threads - i * 32;
        w.warps[i].groups = w.warps[i].outstanding = 0;
        w.warps[i].live = lanes >= 32 ? full_mask : (1u << lanes) - 1;
    }
    for (unsigned i = w.block_threads; i-- > 0;) prepare_thread(w, i);
    w.blocks_run++;
    shuffle_ready(w, 0);
    release(&w.block_start);
    __atomic_fetch_add(&blocks_under_way, 1, __ATOMIC_RELAXED);
    switch_to(pick(w));
    __atomic_fetch_sub(&blocks_under_way, 1, __ATOMIC_RELAXED);
    if (w.outstanding)
        fail("block (%u,%u,%u) ends with TMA copies that nobody has waited for", block.x, block.y, block.z);
    check_shared_memory(w);
}

inline std::vector<unsigned> block_order(size_t blocks, uint64_t launch) {
    std::vector<unsigned> order(blocks);
    for (size_t i = 0; i < blocks; i++) order[i] = unsigned(i);
    uint64_t state = seed() * 1000003 + launch;
    for (size_t i = blocks; seed() && i > 1; i--) std::swap(order[i - 1], order[next_random(state) % i]);
    return order;
}

EMU_UNTRACED inline void run_grid(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(const void *),
                                  const void *data) {
    const uint64_t launch = ++launches;
    const std::vector<unsigned> order = block_order(size_t(grid.x) * grid.y * grid.z, launch);
    const long blocks = long(order.size());
#if defined(_OPENMP) && !defined(EMU_TSAN) // ThreadSanitizer does not know OpenMP's barriers
#pragma omp parallel for schedule(dynamic)
#endif
    for (long i = 0; i < blocks; i++) {
        Worker &w = this_worker();
        unsigned b = order[i];
        w.random = (seed() << 32) ^ (launch << 20) ^ b;
        w.uniform = seed() % 2;
        w.block_threads = block.x * block.y * block.z;
        w.dynamic_bytes = dynamic_bytes;
        w.body = body;
        w.body_data = data;
        gridDim = grid, blockDim = block;
        uint64_t before = w.switches;
        run_block(w, {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)});
        __atomic_fetch_add(&total_switches, w.switches - before, __ATOMIC_RELAXED);
    }
    if (worker) acquire(&worker->block_end); // orders the host after all blocks, but no block after another
}
} // namespace emulation
