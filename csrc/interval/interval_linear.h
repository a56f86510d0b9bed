// interval_linear_exact and interval_linear_sign: what interval_linear and its convolutions need beside the library's
// products, which give center' = W center + b and radius' = |W| radius.
//
// Exact: what the hull of a product of two boxes has less than midpoint-radius arithmetic gives (mode "exact").
//   a = (ac, ar), b = (bc, br), signs unknown. The hull of a b has
//     center  ac bc + s m,   radius  |ac| br + ar |bc| + ar br - m,   s = sign(ac bc), m = min(ar br, ar |bc|, |ac| br)
//   for with ac, bc >= 0 the greatest of the four products of ends is (ac + ar)(bc + br), and the least is one of the
//   other three: |center - radius| shrinks by 2 m. So the library's three products give all but
//     forward    shift[i, j] = sum_k s m,   excess[i, j] = sum_k m
//     backward   dac, dar of s m g_shift + m g_excess: the derivative of the m that is least, ac's where |ac| br is
//                below both others, else, at ties too, ar's, min(br, |bc|). |0| has slope 0. This is a's; b's has the
//                same formula with the operands exchanged.
//
// Sign: the weight's gradient, from the product that |W| radius is made of and the one that W center is made of.
//   g = base + sign(w) g        sign(0) = 0; base may be null: 0. No sign(W) ever exists in memory.
//
// Layout   exact: a [rows, width] twice, b [columns, width] twice, results and their gradients [rows, columns],
//          contiguous. sign: g, w, base flat [count], in one layout.
// Numerics float32 (float64 for float64), in a fixed order.
// Work     exact: about ten times a product of the same size, compute-bound. sign: count * sizeof(T) read twice (with a
//          base three times) and written once.
#pragma once

#include "interval/box.h"

namespace warpup {

template <class T>  // float, double
struct IntervalLinearExactArgs {
  int64_t rows, columns, width;
  const T *a_center, *a_radius, *b_center, *b_radius;
  T *shift, *excess;
};

template <class T>
struct IntervalLinearExactBackwardArgs {
  int64_t rows, columns, width;
  const T *a_center, *a_radius, *b_center, *b_radius;
  const T *grad_shift, *grad_excess;
  bool transposed;             // the gradients lie [columns, rows]
  T *out_center, *out_radius;  // of a
};

template <class T>
WARPUP_HD T least_product(T ac, T ar, T bc, T br) {
  const T x = magnitude(ac), y = magnitude(bc);
  const T both = ar * (br < y ? br : y), other = x * br;
  return other < both ? other : both;
}

template <class T>
WARPUP_HD T sign_of_product(T ac, T bc) {
  return (ac < 0 ? T(-1) : T(1)) * (bc < 0 ? T(-1) : T(1));  // where one is 0, m is 0
}

// Adds one b's share to the gradients of an a. Without a branch or an exclusive or, so that a loop over it is
// vectorized.
template <class T>
WARPUP_HD void least_product_gradient(T ac, T ar, T bc, T br, T g_shift, T g_excess, T* d_center, T* d_radius) {
  const T x = magnitude(ac), y = magnitude(bc), s = g_shift * (bc < 0 ? T(-1) : T(1));
  const T near = br < y ? br : y, both = ar * near, other = x * br;
  const bool of_center = other < both;
  const T sign = ac > 0 ? T(1) : ac < 0 ? T(-1) : T(0);
  *d_center += of_center ? (s + g_excess * sign) * br : T(0);  // s |ac| = sign(bc) ac has a slope at 0, |ac| has none
  *d_radius += of_center ? T(0) : (ac < 0 ? g_excess - s : g_excess + s) * near;
}

template <class T>
struct IntervalLinearSignArgs {
  int64_t count;
  const T *weight, *base;
  T* gradient;
};

template <class T>
WARPUP_HD T signed_sum(T w, T g, T base) {
  const auto x = load(w), y = load(g);
  return store<T>(load(base) + (x > 0 ? y : x < 0 ? -y : x * 0));  // a NaN weight gives NaN
}

template <class T>
void interval_linear_exact_cpu(const IntervalLinearExactArgs<T>& args);
template <class T>
void interval_linear_exact_cuda(const IntervalLinearExactArgs<T>& args, void* stream);

template <class T>
void interval_linear_exact_backward_cpu(const IntervalLinearExactBackwardArgs<T>& args);
template <class T>
void interval_linear_exact_backward_cuda(const IntervalLinearExactBackwardArgs<T>& args, void* stream);

template <class T>
void interval_linear_sign_cpu(const IntervalLinearSignArgs<T>& args);
template <class T>
void interval_linear_sign_cuda(const IntervalLinearSignArgs<T>& args, void* stream);

}  // namespace warpup
