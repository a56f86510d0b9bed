// One element of the gated activation, for both kernels.
#pragma once

#include "core/math.h"
#include "moe/glu.h"

namespace warpup {

template <GluKind kKind>
inline constexpr bool kInterleaved = kKind == GluKind::swiglu_oai;  // g_0, u_0, g_1, ...; else all g before all u

template <class Acc>
struct Factor {
  Acc value, slope;
};

template <class Acc>
WARPUP_HD Acc logistic(Acc x) {
  const Acc e = exp_neg(x < 0 ? x : -x);
  return (x < 0 ? e : Acc(1)) / (1 + e);
}

// Of a normal variable: the distribution function, (1 + erf(x / sqrt 2)) / 2, and its slope, the density. In float32 by
// Abramowitz and Stegun 7.1.26, with an error of 1e-7.
WARPUP_HD Factor<float> normal_cdf(float x) {
  const float e = exp_neg(-0.5f * x * x), t = 1 / (1 + 0.23164189f * (x < 0 ? -x : x));
  const float p =
      t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * p * e;
  return {x < 0 ? tail : 1 - tail, 0.39894228f * e};
}
WARPUP_HD Factor<double> normal_cdf(double x) {
  return {0.5 * ::erfc(-0.70710678118654752 * x), 0.39894228040143268 * ::exp(-0.5 * x * x)};
}

template <GluKind kKind, class Acc>
WARPUP_HD Factor<Acc> gate_factor(Acc g) {
  if constexpr (kKind == GluKind::silu) {
    const Acc s = logistic(g);
    return {g * s, s * (1 + g * (1 - s))};
  } else if constexpr (kKind == GluKind::gelu) {
    const Factor<Acc> cdf = normal_cdf(g);
    return {g * cdf.value, cdf.value + g * cdf.slope};
  } else if constexpr (kKind == GluKind::gelu_tanh) {
    constexpr Acc c = Acc(1.5957691216057308), cubic = Acc(0.044715);  // (1 + tanh y) / 2 = s(2 y)
    const Acc square = g * g > Acc(1e4) ? Acc(1e4) : g * g;  // where s is 0 or 1, and a product with it not NaN
    const Acc s = logistic(c * g * (1 + cubic * square));
    return {g * s, s + g * s * (1 - s) * c * (1 + 3 * cubic * square)};
  } else if constexpr (kKind == GluKind::relu) {
    return {g < 0 ? Acc(0) : g, g > 0 ? Acc(1) : Acc(0)};
  } else {
    constexpr Acc alpha = Acc(1.702), limit = Acc(7);
    const Acc x = g > limit ? limit : g, s = logistic(alpha * x);
    return {x * s, g > limit ? Acc(0) : s + x * s * (1 - s) * alpha};
  }
}

template <GluKind kKind, class Acc>
WARPUP_HD Factor<Acc> up_factor(Acc u) {
  if constexpr (kKind == GluKind::swiglu_oai) {
    constexpr Acc limit = Acc(7);
    return {1 + (u > limit ? limit : u < -limit ? -limit : u), u > limit || u < -limit ? Acc(0) : Acc(1)};
  } else {
    return {u, Acc(1)};
  }
}

// Calls body.template operator()<kKind>().
template <class Body>
void dispatch_kind(GluKind kind, const Body& body) {
  switch (kind) {
    case GluKind::silu:
      return body.template operator()<GluKind::silu>();
    case GluKind::gelu:
      return body.template operator()<GluKind::gelu>();
    case GluKind::gelu_tanh:
      return body.template operator()<GluKind::gelu_tanh>();
    case GluKind::relu:
      return body.template operator()<GluKind::relu>();
    case GluKind::swiglu_oai:
      return body.template operator()<GluKind::swiglu_oai>();
  }
}

// The copy that row s holds: -1 for none; 0, with no meaning, where rows are not permuted.
template <class T>
WARPUP_HD int64_t copy_of(const GluArgs<T>& args, int64_t s) {
  return args.permutation ? args.permutation[s] : 0;
}
template <class T>
WARPUP_HD acc_t<T> weight_of(const GluArgs<T>& args, int64_t copy) {
  return args.weights ? args.weights[copy] : acc_t<T>(1);
}

}  // namespace warpup
