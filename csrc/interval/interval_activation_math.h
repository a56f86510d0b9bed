// The functions and their slopes, and what a box becomes under them.
#pragma once

#include "core/tanh.h"
#include "interval/box.h"
#include "interval/interval_activation.h"

namespace warpup {

template <class Acc>
struct Sloped {
  Acc value, slope;
};

// Where f, which falls before and rises after, has its minimum.
template <Activation kind>
struct Valley {
  static constexpr bool exists = false;
};
template <>
struct Valley<Activation::gelu> {
  static constexpr bool exists = true;
  static constexpr double at = -0.7517915246935644, value = -0.16997120747990369;
};
template <>
struct Valley<Activation::gelu_tanh> {
  static constexpr bool exists = true;
  static constexpr double at = -0.7524614220710162, value = -0.17004075057125412;
};
template <>
struct Valley<Activation::silu> {
  static constexpr bool exists = true;
  static constexpr double at = -1.2784645427610735, value = -0.27846454276107385;
};
template <>
struct Valley<Activation::hardswish> {
  static constexpr bool exists = true;
  static constexpr double at = -1.5, value = -0.375;
};

template <class Acc>
WARPUP_HD Sloped<Acc> sigmoid(Acc x) {
  const Acc t = exp_neg(-magnitude(x)), s = 1 / (1 + t);
  return {x < 0 ? t * s : s, t * s * s};
}

// P(X > t) of a standard normal X for t >= 0; density = e^(-t^2/2).
WARPUP_HD double normal_tail(double t, double) { return 0.5 * ::erfc(t * 0.70710678118654752); }
// tail = density R(t); R by minimax in 1 / (1 + .3 t) (relative error 6e-8).
WARPUP_HD float normal_tail(float t, float density) {
  const float s = 1.0f / (1.0f + 0.3f * t);
  float p = 3.8377956e-2f;
  p = p * s - 1.6916463e-1f;
  p = p * s + 2.2865731e-1f;
  p = p * s - 7.6503612e-2f;
  p = p * s + 1.4253375e-1f;
  p = p * s + 9.4684198e-2f;
  p = p * s + 1.2192019e-1f;
  p = p * s + 1.1948771e-1f;
  p = p * s + 7.1678965e-6f;
  return p * density;
}

template <Activation kind, class Acc>
WARPUP_HD Sloped<Acc> activation(Acc x, Acc a, Acc b) {
  using enum Activation;
  if constexpr (kind == gelu || kind == gelu_tanh || kind == silu) x = x < Acc(-1000) ? Acc(-1000) : x;  // -inf * 0
  if constexpr (kind == Activation::sigmoid) return warpup::sigmoid(x);
  if constexpr (kind == Activation::tanh) {
    const Acc t = tanh_of(x);
    return {t, (1 - t) * (1 + t)};
  }
  if constexpr (kind == gelu) {
    const Acc density = exp_neg(x * x * Acc(-0.5)), tail = normal_tail(magnitude(x), density);
    const Acc below = x < 0 ? tail : 1 - tail;
    return {x * below, below + x * density * Acc(0.39894228040143268)};
  }
  if constexpr (kind == gelu_tanh) {
    const Acc k = Acc(1.5957691216057308), cubic = Acc(0.044715) * x * x;
    const auto s = warpup::sigmoid(k * x * (1 + cubic));
    return {x * s.value, s.value + x * s.slope * k * (1 + 3 * cubic)};
  }
  if constexpr (kind == silu) {
    const auto s = warpup::sigmoid(x);
    return {x * s.value, s.value + x * s.slope};
  }
  if constexpr (kind == hardswish) {
    const bool low = x <= Acc(-3), high = x >= Acc(3);
    return {low ? Acc(0) : high ? x : x * (x + 3) / 6, low ? Acc(0) : high ? Acc(1) : x / 3 + Acc(0.5)};
  }
  if constexpr (kind == leaky_relu) return {x > 0 ? x : a * x, x > 0 ? Acc(1) : a};
  if constexpr (kind == elu) {  // e^x - 1 = 2 t / (1 - t), t = tanh(x / 2)
    const Acc t = tanh_of((x > 0 ? Acc(0) : x) / 2), grown = 2 * t / (1 - t);
    return {x > 0 ? x : a * grown, x > 0 ? Acc(1) : a * (1 + grown)};
  }
  if constexpr (kind == softplus) {
    return {(x < 0 ? Acc(0) : x) + log1p_unit(exp_neg(-magnitude(x))), warpup::sigmoid(x).value};
  }
  if constexpr (kind == Activation::exp) {  // the square: exp_neg ends at e^88
    const Acc root = exp_neg((x > Acc(1500) ? Acc(1500) : x) / 2);
    return {root * root, root * root};
  }
  if constexpr (kind == clamp) return {x < a ? a : x > b ? b : x, x < a || x > b ? Acc(0) : Acc(1)};
}

// a - b of the rounded a and b. Where the compiler fuses the product that one of them came from into the difference,
// equal ends differ, and a box without width gets a radius, of either sign.
template <class Acc>
WARPUP_HD Acc difference(Acc a, Acc b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Acc) == 4) return __fsub_rn(a, b);
  return __dsub_rn(a, b);
