// tanh that vectorises on the CPU without fast-math.
#pragma once

#include "core/math.h"

namespace warpup {

WARPUP_HD double tanh_of(double x) { return ::tanh(x); }
// Within 2 ulp. Below .625, where 1 - e^-2x has lost digits, x + x^3 P(x^2), P by minimax (relative error 5e-9).
WARPUP_HD float tanh_of(float x) {
  const float size = x < 0 ? -x : x, t = exp_neg(-2.0f * size), far = (1.0f - t) / (1.0f + t), z = x * x;
  float p = -5.704985e-3f;
  p = p * z + 2.0639086e-2f;
  p = p * z - 5.3739715e-2f;
  p = p * z + 1.3331442e-1f;
  p = p * z - 3.3333281e-1f;
  return size < 0.625f ? x + x * z * p : x < 0 ? -far : far;
}

}  // namespace warpup
