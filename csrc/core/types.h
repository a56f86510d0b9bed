// Scalar types shared by CPU and CUDA kernels. The 16-bit floats are bit containers: the same Args struct serves both and
// the host executor, and nothing here needs a CUDA header.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define WARPUP_HD __host__ __device__ __forceinline__
#else
#define WARPUP_HD inline __attribute__((always_inline))  // in a loop, what is not inlined is not vectorised
#endif

// A hot loop, compiled by itself: merged into its caller g++ forgets what __restrict says, and vectorises no more.
#define WARPUP_LOOP __attribute__((noinline))

namespace warpup {

enum class DType { f64, f32, bf16, f16, i64, i32, u8 };  // u8 also carries bool

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bfloat16>) return DType::bf16;
  if constexpr (std::is_same_v<T, float16>) return DType::f16;
  if constexpr (std::is_same_v<T, int64_t>) return DType::i64;
  if constexpr (std::is_same_v<T, int32_t>) return DType::i32;
  if constexpr (std::is_same_v<T, uint8_t>) return DType::u8;
}

// What a type is accumulated in: float for everything but double.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

WARPUP_HD double load(double x) { return x; }
WARPUP_HD float load(float x) { return x; }
WARPUP_HD float load(bfloat16 x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
#endif
}
WARPUP_HD float load(float16 x) {
#ifdef __CUDA_ARCH__
  float y;  // the instruction itself: CUDA's headers for the two types cost nvcc a second a file
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  // By integer arithmetic: C++ compilers have no common half type, and g++ vectorises no loop that converts its own.
  // The exponent moves from bias 15 to 127; infinity and NaN take the highest one; a subnormal m 2^-24 is what
  // (1 + m 2^-10) 2^-14 has beyond 2^-14.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t normal = magnitude + (magnitude < 0x0f800000u ? 112u << 23 : 224u << 23);
  const float tiny = std::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  return std::bit_cast<float>(sign | (magnitude < 0x00800000u ? std::bit_cast<uint32_t>(tiny) : normal));
#endif
}

// Rounds to nearest even, NaN stays NaN.
template <class T>
WARPUP_HD T store(acc_t<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return {bits};
#else
    const uint32_t u = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0u)};
#endif
  } else if constexpr (std::is_same_v<T, float16>) {
#ifdef __CUDA_ARCH__
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return {bits};
#else
    // Beside .5 a float's last bit is worth 2^-24, a half's smallest step: the addition rounds a subnormal.
    const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? tiny : normal;      // below 2^-14
    const uint32_t rounded = magnitude < 0x47800000u ? finite : 0x7c00u;  // from 2^16 on: infinity
    return {static_cast<uint16_t>((u >> 16 & 0x8000u) | (x == x ? rounded : 0x7e00u))};
#endif
  } else {
    return x;
  }
}

// The leading dimensions of a strided array, folded into at most two levels, so that `logits[:, :-1]` needs no copy.
// Row r begins at (r / inner) * stride_outer + (r % inner) * stride_inner; strides may be 0 (an expanded gradient).
struct Rows {
  int64_t count = 0, inner = 1, stride_outer = 0, stride_inner = 0;
  WARPUP_HD int64_t offset(int64_t row) const { return row / inner * stride_outer + row % inner * stride_inner; }
};

}  // namespace warpup
