// What one element of interval_affine is; both twins call it.
#pragma once

#include <cmath>
#include <limits>

#include "interval/interval_affine.h"

namespace warpup {

template <class T>
struct BoxOf {
  T c, r;
};

template <class Acc>
WARPUP_HD Acc magnitude(Acc x) {
  return x < 0 ? -x : x;
}

// By value: a choice between two places in memory is a branch, and a loop with a branch is not vectorised.
template <class Acc>
WARPUP_HD Acc choose(bool first, Acc a, Acc b) {
  return first ? Acc(a) : Acc(b);
}

template <class T>
struct Rounding {  // of a result of type T
  static constexpr double kEps = std::is_same_v<T, double>     ? 0x1p-52
                                 : std::is_same_v<T, bfloat16> ? 0x1p-7
                                 : std::is_same_v<T, float16>  ? 0x1p-10
                                                               : 0x1p-23;
  static constexpr double kTiny = std::is_same_v<T, double>    ? 0x1p-1022
                                  : std::is_same_v<T, float16> ? 0x1p-14
                                                               : 0x1p-126;
};

// At least x >= 0 and a unit in T's last place more, so that rounding to T, to nearest, gives at least x: ulp(x) <= eps
// x for a normal x, and below those tiny is above all ulps.
template <class T>
WARPUP_HD acc_t<T> above(acc_t<T> x) {
  return x * acc_t<T>(1 + Rounding<T>::kEps) + acc_t<T>(Rounding<T>::kTiny);
}

// s c + t, |s| r. Sound: with u = eps/2 of Acc, s and t as computed in float64 and rounded are off by at most 8 u |s|
// and 8 u M, M = |bias| + |mean s| >= |t| (1 - u), and yc by 2.1 u (|s c| + |t|) on top; |s| r by u |s| r. All of that,
// and the roundings of the sum itself, is below 32 u (|s| (|c| + r) + M); products that underflow add at most a tiny
// each.
template <class Acc, bool kSound>
WARPUP_HD BoxOf<Acc> affine_box(Acc c, Acc r, Acc s, Acc t, Acc m) {
  const Acc size = magnitude(s);
  BoxOf<Acc> y{s * c + t, size * r};
  if constexpr (kSound) {
    constexpr Acc kGrow = Acc(16 * Rounding<Acc>::kEps), kTiny = Acc(4 * Rounding<Acc>::kTiny);
    y.r = y.r + (kGrow * (size * (magnitude(c) + r) + m) + kTiny);
  }
  return y;
}

// ReLU on both bounds. Sound: l > 0 and u <= 0 are decided without error (c - r > 0 just where c > r); else (h, h) with
// 2 h >= c + r is a box around [0, c + r], and above(fl(c + r) / 2) is such an h.
template <class T, bool kSound>
WARPUP_HD BoxOf<acc_t<T>> relu_box(BoxOf<acc_t<T>> y) {
  using Acc = acc_t<T>;
  const Acc l = y.c - y.r, u = y.c + y.r;
  Acc half = u * Acc(0.5);
  if constexpr (kSound) half = above<Acc>(half);
  const bool active = l > 0;
  half = u <= 0 ? Acc(0) : half;
  return {choose(active, y.c, half), choose(active, y.r, half)};
}

// A result of type T: rounded to it, a sound one with the center's rounding (exact: both have its leading digits) in
// the radius, rounded up.
template <class T, bool kSound>
WARPUP_HD BoxOf<T> stored_box(BoxOf<acc_t<T>> y) {
  const T c = store<T>(y.c);
  if constexpr (kSound && !std::is_same_v<T, acc_t<T>>) {
    const acc_t<T> off = magnitude(y.c - load(c)), r = above<T>(above<acc_t<T>>(y.r + off));
    return {c, store<T>(choose(y.r == 0 && off == 0, acc_t<T>(0), r))};
  } else {
    return {c, store<T>(y.r)};
  }
}

// The gradient before the ReLU. `added` as in IntervalAffineBackwardArgs.
template <class Acc, bool kRelu, bool kAdded>
WARPUP_HD BoxOf<Acc> before_relu(BoxOf<Acc> g, BoxOf<Acc> y, const Acc* added) {
  const Acc l = y.c - y.r, u = y.c + y.r;
  BoxOf<Acc> h = g;
  if constexpr (kRelu) {
    const Acc half = u <= 0 ? Acc(0) : (g.c + g.r) * Acc(0.5);
    h = {choose(l > 0, g.c, half), choose(l > 0, g.r, half)};
  }
  if constexpr (kAdded) {
    h.c += added[0] + (l > 0 ? added[1] + added[2] * y.c : Acc(0)) + (u < 0 ? added[3] + added[4] * y.c : Acc(0));
    h.r += added[5];
  }
  return h;
}

// s and t of a channel, in float64 whatever the type is.
template <class Acc>
WARPUP_HD void scale_and_shift(double mean, double var, const Acc* weight, const Acc* bias, double eps, int64_t c,
                               Acc* scale, Acc* shift) {
  const double s = (weight ? double(weight[c]) : 1.0) / sqrt(var + eps);
  scale[c] = static_cast<Acc>(s);
  shift[c] = static_cast<Acc>((bias ? double(bias[c]) : 0.0) - mean * s);
}

// What an element of the box adds to G1. v, w: center and radius, or from_outputs those after the ReLU.
template <class Acc>
WARPUP_HD Acc scale_gradient(BoxOf<Acc> h, Acc v, Acc w, bool from_outputs, Acc s, Acc mean, Acc bias) {
  const Acc sign = s > 0 ? Acc(1) : s < 0 ? Acc(-1) : Acc(0);
  const Acc inputs = h.c * (v - mean) + sign * h.r * w, outputs = (h.c * (v - bias) + h.r * w) / s;
  return choose(from_outputs, outputs, inputs);
}

}  // namespace warpup