#elif defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  return __builtin_assoc_barrier(a) - __builtin_assoc_barrier(b);
#else
  return a - b;
#endif
}

template <Activation kind, class Acc>
WARPUP_HD Box<Acc> activated(Box<Acc> in, Acc a, Acc b) {
  const Acc l = in.center - in.radius, u = in.center + in.radius;
  Acc lower = activation<kind>(l, a, b).value, upper = activation<kind>(u, a, b).value;
  if constexpr (Valley<kind>::exists) {
    const Acc at = Acc(Valley<kind>::at), at_l = lower, at_u = upper;
    const bool falls = u <= at, inside = l < at && u > at;
    lower = inside ? Acc(Valley<kind>::value) : falls ? at_u : at_l;
    upper = inside ? (at_l > at_u ? at_l : at_u) : falls ? at_l : at_u;
    if (in.radius < 0) lower = kInf<Acc> - kInf<Acc>;
  }
  if (in.radius >= 0 && lower > upper) lower = upper;  // the roundings of two values so near that they change places
  return {-difference(-lower, upper) / 2, difference(upper, lower) / 2};
}

// The gradient of `in` from that of activated(in).
template <Activation kind, class Acc>
WARPUP_HD Box<Acc> activated_gradient(Box<Acc> in, Box<Acc> grad, Acc a, Acc b) {
  const auto l = activation<kind>(in.center - in.radius, a, b), u = activation<kind>(in.center + in.radius, a, b);
  const Acc of_lower = (grad.center - grad.radius) / 2, of_upper = (grad.center + grad.radius) / 2;
  Acc to_l = of_lower, to_u = of_upper;
  if constexpr (Valley<kind>::exists) {
    const Acc at = Acc(Valley<kind>::at);
    const bool falls = in.center + in.radius <= at, inside = in.center - in.radius < at && !falls;
    to_l = inside ? (l.value > u.value ? of_upper : Acc(0)) : falls ? of_upper : of_lower;
    to_u = inside ? (l.value > u.value ? Acc(0) : of_upper) : falls ? of_lower : of_upper;
  }
  to_l *= l.slope, to_u *= u.slope;
  return {to_l + to_u, to_u - to_l};
}

// Calls body.template operator()<kind>().
template <class Body>
WARPUP_HD void with_activation(Activation kind, const Body& body) {
  switch (kind) {
#define CASE(k)       \
  case Activation::k: \
    return body.template operator()<Activation::k>();
    CASE(sigmoid)
    CASE(tanh)
    CASE(gelu)
    CASE(gelu_tanh)
    CASE(silu)
    CASE(hardswish)
    CASE(leaky_relu)
    CASE(elu)
    CASE(softplus)
    CASE(exp)
    CASE(clamp)
#undef CASE
  }
}

}  // namespace warpup
