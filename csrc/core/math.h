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

// e^x for any x, held at e^88 (1.7e38) so that a product with 0 stays 0.
template <class Acc>
WARPUP_HD Acc exp_held(Acc x) {
  return exp_neg(x > Acc(88) ? Acc(88) : x);
}

}  // namespace warpup
