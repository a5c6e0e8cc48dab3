// CUDA's keywords, vector types and built-in variables.
#pragma once
#include "platform.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
// A block runs on one OS thread. Like CUDA, and unlike thread_local, `__thread` allows no constructors.
#define __shared__      static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
// Dynamic shared memory, 1024-byte aligned. With nvcc, layers/ptx.h defines the same macro.
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulation::worker->dynamic_base)

#define EMU_VECTOR(T, name, alignment4)                                                                      \
    struct name##1 {                                                                                         \
        T x;                                                                                                 \
    };                                                                                                       \
    struct alignas(2 * sizeof(T)) name##2 {                                                                  \
        T x, y;                                                                                              \
    };                                                                                                       \
    struct name##3 {                                                                                         \
        T x, y, z;                                                                                           \
    };                                                                                                       \
    struct alignas(alignment4) name##4 {                                                                     \
        T x, y, z, w;                                                                                        \
    };                                                                                                       \
    constexpr name##1 make_##name##1(T x) {                                                                  \
        return {x};                                                                                          \
    }                                                                                                        \
    constexpr name##2 make_##name##2(T x, T y) {                                                             \
        return {x, y};                                                                                       \
    }                                                                                                        \
    constexpr name##3 make_##name##3(T x, T y, T z) {                                                        \
        return {x, y, z};                                                                                    \
    }                                                                                                        \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) {                                                   \
        return {x, y, z, w};                                                                                 \
    }
EMU_VECTOR(signed char, char, 4)
EMU_VECTOR(unsigned char, uchar, 4)
EMU_VECTOR(short, short, 8)
EMU_VECTOR(unsigned short, ushort, 8)
EMU_VECTOR(int, int, 16)
EMU_VECTOR(unsigned, uint, 16)
EMU_VECTOR(long long, longlong, 16)
EMU_VECTOR(unsigned long long, ulonglong, 16)
EMU_VECTOR(float, float, 16)
EMU_VECTOR(double, double, 16)
#undef EMU_VECTOR

// Stores the source location of its construction, which messages show as the place of the launch.
struct dim3 {
    unsigned x, y, z;
    const char *file;
    int line;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1, EMU_CALLER)
        : x(x), y(y), z(z), file(file), line(line) {}
    constexpr dim3(uint3 v, EMU_CALLER) : x(v.x), y(v.y), z(v.z), file(file), line(line) {}
};

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;
