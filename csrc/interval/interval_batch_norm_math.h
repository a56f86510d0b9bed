// What one element of interval_batch_norm and interval_relu is; both kernels call it.
#pragma once

#include <cmath>

#include "interval/box.h"
#include "interval/interval_batch_norm.h"

namespace warpup {

// By value: a choice between two places in memory is a branch, and a loop with a branch is not vectorized.
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
template <class Acc>
WARPUP_HD Box<Acc> scaled_box(Acc c, Acc r, Acc s, Acc t, Acc m, bool sound) {
  const Acc size = magnitude(s);
  Box<Acc> y{s * c + t, size * r};
  if (sound) {
    constexpr Acc kGrow = Acc(16 * Rounding<Acc>::kEps), kTiny = Acc(4 * Rounding<Acc>::kTiny);
    y.radius = y.radius + (kGrow * (size * (magnitude(c) + r) + m) + kTiny);
  }
  return y;
}

// ReLU on both bounds. Sound: l > 0 and u <= 0 are decided without error (c - r > 0 just where c > r); else (h, h) with
// 2 h >= c + r is a box around [0, c + r], and above(fl(c + r) / 2) is such an h.
template <class Acc>
WARPUP_HD Box<Acc> relu_box(Acc c, Acc r, bool sound) {
  const Acc l = c - r, u = c + r;
  Acc half = u * Acc(0.5);
  if (sound) half = above<Acc>(half);
  const bool active = l > 0;
  half = u <= 0 ? Acc(0) : half;
  return {choose(active, c, half), choose(active, r, half)};
}

// The radius of a sound result whose center c is rounded to a 16-bit T: that rounding goes into it (exactly: both have
// c's leading digits), and it is so wide that its own rounding to T cannot make it too small.
template <class T>
WARPUP_HD acc_t<T> sound_radius(acc_t<T> c, acc_t<T> r, acc_t<T> rounded) {
  using Acc = acc_t<T>;
  const Acc off = magnitude(c - rounded);
  return choose(r == 0 && off == 0, Acc(0), above<T>(above<Acc>(r + off)));
}

template <class T>
WARPUP_HD Box<T> sound_box(acc_t<T> c, acc_t<T> r) {
  const T rounded = store<T>(c);
  return {rounded, store<T>(sound_radius<T>(c, r, load(rounded)))};
}

// The gradient before the ReLU of the box y, from g after it. `added` (or null) as in IntervalBatchNormBackwardArgs.
template <class Acc>
WARPUP_HD Box<Acc> before_relu(Acc gc, Acc gr, Acc yc, Acc yr, bool relu, const Acc* added) {
  const Acc l = yc - yr, u = yc + yr;
  Box<Acc> h{gc, gr};
  if (relu) {
    const Acc half = u <= 0 ? Acc(0) : (gc + gr) * Acc(0.5);
    h = {choose(l > 0, gc, half), choose(l > 0, gr, half)};
  }
  if (added) {
    h.center += added[0] + (l > 0 ? added[1] + added[2] * yc : Acc(0)) + (u < 0 ? added[3] + added[4] * yc : Acc(0));
    h.radius += added[5];
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
WARPUP_HD Acc scale_gradient(Acc hc, Acc hr, Acc v, Acc w, bool from_outputs, Acc s, Acc mean, Acc bias) {
  const Acc sign = s > 0 ? Acc(1) : s < 0 ? Acc(-1) : Acc(0);
  const Acc inputs = hc * (v - mean) + sign * hr * w, outputs = (hc * (v - bias) + hr * w) / s;
  return choose(from_outputs, outputs, inputs);
}

}  // namespace warpup
