// Interface to compiler, sanitizers and valgrind; source locations of errors.
//
// A Site is the source line of a call. The parameter lists of functions that emulate a CUDA call end with EMU_CALLER,
// whose default arguments are the file and line of the caller, so that every message names a line of the kernel.
#pragma once
#define CUDA_EMULATION 1
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define EMU_TSAN 1
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void *, unsigned);
void __tsan_acquire(void *);
void __tsan_release(void *);
void __tsan_java_init(uintptr_t begin, uintptr_t bytes);
void __tsan_java_alloc(uintptr_t begin, uintptr_t bytes);
void __tsan_java_free(uintptr_t begin, uintptr_t bytes);
}
#endif
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_STACK_REGISTER(begin, end)
#define VALGRIND_MAKE_MEM_UNDEFINED(begin, bytes)
#endif

#define EMU_UNTRACED   __attribute__((no_sanitize("thread"))) // races on data of the emulator do not count
#define EMU_CALLER     const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_HERE(what) (emulation::Site{what, file, line})

namespace emulation {

struct Site {
    const char *what, *file;
    int line;
};

constexpr size_t page = 4096;
inline size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// A nonzero seed shuffles the order of threads and blocks and makes asynchronous work complete at random times.
EMU_UNTRACED inline uint64_t seed() {
    static const uint64_t value = [] {
        const char *text = getenv("CUDA_EMULATION_SEED");
        return text ? strtoull(text, nullptr, 10) : 0;
    }();
    return value;
}

EMU_UNTRACED inline uint64_t next_random(uint64_t &state) { // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// ---- the executable itself --------------------------------------------------------------------------------

struct Executable {
    uintptr_t loaded_at; // its load address
    char *tls;           // the calling thread's copy of its thread_local variables, such as __shared__ arrays
    size_t tls_bytes;
};
EMU_UNTRACED inline const Executable &executable() {
    static thread_local Executable found = {0, nullptr, 0};
    static thread_local bool known = false;
    if (known) return found;
    known = true;
    auto visit = [](dl_phdr_info *info, size_t, void *) {
        found.loaded_at = info->dlpi_addr;
        found.tls = static_cast<char *>(info->dlpi_tls_data);
        for (int i = 0; i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_TLS) found.tls_bytes = info->dlpi_phdr[i].p_memsz;
        return 1; // the first object is the executable
    };
    dl_iterate_phdr(visit, nullptr);
    return found;
}

// Prints "function at file:line" for an address in the program, if addr2line and debug information are available.
inline void print_source_of(uintptr_t code) {
    char command[200];
    snprintf(command, sizeof command, "addr2line -Cfpe /proc/%d/exe 0x%zx 2>/dev/null", int(getpid()),
             size_t(code - executable().loaded_at));
    fflush(stderr);
    FILE *pipe = popen(command, "r");
    char text[500];
    while (pipe && fgets(text, sizeof text, pipe))
        if (text[0] != '?') fprintf(stderr, "  in %s", text);
    if (pipe) pclose(pipe);
}

// ---- memory contents --------------------------------------------------------------------------------------

// Fills fresh memory with NaN and marks it as uninitialised for valgrind.
inline void fill_undefined(void *begin, size_t bytes) {
    memset(begin, 0xff, bytes);
    VALGRIND_MAKE_MEM_UNDEFINED(begin, bytes);
}

// Guard bytes must not be accessed: they are poisoned for AddressSanitizer, and otherwise filled with a pattern (NaN as
// fp32 and as bf16) that is checked later.
constexpr unsigned char guard_pattern[2] = {0xc1, 0x7f};
EMU_UNTRACED inline void guard_bytes(char *begin, const char *end) {
    for (char *p = begin; p != end; p++) *p = char(guard_pattern[reinterpret_cast<uintptr_t>(p) % 2]);
    ASAN_POISON_MEMORY_REGION(begin, end - begin);
}
#ifdef EMU_ASAN
inline const char *first_damaged_guard(const char *, const char *) {
    return nullptr;
}
#else
EMU_UNTRACED inline const char *first_damaged_guard(const char *begin, const char *end) {
    for (const char *p = begin; p != end; p++)
        if (*p != char(guard_pattern[reinterpret_cast<uintptr_t>(p) % 2])) return p;
    return nullptr;
}
#endif

// ---- order between fibers, as the race detector sees it ---------------------------------------------------

// Every fiber is a thread for ThreadSanitizer; only synchronisation between CUDA threads orders them.
#ifdef EMU_TSAN
inline void acquire(void *p) {
    __tsan_acquire(p);
}
inline void release(void *p) {
    __tsan_release(p);
}
// Makes the race detector forget the last block's accesses to shared memory: the next block gets fresh shared memory,
// but nothing orders the two.
EMU_UNTRACED inline void forget_range(char *begin, size_t bytes) {
    if (!bytes) return;
    uintptr_t first = reinterpret_cast<uintptr_t>(begin) / 8 * 8,
              end = reinterpret_cast<uintptr_t>(begin) + bytes;
    __tsan_java_free(first, round_up(end - first, 8));  // synchronisation
    __tsan_java_alloc(first, round_up(end - first, 8)); // accesses
}
EMU_UNTRACED inline void forget_last_block(char *begin, size_t bytes) {
    static bool initialised = false;
    if (!initialised) __tsan_java_init(0x7e8000000000, 0x017ffffff000); // all addresses to forget are inside
    initialised = true;
    forget_range(executable().tls, executable().tls_bytes); // __shared__ arrays
    forget_range(begin, bytes);
}
#else
inline void acquire(void *) {}
inline void release(void *) {}
inline void forget_last_block(char *, size_t) {}
#endif
} // namespace emulation
