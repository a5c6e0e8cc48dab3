// Cached loads and stores, fences, atomics, and arithmetic.
//
// Atomics are relaxed, as on a GPU, until the thread has executed __threadfence(); after that they also publish its
// earlier writes. So a race detector notices a missing fence, and conflicting accesses of blocks that share an atomic
// but are not ordered by it.
#pragma once
#include "scheduler.h"
#include <algorithm>
#include <cmath>
#include <type_traits>

template <class T> T __ldg(const T *p) {
    return *p;
}
template <class T> T __ldcs(const T *p) {
    return *p;
}
template <class T> T __ldcg(const T *p) {
    return *p;
}
template <class T> T __ldca(const T *p) {
    return *p;
}
template <class T> void __stcs(T *p, T value) {
    *p = value;
}
template <class T> void __stcg(T *p, T value) {
    *p = value;
}
template <class T> void __stwt(T *p, T value) {
    *p = value;
}

EMU_UNTRACED inline void __threadfence() {
    emulation::self->fenced = true;
}
EMU_UNTRACED inline void __threadfence_block() {
    emulation::self->fenced = true;
}
EMU_UNTRACED inline void __threadfence_system() {
    emulation::self->fenced = true;
}

namespace emulation {
#ifdef EMU_TSAN
constexpr int atomic_order = __ATOMIC_RELAXED; // ordering is expressed by acquire and release
#else
constexpr int atomic_order = __ATOMIC_ACQ_REL;
#endif
template <class T, class Update> T atomic_update(T *p, Update update) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "an atomic is 2, 4 or 8 bytes");
    using Wide = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, Wide>;
    Bits *bits = reinterpret_cast<Bits *>(p), seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
    T old;
    acquire(p);
    do {
        memcpy(&old, &seen, sizeof(T));
        T next = update(old);
        memcpy(&wanted, &next, sizeof(T));
    } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, atomic_order, __ATOMIC_RELAXED));
    if (!in_kernel() || self->fenced) release(p);
    return old;
}
template <class T> using Plain = std::common_type_t<T>; // not deduced, so atomicAdd(&unsigned_value, 1) works
template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emulation

template <class T> T atomicAdd(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return T(old + v); });
}
template <class T> T atomicSub(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return T(old - v); });
}
template <class T> T atomicMax(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return old < v ? v : old; });
}
template <class T> T atomicMin(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return v < old ? v : old; });
}
template <class T> T atomicOr(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return T(old | v); });
}
template <class T> T atomicAnd(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return T(old & v); });
}
template <class T> T atomicXor(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return T(old ^ v); });
}
template <class T> T atomicExch(T *p, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T) { return v; });
}
template <class T> T atomicCAS(T *p, emulation::Plain<T> compare, emulation::Plain<T> v) {
    return emulation::atomic_update(p, [&](T old) { return old == compare ? v : old; });
}
inline unsigned atomicInc(unsigned *p, unsigned limit) {
    return emulation::atomic_update(p, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}
inline unsigned atomicDec(unsigned *p, unsigned limit) {
    return emulation::atomic_update(p,
                                    [&](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}

// ---- floating point ---------------------------------------------------------------------------------------

using std::max;
using std::min;
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __expf(float x) {
    return expf(x);
}
inline float __logf(float x) {
    return logf(x);
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __powf(float x, float y) {
    return powf(x, y);
}
inline float __sinf(float x) {
    return sinf(x);
}
inline float __cosf(float x) {
    return cosf(x);
}
inline float __tanf(float x) {
    return tanf(x);
}
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fdiv_rn(float x, float y) {
    return x / y;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __frsqrt_rn(float x) {
    return rsqrtf(x);
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1) : 0;
}
inline int __float2int_rn(float x) {
    return int(nearbyintf(x));
}
inline float __int2float_rn(int x) {
    return float(x);
}
inline float __uint2float_rn(unsigned x) {
    return float(x);
}
inline int __float_as_int(float x) {
    return emulation::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return emulation::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
    return emulation::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return emulation::bit_cast<float>(x);
}

// ---- integers ---------------------------------------------------------------------------------------------

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz(unsigned(x)) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll(uint64_t(x)) : 64;
}
inline int __mulhi(int a, int b) {
    return int(int64_t(a) * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned(uint64_t(a) * b >> 32);
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

[[noreturn]] inline void __trap(EMU_CALLER) {
    emulation::fail("__trap at %s:%d", file, line);
}
inline void __nanosleep(unsigned, EMU_CALLER) {
    emulation::spin(EMU_HERE("__nanosleep"));
}
