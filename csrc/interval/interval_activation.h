// interval_activation: a box through an element-wise function, and a plain tensor through it in the same call. It
// serves interval_sigmoid, interval_tanh, interval_gelu, interval_silu, interval_hardswish, interval_leaky_relu,
// interval_elu, interval_softplus, interval_exp and interval_clamp: one kernel, because all but the function's value
// and slope is the same.
//
//   l = c - r, u = c + r                    monotone f: lower = f(l), upper = f(u)
//   f falls to its only minimum at x*, then rises (gelu, gelu_tanh, silu, hardswish):
//     u <= x*: lower = f(u), upper = f(l)   l >= x*: as monotone   else: lower = f(x*), upper = max(f(l), f(u))
//   c' = (lower + upper) / 2,  r' = (upper - lower) / 2,  clean' = f(clean)
//
// Layout   every array contiguous, `count` elements; clean and what belongs to it may be null.
//          a, b: leaky_relu's slope (>= 0), elu's alpha (>= 0), clamp's ends (a <= b); unused by the others.
// Numerics in float32 (float64 for float64), the ends of the box too; rounded once, to T. The bounds are the tightest
//          but for that. The backward is exact: where f(x*) is the lower bound it has no gradient.
//          NaN spreads. A negative radius gives a negative one under a monotone f, NaN under the others.
// Bytes    forward: 4 (with clean 6) * sizeof(T) an element; backward: 6 (9).
#pragma once

#include "core/types.h"

namespace warpup {

enum class Activation : int {
  sigmoid,
  tanh,
  gelu,
  gelu_tanh,
  silu,
  hardswish,
  leaky_relu,
  elu,
  softplus,
  exp,
  clamp,
};

template <class T>
struct IntervalActivationArgs {
  Activation kind;
  double a, b;
  int64_t count;
  const T *center, *radius, *clean;
  T *out_center, *out_radius, *out_clean;
};

template <class T>
struct IntervalActivationBackwardArgs {
  IntervalActivationArgs<T> forward;  // outputs unused
  const T *grad_out_center, *grad_out_radius, *grad_out_clean;
  T *grad_center, *grad_radius, *grad_clean;
};

template <class T>
void interval_activation_cpu(const IntervalActivationArgs<T>& args);
template <class T>
void interval_activation_cuda(const IntervalActivationArgs<T>& args, void* stream);

template <class T>
void interval_activation_backward_cpu(const IntervalActivationBackwardArgs<T>& args);
template <class T>
void interval_activation_backward_cuda(const IntervalActivationBackwardArgs<T>& args, void* stream);

}  // namespace warpup
