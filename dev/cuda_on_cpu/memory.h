// Device memory and pinned host memory, and the detection of invalid accesses to them.
//
// An allocation has its own pages between two inaccessible pages, and ends (up to CUDA's alignment of 256 bytes) where
// the second one begins. All device memory is inaccessible except while a kernel that uses it runs or the host API
// copies from or to it: host code that dereferences a device pointer faults. Launching a kernel opens the allocations
// that its arguments point into; others that it accesses are opened by the fault handler.
#pragma once
#include "scheduler.h"
#include <atomic>
#include <csignal>
#include <map>
#include <mutex>
#include <ucontext.h>

namespace emulation {
constexpr size_t device_alignment = 256;
// Allocations of at least huge_from bytes use huge pages: the cost of opening and closing is per page table entry.
constexpr size_t huge_page = 2 << 20, huge_from = 1 << 20;

struct Allocation {
    char *start, *body, *end, *mapping; // body: first accessible byte; end: first inaccessible one
    size_t bytes, mapped;
    bool pinned;
    Site site; // the call that allocated it
    std::atomic<bool> open;
    bool holds(const void *p) const { return p >= body && p < end; }
    ptrdiff_t offset(const void *p) const { return static_cast<const char *>(p) - start; }
};

struct Memory {
    std::map<uintptr_t, Allocation> allocations; // keys are addresses of mappings
    size_t used = 0;
    std::recursive_mutex mutex; // held by every call of the host API
};
inline Memory memory;

// Returns the allocation whose mapping, including inaccessible pages, contains this address, or NULL.
EMU_UNTRACED inline Allocation *find_mapping(const void *p) {
    auto next = memory.allocations.upper_bound(reinterpret_cast<uintptr_t>(p));
    if (next == memory.allocations.begin()) return nullptr;
    Allocation &a = std::prev(next)->second;
    return p < a.mapping + a.mapped ? &a : nullptr;
}
// Returns the allocation that a pointer points into, or to one past its end as in C, or NULL.
EMU_UNTRACED inline Allocation *find_allocation(const void *p) {
    Allocation *a = find_mapping(p);
    return a && p >= a->start && p <= a->start + a->bytes ? a : nullptr;
}

EMU_UNTRACED inline void open(Allocation &a) {
    if (!a.open.exchange(true) && mprotect(a.body, a.end - a.body, PROT_READ | PROT_WRITE)) abort();
}

EMU_UNTRACED inline void check_guards(const Allocation &a, const char *who) {
    const char *watched = std::max(a.body, a.start - page);
    const char *damage = first_damaged_guard(watched, a.start);
    if (!damage) damage = first_damaged_guard(a.start + a.bytes, a.end);
    if (damage)
        fail("%s wrote out of bounds, at offset %td of an allocation of %zu bytes (%s at %s:%d)", who,
             a.offset(damage), a.bytes, a.site.what, a.site.file, a.site.line);
}

EMU_UNTRACED inline void close(Allocation &a) {
    if (a.pinned || !a.open.exchange(false)) return;
    if (mprotect(a.body, a.end - a.body, PROT_NONE)) abort();
}

// Opens an allocation to the host API during the lifetime of the object.
struct Opened {
    Allocation *allocation;
    explicit Opened(const void *p) : allocation(find_allocation(p)) {
        if (allocation) open(*allocation);
    }
    ~Opened() {
        if (allocation) close(*allocation);
    }
    Opened(const Opened &) = delete;
};

// Called after a kernel: checks the guards of all device memory that it used and closes it.
EMU_UNTRACED inline void close_all(const char *kernel) {
    for (auto &[key, a] : memory.allocations) {
        if (a.pinned || !a.open) continue;
        check_guards(a, kernel);
        close(a);
    }
}

// ---- allocation -------------------------------------------------------------------------------------------

inline size_t memory_limit() {
    static const size_t value = [] {
        const char *text = getenv("CUDA_EMULATION_MEMORY");
        return text ? size_t(strtoull(text, nullptr, 10)) : size_t(8) << 30;
    }();
    return value;
}

// Returns NULL if there is not enough memory.
inline void *allocate(size_t bytes, bool pinned, Site site) {
    if (!pinned && (bytes > memory_limit() || memory.used > memory_limit() - bytes)) return nullptr;
    size_t unit = bytes >= huge_from ? huge_page : page;
    size_t size = round_up(bytes, device_alignment), body_size = round_up(size, unit);
    size_t mapped = page + body_size + (unit - page) + page; // unit - page: to align the body to the unit
    void *mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    char *begin = static_cast<char *>(mapping);
    char *body = reinterpret_cast<char *>(round_up(reinterpret_cast<uintptr_t>(begin + page), unit));
    if (mprotect(body, body_size, PROT_READ | PROT_WRITE)) return munmap(begin, mapped), nullptr;
    if (unit == huge_page) madvise(body, body_size, MADV_HUGEPAGE);
    Allocation &a = memory.allocations[reinterpret_cast<uintptr_t>(begin)];
    a.start = body + body_size - size, a.body = body, a.end = body + body_size, a.mapping = begin;
    a.bytes = bytes, a.mapped = mapped, a.pinned = pinned, a.site = site, a.open = true;
    memory.used += pinned ? 0 : bytes;
    fill_undefined(a.start, bytes);
    guard_bytes(std::max(a.body, a.start - page), a.start);
    guard_bytes(a.start + bytes, a.end);
    close(a);
    return a.start;
}

inline void release_memory(void *p, bool pinned, Site site) {
    Allocation *a = find_mapping(p);
    if (!a || p != a->start || a->pinned != pinned)
        fail("%s at %s:%d: %p was not allocated, or is freed twice, or with the wrong function", site.what,
             site.file, site.line, p);
    open(*a);
    check_guards(*a, pinned ? "the host" : "a copy");
    ASAN_UNPOISON_MEMORY_REGION(a->body, a->end - a->body);
    memory.used -= pinned ? 0 : a->bytes;
    munmap(a->mapping, a->mapped);
    memory.allocations.erase(reinterpret_cast<uintptr_t>(a->mapping));
}

// ---- shared memory, as addresses --------------------------------------------------------------------------

EMU_UNTRACED inline bool is_shared(const void *p, size_t bytes) {
    auto inside = [&](const char *begin, size_t size) {
        size_t offset = static_cast<const char *>(p) - begin;
        return offset < size && bytes <= size - offset;
    };
    const Executable &e = executable();
    return inside(worker->dynamic_base, worker->dynamic_bytes) || inside(e.tls, e.tls_bytes);
}
EMU_UNTRACED inline void check_shared(const void *p, size_t bytes, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % bytes)
        fail("%s at %s:%d: the shared address %p is not aligned to %zu bytes", site.what, site.file,
             site.line, p, bytes);
    if (!is_shared(p, bytes))
        fail("%s at %s:%d: the address %p is not in shared memory (offset %td of %zu bytes of dynamic shared "
             "memory)",
             site.what, site.file, site.line, p, static_cast<const char *>(p) - worker->dynamic_base,
             worker->dynamic_bytes);
}

