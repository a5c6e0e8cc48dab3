// __nv_bfloat16 and __half: rounding is to nearest even, arithmetic is done in float.
#pragma once
#include "intrinsics.h"

namespace emulation {
struct Bf16Format {
    static uint16_t pack(float x) {
        uint32_t bits = bit_cast<uint32_t>(x);
        if (x != x) return 0x7fff;
        return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static float unpack(uint16_t bits) { return bit_cast<float>(uint32_t(bits) << 16); }
};

struct HalfFormat {
    static uint16_t pack(float x) {
        uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000;
        bits &= 0x7fffffff;
        if (x != x) return 0x7fff;
        if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00); // rounds to infinity
        if (bits < 0x38800000) return uint16_t(sign | uint32_t(nearbyintf(fabsf(x) * 0x1p24f))); // subnormal
        return uint16_t(sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - 0x1c000));
    }
    static float unpack(uint16_t bits) {
        uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
        if (exponent == 31) return bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
        if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
        return bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    }
};

template <class Format> struct Narrow {
#if defined(EMU_TSAN) && !defined(__clang__)
    uint16_t bits = 0; // otherwise g++ guards the initialisation of __shared__ arrays, with reported races
#else
    uint16_t bits;
#endif
    Narrow() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
    Narrow(T x) : bits(Format::pack(float(x))) {}
    operator float() const {
        return Format::unpack(bits);
    }
    friend Narrow operator+(Narrow a, Narrow b) {
        return float(a) + float(b);
    }
    friend Narrow operator-(Narrow a, Narrow b) {
        return float(a) - float(b);
    }
    friend Narrow operator*(Narrow a, Narrow b) {
        return float(a) * float(b);
    }
    friend Narrow operator/(Narrow a, Narrow b) {
        return float(a) / float(b);
    }
    friend bool operator<(Narrow a, Narrow b) {
        return float(a) < float(b);
    }
    friend bool operator>(Narrow a, Narrow b) {
        return float(a) > float(b);
    }
    friend bool operator==(Narrow a, Narrow b) {
        return float(a) == float(b);
    }
    friend bool operator!=(Narrow a, Narrow b) {
        return float(a) != float(b);
    }
    Narrow operator-() const {
        return -float(*this);
    }
    Narrow &operator+=(Narrow b) {
        return *this = *this + b;
    }
    Narrow &operator-=(Narrow b) {
        return *this = *this - b;
    }
    Narrow &operator*=(Narrow b) {
        return *this = *this * b;
    }
};

template <class T> struct alignas(4) Pair {
    T x, y;
    friend Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair operator-(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
};
} // namespace emulation

using __nv_bfloat16 = emulation::Narrow<emulation::Bf16Format>;
using __nv_bfloat162 = emulation::Pair<__nv_bfloat16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using __half = emulation::Narrow<emulation::HalfFormat>;
using __half2 = emulation::Pair<__half>;
using half = __half;
using half2 = __half2;

inline __nv_bfloat16 __float2bfloat16(float x) {
    return x;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    return x;
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return x;
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) {
    return {x, x};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {x, y};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return {v.x, v.y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return {v.x, v.y};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) {
    return {x, x};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}
inline __half __float2half(float x) {
    return x;
}
inline __half __float2half_rn(float x) {
    return x;
}
inline float __half2float(__half x) {
    return x;
}
inline __half2 __floats2half2_rn(float x, float y) {
    return {x, y};
}
inline float2 __half22float2(__half2 v) {
    return {v.x, v.y};
}
inline unsigned short __half_as_ushort(__half x) {
    return x.bits;
}

template <class F> emulation::Narrow<F> __hadd(emulation::Narrow<F> a, emulation::Narrow<F> b) {
    return a + b;
}
template <class F> emulation::Narrow<F> __hsub(emulation::Narrow<F> a, emulation::Narrow<F> b) {
    return a - b;
}
template <class F> emulation::Narrow<F> __hmul(emulation::Narrow<F> a, emulation::Narrow<F> b) {
    return a * b;
}
template <class F>
emulation::Narrow<F> __hfma(emulation::Narrow<F> a, emulation::Narrow<F> b, emulation::Narrow<F> c) {
    return fmaf(a, b, c);
}
template <class F> emulation::Narrow<F> __hmax(emulation::Narrow<F> a, emulation::Narrow<F> b) {
    return fmaxf(a, b);
}
template <class F> emulation::Narrow<F> __hmin(emulation::Narrow<F> a, emulation::Narrow<F> b) {
    return fminf(a, b);
}
template <class F> bool __hisnan(emulation::Narrow<F> a) {
    return float(a) != float(a);
}
template <class T> emulation::Pair<T> __hadd2(emulation::Pair<T> a, emulation::Pair<T> b) {
    return a + b;
}
template <class T> emulation::Pair<T> __hmul2(emulation::Pair<T> a, emulation::Pair<T> b) {
    return a * b;
}
template <class T>
emulation::Pair<T> __hfma2(emulation::Pair<T> a, emulation::Pair<T> b, emulation::Pair<T> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class T> float __low2float(emulation::Pair<T> v) {
    return v.x;
}
template <class T> float __high2float(emulation::Pair<T> v) {
    return v.y;
}
