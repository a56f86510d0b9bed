// Scalar math that vectorises on the CPU without fast-math and maps to the hardware's own functions on the GPU.
#pragma once

#include <cmath>
#include <limits>

#include "core/types.h"

namespace warpup {

template <class T>
inline constexpr T kInf = std::numeric_limits<T>::infinity();

// e^x for x <= 88, within 2 ulp; exactly 0 below -87 (and for -inf), NaN for NaN.
// CPU: x = k ln2 + r with |r| <= ln2/2 and ln2 split in two (Cody and Waite), then the minimax polynomial of Cephes.
WARPUP_HD float exp_neg(float x) {
#ifdef __CUDA_ARCH__
  return __expf(x);
#else
  const float bounded = x < -87.0f ? -87.0f : x;
  const float k = __builtin_rintf(bounded * 1.44269504088896341f);
  const float r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = std::bit_cast<float>((static_cast<int32_t>(k) + 127) << 23);
  return x < -87.0f ? 0.0f : p * scale;
#endif
}
WARPUP_HD double exp_neg(double x) { return ::exp(x); }

// e^x for any x, held at e^88 (1.7e38) so that a product with 0 stays 0.
template <class Acc>
WARPUP_HD Acc exp_held(Acc x) {
  return exp_neg(x > Acc(88) ? Acc(88) : x);
}

}  // namespace warpup
