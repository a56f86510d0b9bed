// Device math and bit intrinsics for the host executor. Fast approximations are the exact functions here: a test must
// not lean on their error.
#pragma once

#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cstdint>

// glibc's <math.h> declares these very names for its own use, so functions of ours would clash with them.
#define __expf(x) (::expf(x))
#define __exp10f(x) (::exp10f(x))
#define __logf(x) (::logf(x))
#define __log2f(x) (::log2f(x))
#define __log10f(x) (::log10f(x))
#define __powf(x, y) (::powf(x, y))
#define __sinf(x) (::sinf(x))
#define __cosf(x) (::cosf(x))
#define __tanf(x) (::tanf(x))
#define __sincosf(x, s, c) (::sincosf(x, s, c))

inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float fdividef(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN gives 0, as on the device
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / ::sqrt(static_cast<double>(x))); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }

#define HOSTCUDA_MIN_MAX(A, B, R)                                                   \
  inline R max(A a, B b) { return std::max(static_cast<R>(a), static_cast<R>(b)); } \
  inline R min(A a, B b) { return std::min(static_cast<R>(a), static_cast<R>(b)); }
HOSTCUDA_MIN_MAX(int, int, int)
HOSTCUDA_MIN_MAX(unsigned, unsigned, unsigned)
HOSTCUDA_MIN_MAX(int, unsigned, unsigned)
HOSTCUDA_MIN_MAX(unsigned, int, unsigned)
HOSTCUDA_MIN_MAX(long, long, long)
HOSTCUDA_MIN_MAX(unsigned long, unsigned long, unsigned long)
HOSTCUDA_MIN_MAX(long, unsigned long, unsigned long)
HOSTCUDA_MIN_MAX(unsigned long, long, unsigned long)
HOSTCUDA_MIN_MAX(long long, long long, long long)
HOSTCUDA_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
HOSTCUDA_MIN_MAX(long long, unsigned long long, unsigned long long)
HOSTCUDA_MIN_MAX(unsigned long long, long long, unsigned long long)
#define HOSTCUDA_FLOAT_MIN_MAX(A, B, R, suffix)                                                   \
  inline R max(A a, B b) { return ::fmax##suffix(a, b); } /* of a number and a NaN: the number */ \
  inline R min(A a, B b) { return ::fmin##suffix(a, b); }
HOSTCUDA_FLOAT_MIN_MAX(float, float, float, f)
HOSTCUDA_FLOAT_MIN_MAX(double, double, double, )
HOSTCUDA_FLOAT_MIN_MAX(float, double, double, )
HOSTCUDA_FLOAT_MIN_MAX(double, float, double, )

// ---- bits ----
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= ((x >> i) & 1u) << (31 - i);
  return r;
}
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<int64_t>(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 wide;
  return static_cast<unsigned long long>((static_cast<wide>(a) * b) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

// ---- reinterpretation and conversion ----
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// The device saturates where C++ leaves the result undefined; NaN gives 0, in 64 bits the top bit.
namespace hostcuda {
template <class R>
inline R to_integer(float x) {
  if (x != x) return sizeof(R) == 8 ? R(1) << (sizeof(R) * 8 - 1) : 0;
  constexpr double bound = static_cast<double>(static_cast<uint64_t>(1) << (sizeof(R) * 8 - (R(-1) < R(0))));
  const double low = R(-1) < R(0) ? -bound : 0.0;
  if (x >= bound) return static_cast<R>(R(-1) < R(0) ? ~(R(1) << (sizeof(R) * 8 - 1)) : ~R(0));
  return x <= low ? static_cast<R>(low) : static_cast<R>(x);
}
}  // namespace hostcuda
inline int __float2int_rn(float x) { return hostcuda::to_integer<int>(::rintf(x)); }
inline int __float2int_rz(float x) { return hostcuda::to_integer<int>(::truncf(x)); }
inline int __float2int_rd(float x) { return hostcuda::to_integer<int>(::floorf(x)); }
inline int __float2int_ru(float x) { return hostcuda::to_integer<int>(::ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return hostcuda::to_integer<unsigned>(::rintf(x)); }
inline unsigned __float2uint_rz(float x) { return hostcuda::to_integer<unsigned>(::truncf(x)); }
inline long long __float2ll_rn(float x) { return hostcuda::to_integer<long long>(::rintf(x)); }
inline long long __float2ll_rz(float x) { return hostcuda::to_integer<long long>(::truncf(x)); }
