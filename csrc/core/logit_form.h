// What a model does to the product of its output layer before that is a logit: a scale (Cohere, Granite, Falcon-H1), a
// soft cap (Gemma 2), or both.
//
//   z = cap tanh(scale x / cap)      dz/dx = scale (1 - tanh^2)      cap 0: z = scale x
//
// Kernels take x and form z where they load it, and multiply by the slope where they store a gradient: neither costs a
// pass of its own, and z is not rounded to 16 bits in between. An x of -inf stays -inf, since it rules its token out.
#pragma once

#include "core/tanh.h"

namespace warpup {

template <class Acc>
struct LogitForm {
  Acc scale = 1, cap = 0;

  struct Point {
    Acc z, slope;
  };

  WARPUP_HD bool plain() const { return scale == 1 && cap == 0; }
  WARPUP_HD Point scaled(Acc x) const { return {x * scale, scale}; }
  WARPUP_HD Point capped(Acc x) const {
    const Acc y = x * (scale / cap), t = exp_neg(Acc(-2) * (y < 0 ? -y : y)), s = Acc(1) + t;
    return {x == -kInf<Acc> ? x : cap * tanh_of(y), scale * (Acc(4) * t / (s * s))};  // 1 - tanh^2, all its digits
  }
  WARPUP_HD Point at(Acc x) const { return cap == 0 ? scaled(x) : capped(x); }
  WARPUP_HD Acc operator()(Acc x) const { return at(x).z; }
};

}  // namespace warpup
