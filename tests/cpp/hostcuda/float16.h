// The two 16-bit floating-point formats for the host executor. One rounding, to nearest even, from the exact result;
// NaN becomes 0x7fff as on the device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "warp.h"

namespace hostcuda {

// Bits of the nearest value with `mantissa` stored bits and exponent bias `bias`.
constexpr uint16_t round_float16(double x, int mantissa, int bias) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const uint64_t sign = bits >> 63 << 15;
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  const uint64_t infinity = (uint64_t(2 * bias + 1) << mantissa);
  if (exponent == 1024) return static_cast<uint16_t>((bits & 0xfffffffffffffull) != 0 ? 0x7fff : sign | infinity);
  const uint64_t significand = (bits & 0xfffffffffffffull) | 1ull << 52;
  // A subnormal result has a fixed quantum, so it drops more bits the smaller it is.
  const int below_normal = exponent < 1 - bias ? 1 - bias - exponent : 0;
  const int dropped = 52 - mantissa + below_normal;
  if (dropped > 53) return static_cast<uint16_t>(sign);
  const uint64_t base = below_normal ? 0 : uint64_t(exponent + bias - 1) << mantissa;
  const uint64_t half = 1ull << (dropped - 1), rest = significand & (2 * half - 1);
  uint64_t kept = significand >> dropped;
  kept += rest > half || (rest == half && (kept & 1));
  return static_cast<uint16_t>(sign | (base + kept < infinity ? base + kept : infinity));  // a carry moves the exponent
}

// a * b + c for 16-bit a, b, c, to odd in float64, so that the rounding to 16 bits is the only one that shows.
inline double fused(double a, double b, double c) {
  const double product = a * b, sum = product + c;  // the product is exact
  const double back = sum - product, error = (product - (sum - back)) + (c - back);
  const uint64_t bits = std::bit_cast<uint64_t>(sum);
  if (!(error != 0) || !std::isfinite(sum) || (bits & 1)) return sum;
  return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

template <int kMantissa, int kBias>
struct Float16 {
  uint16_t bits;

  Float16() = default;
  template <class T>
    requires std::is_arithmetic_v<T>
  constexpr Float16(T x) : bits(round_float16(static_cast<double>(x), kMantissa, kBias)) {}
  static constexpr Float16 from_bits(uint16_t bits) {
    Float16 r{};
    r.bits = bits;
    return r;
  }

  constexpr operator float() const {
    if constexpr (kMantissa == 7) return std::bit_cast<float>(uint32_t(bits) << 16);
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return std::bit_cast<float>(fraction ? 0x7fffffffu : sign | 0x7f800000u);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (static_cast<float>(fraction) * 0x1p-24f);
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  }

  // float64 holds sums and products of two such numbers exactly, or far enough for a single rounding.
  friend Float16 operator+(Float16 a, Float16 b) { return fused(1.0, float(a), float(b)); }
  friend Float16 operator-(Float16 a, Float16 b) { return fused(1.0, float(a), -float(b)); }
  friend Float16 operator*(Float16 a, Float16 b) { return double(float(a)) * float(b); }
  friend Float16 operator/(Float16 a, Float16 b) { return double(float(a)) / float(b); }
  Float16 operator-() const { return *this != *this ? from_bits(0x7fff) : from_bits(bits ^ 0x8000); }
  Float16 operator+() const { return *this; }
  Float16& operator+=(Float16 b) { return *this = *this + b; }
  Float16& operator-=(Float16 b) { return *this = *this - b; }
  Float16& operator*=(Float16 b) { return *this = *this * b; }
  Float16& operator/=(Float16 b) { return *this = *this / b; }
  friend bool operator==(Float16 a, Float16 b) { return float(a) == float(b); }
  friend bool operator!=(Float16 a, Float16 b) { return float(a) != float(b); }
  friend bool operator<(Float16 a, Float16 b) { return float(a) < float(b); }
  friend bool operator>(Float16 a, Float16 b) { return float(a) > float(b); }
  friend bool operator<=(Float16 a, Float16 b) { return float(a) <= float(b); }
  friend bool operator>=(Float16 a, Float16 b) { return float(a) >= float(b); }
};

template <class T>
struct alignas(4) Float16x2 {
  T x, y;
  Float16x2() = default;
  constexpr Float16x2(T low, T high) : x(low), y(high) {}
};

template <class T>
concept IsFloat16 = std::is_same_v<T, Float16<10, 15>> || std::is_same_v<T, Float16<7, 127>>;

}  // namespace hostcuda

// Only the names that have the same spelling for both formats stand here.
#define HOSTCUDA_BINARY(name, expression)                                                         \
  template <hostcuda::IsFloat16 T>                                                                \
  inline T __##name(T a, T b) {                                                                   \
    return expression;                                                                            \
  }                                                                                               \
  template <hostcuda::IsFloat16 T>                                                                \
  inline hostcuda::Float16x2<T> __##name##2(hostcuda::Float16x2<T> a, hostcuda::Float16x2<T> b) { \
    return {__##name(a.x, b.x), __##name(a.y, b.y)};                                              \
  }
HOSTCUDA_BINARY(hadd, a + b)
HOSTCUDA_BINARY(hsub, a - b)
HOSTCUDA_BINARY(hmul, a* b)
HOSTCUDA_BINARY(hmax, T(::fmaxf(a, b)))  // of a number and a NaN: the number
HOSTCUDA_BINARY(hmin, T(::fminf(a, b)))

#define HOSTCUDA_COMPARE(name, op) \
  template <hostcuda::IsFloat16 T> \
  inline bool __##name(T a, T b) { \
    return a op b;                 \
  }
HOSTCUDA_COMPARE(heq, ==)
HOSTCUDA_COMPARE(hne, !=)
HOSTCUDA_COMPARE(hlt, <)
HOSTCUDA_COMPARE(hle, <=)
HOSTCUDA_COMPARE(hgt, >)
HOSTCUDA_COMPARE(hge, >=)

template <hostcuda::IsFloat16 T>
inline T __hdiv(T a, T b) {
  return a / b;
}
template <hostcuda::IsFloat16 T>
inline T __hneg(T a) {
  return -a;
}
template <hostcuda::IsFloat16 T>
inline T __habs(T a) {
  return T::from_bits(a != a ? 0x7fff : a.bits & 0x7fff);
}
template <hostcuda::IsFloat16 T>
inline bool __hisnan(T a) {
  return a != a;
}
template <hostcuda::IsFloat16 T>
inline T __hfma(T a, T b, T c) {
  return hostcuda::fused(float(a), float(b), float(c));
}
template <hostcuda::IsFloat16 T>
inline hostcuda::Float16x2<T> __hfma2(hostcuda::Float16x2<T> a, hostcuda::Float16x2<T> b, hostcuda::Float16x2<T> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <hostcuda::IsFloat16 T>
inline float __low2float(hostcuda::Float16x2<T> a) {
  return a.x;
}
template <hostcuda::IsFloat16 T>
inline float __high2float(hostcuda::Float16x2<T> a) {
  return a.y;
}
