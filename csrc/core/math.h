// Scalar math that vectorises on the CPU without fast-math and maps to the hardware's own functions on the GPU.
#pragma once

#include <cmath>
#include <limits>

#include "core/types.h"

namespace warpup {

template <class T>
inline constexpr T kInf = std::numeric_limits<T>::infinity();

// e^x for x <= 88, within 2 ulp; exactly 0 below -87.7 (and for -inf), NaN for NaN.
// CPU: x = k ln2 + r with |r| <= ln2/2 and ln2 split in two (Cody and Waite), e^r by a minimax polynomial (error 3e-9).
// Adding 1.5 * 2^23 rounds to an integer that then stands in the low bits of the sum; with the exponent's bias of 127
// in it too, a shift makes 2^k of them, and k = -127 makes 0.
WARPUP_HD float exp_neg(float x) {
#ifdef __CUDA_ARCH__
  return __expf(x);
#else
  constexpr float kRound = 12582912.0f + 127.0f;
  x = x < -88.0f ? -88.0f : x;
  const float shifted = x * 1.44269504088896341f + kRound;
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.3814539e-3f;
  p = p * r + 8.3687454e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 1.6666521e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) << 23);
#endif
}
WARPUP_HD double exp_neg(double x) { return ::exp(x); }

// log(1 + f) for -.3 < f <= 1, within 1 ulp of the result: s = f / (2 + f), log(1 + f) = 2 atanh s = f - s (f - s^2
// P(s^2)), P of degree 4 by minimax on |s| <= 1/3 (relative error 1e-10). The leading term f is exact.
WARPUP_HD float log1p_near(float f) {
  const float s = f / (2.0f + f), w = s * s;
  float p = 2.4300934e-1f;
  p = p * w + 2.1427658e-1f;
  p = p * w + 2.8616884e-1f;
  p = p * w + 3.9998877e-1f;
  p = p * w + 6.6666675e-1f;
  return f - s * (f - w * p);
}

// log(1 + x) for 0 <= x <= 1.
WARPUP_HD float log1p_unit(float x) {
#ifdef __CUDA_ARCH__
  return ::log1pf(x);
#else
  return log1p_near(x);
#endif
}
WARPUP_HD double log1p_unit(double x) { return ::log1p(x); }

// log x for a normal x > 0, within 2 ulp; NaN for NaN. CPU: x = 2^k m with m in [.7, 1.4], so that log m has no digits
// to lose against k ln2.
WARPUP_HD float log_pos(float x) {
#ifdef __CUDA_ARCH__
  return ::logf(x);
#else
  constexpr uint32_t kLow = 0x3f333333u;  // .7
  const uint32_t bits = std::bit_cast<uint32_t>(x), above = bits - kLow;
  const float k = static_cast<float>(static_cast<int32_t>(above) >> 23);
  const float m = std::bit_cast<float>((above & 0x007fffffu) + kLow);
  const float log_m = log1p_near(m - 1.0f);
  return x == x ? k * 0.693359375f + (k * -2.12194440e-4f + log_m) : x;
#endif
}
WARPUP_HD double log_pos(double x) { return ::log(x); }

// e^x for any x, held at e^88 (1.7e38) so that a product with 0 stays 0.
template <class Acc>
WARPUP_HD Acc exp_held(Acc x) {
  return exp_neg(x > Acc(88) ? Acc(88) : x);
}

}  // namespace warpup
