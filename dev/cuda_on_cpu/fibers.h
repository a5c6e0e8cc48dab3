// Fibers: threads of control with their own stacks that switch only explicitly, in about 10 ns.
#pragma once
#include "platform.h"

namespace emulation {
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
// Saves the callee-saved registers, switches stacks and jumps. It uses `pop; jmp` instead of `ret`, because a `ret` to
// another fiber is always mispredicted. The symbol is weak, because several translation units may define it.
asm(R"(
.pushsection .text
.weak emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  pop %rcx
  jmp *%rcx
.size emu_switch_stack, .-emu_switch_stack
.popsection
)");
extern "C" void emu_switch_stack(void **save, void *load);
using Context = void *;
EMU_UNTRACED inline void context_switch(Context &from, Context &to) {
    emu_switch_stack(&from, to);
}
EMU_UNTRACED inline void context_create(Context &context, char *, char *top, void (*entry)()) {
    auto *sp = reinterpret_cast<uint64_t *>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
    *--sp = 0; // keeps the stack of the entry function 16-byte aligned, as the ABI requires
    *--sp = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; i++) *--sp = 0;
    context = sp;
}
#else
} // namespace emulation
#include <ucontext.h>
namespace emulation {
using Context = ucontext_t;
EMU_UNTRACED inline void context_switch(Context &from, Context &to) {
    swapcontext(&from, &to);
}
EMU_UNTRACED inline void context_create(Context &context, char *bottom, char *top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = top - bottom;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

#if defined(EMU_ASAN) || defined(EMU_TSAN) || !defined(__OPTIMIZE__)
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

// Bytes of the inaccessible region below every stack. It is an odd number of pages, because stacks a power of two apart
// would share cache sets.
constexpr size_t stack_guard = (64 << 10) + page;

struct Fiber {
    Context context;
    char *stack = nullptr;                       // mapping: stack_guard, then stack_bytes
    void *tsan = nullptr, *fake_stack = nullptr; // handles of the sanitizers
    const void *bottom = nullptr;                // bottom of the stack in use, for AddressSanitizer
    size_t size = 0;                             // bytes of the stack in use
    bool owns(const char *address) const {
        return stack && address >= stack && address < stack + stack_guard + stack_bytes;
    }
};

// Returns false if there is no memory. `number` staggers the stacks: at equal offsets they would all share the same few
// cache sets.
EMU_UNTRACED inline bool fiber_create(Fiber &fiber, unsigned number, void (*entry)()) {
    size_t bytes = stack_guard + stack_bytes;
    void *mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                         -1, 0);
    if (mapping == MAP_FAILED) return false;
    fiber.stack = static_cast<char *>(mapping);
    mprotect(fiber.stack, stack_guard, PROT_NONE);
    fiber.bottom = fiber.stack + stack_guard;
    fiber.size = stack_bytes;
    VALGRIND_STACK_REGISTER(fiber.bottom, fiber.stack + bytes);
    context_create(fiber.context, fiber.stack + stack_guard, fiber.stack + bytes - number % 16 * 272, entry);
#ifdef EMU_TSAN
    fiber.tsan = __tsan_create_fiber(0);
#endif
    return true;
}

// Makes the stack of the calling OS thread a fiber, so that other fibers can switch back to it.
EMU_UNTRACED inline void fiber_adopt(Fiber &fiber) {
#ifdef EMU_TSAN
    fiber.tsan = __tsan_get_current_fiber();
#endif
    (void)fiber;
}

EMU_UNTRACED inline void fiber_switch(Fiber &from, Fiber &to) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(to.tsan, 1); // 1: switching does not order the fibers' memory accesses
#endif
    context_switch(from.context, to.context);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Must be the first call in the entry function of a fiber. `host` is the fiber that started it.
EMU_UNTRACED inline void fiber_entered(Fiber &host) {
#ifdef EMU_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!host.bottom) host.bottom = bottom, host.size = size;
#endif
    (void)host;
}
} // namespace emulation