// ---- faults -----------------------------------------------------------------------------------------------

inline struct sigaction previous_handlers[2]; // for SIGSEGV and SIGBUS

__attribute__((format(printf, 1, 2))) EMU_UNTRACED inline void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vcomplain(format, arguments);
    va_end(arguments);
}

EMU_UNTRACED inline void explain_kernel_fault(const char *address, const Allocation *a) {
    const char *window = worker->window;
    if (a && address >= a->start)
        complain("out of bounds: a kernel touched %p, %td bytes past the end of an allocation of %zu bytes "
                 "(%s at %s:%d)",
                 address, a->offset(address) - ptrdiff_t(a->bytes), a->bytes, a->site.what, a->site.file,
                 a->site.line);
    else if (a)
        complain(
            "out of bounds: a kernel touched %p, %td bytes before an allocation of %zu bytes (%s at %s:%d)",
            address, -a->offset(address), a->bytes, a->site.what, a->site.file, a->site.line);
    else if (address >= window - page && address < window + shared_window + page)
        complain("out of bounds: a kernel touched offset %td of %zu bytes of dynamic shared memory",
                 address - worker->dynamic_base, worker->dynamic_bytes);
    else if (self->owns(address))
        complain("stack overflow: local variables of a thread take more than %zu KB", stack_bytes >> 10);
    else
        complain("a kernel touched %p, which is not device memory", address);
    if (self->site.line)
        fprintf(stderr, "  which last waited in %s at %s:%d\n", self->site.what, self->site.file,
                self->site.line);
}

EMU_UNTRACED inline void on_fault(int number, siginfo_t *info, void *context) {
    const char *address = static_cast<char *>(info->si_addr);
    Allocation *a = find_mapping(address);
    if (in_kernel() && a && a->holds(address)) return open(*a);
    if (in_kernel())
        explain_kernel_fault(address, a);
    else if (a)
        complain("the host touched %s memory at %p, %td bytes into an allocation of %zu bytes (%s at %s:%d)",
                 a->pinned ? "pinned" : "device", address, a->offset(address), a->bytes, a->site.what,
                 a->site.file, a->site.line);
#if defined(__x86_64__) && defined(REG_RIP)
    if (in_kernel() || a) print_source_of(static_cast<ucontext_t *>(context)->uc_mcontext.gregs[REG_RIP]);
#endif
    sigaction(number, &previous_handlers[number == SIGBUS], nullptr);
    if (number == SIGSEGV && previous_handlers[0].sa_flags & SA_SIGINFO && previous_handlers[0].sa_sigaction)
        return previous_handlers[0].sa_sigaction(number, info, context);
    if (in_kernel() || a) abort();
} // returning repeats the access, now with the previous handler

EMU_UNTRACED inline void install_fault_handlers() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_handlers[0]);
    sigaction(SIGBUS, &action, &previous_handlers[1]);
#ifdef EMU_ASAN // its reports do not name the CUDA thread
    __sanitizer_set_death_callback([] {
        if (in_kernel()) fprintf(stderr, "cuda emulation: this was found\n"), print_thread();
    });
#endif
}

// Must be called in every OS thread that can fault: the handler needs its own stack, since that of a fiber may have
// overflowed.
EMU_UNTRACED inline void prepare_for_faults() {
    static std::once_flag once;
    std::call_once(once, install_fault_handlers);
    static thread_local bool prepared = false;
    stack_t current;
    if (prepared || (sigaltstack(nullptr, &current) == 0 && !(current.ss_flags & SS_DISABLE))) return;
    prepared = true;
    static thread_local char *stack = new char[64 << 10];
    current.ss_sp = stack, current.ss_size = 64 << 10, current.ss_flags = 0;
    sigaltstack(&current, nullptr);
}
} // namespace emulation

inline size_t __cvta_generic_to_shared(const void *p) {
    size_t offset = static_cast<const char *>(p) - emulation::worker->window;
    if (offset >= emulation::shared_window) emulation::fail("address %p is not in dynamic shared memory", p);
    return offset;
}
