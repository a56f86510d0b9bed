// interval_product: what the exact hull of a product of intervals has less than midpoint-radius arithmetic gives.
//
//   a = (ac, ar), b = (bc, br) centers and radii, signs unknown. The hull of a b has
//     center  ac bc + s m,   radius  |ac| br + ar |bc| + ar br - m,   s = sign(ac bc), m = min(ar br, ar |bc|, |ac| br)
//   for with ac, bc >= 0 the greatest of the four products of ends is (ac + ar)(bc + br), and the least is one of the
//   other three: |center - radius| shrinks by 2 m. So the library's three products give all but
//     shift[i, j] = sum_k s m,   excess[i, j] = sum_k m                                        forward
//     dac, dar, from h = s g_shift + g_excess: the derivative of the m that is least           backward, for a; the
//       (ar br before ar |bc| before |ac| br on ties)                                          formula is the same for
//       b
//
// Layout   a [rows, width] twice, b [columns, width] twice, results and their gradients [rows, columns], contiguous.
// Numerics float32 (float64 for float64), in a fixed order.
// Work     about ten times a product of the same size; W and x are read once a block.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>  // float, double
struct IntervalProductArgs {
  int64_t rows, columns, width;
  const T *a_center, *a_radius, *b_center, *b_radius;
  T *shift, *excess;
};

template <class T>
struct IntervalProductBackwardArgs {
  int64_t rows, columns, width;
  const T *a_center, *a_radius, *b_center, *b_radius;
  const T *grad_shift, *grad_excess;
  bool transposed;             // the gradients lie [columns, rows]
  T *out_center, *out_radius;  // of a
};

template <class T>
WARPUP_HD T least_product(T ac, T ar, T bc, T br) {
  const T x = ac < 0 ? -ac : ac, y = bc < 0 ? -bc : bc;
  const T both = ar * (br < y ? br : y), other = x * br;
  return other < both ? other : both;
}

template <class T>
WARPUP_HD T sign_of_product(T ac, T bc) {
  return (ac < 0 ? T(-1) : T(1)) * (bc < 0 ? T(-1) : T(1));  // where one is 0, m is 0
}

// Adds one b's share to the gradients of an a. Written so that a loop over it is vectorised: no branch, no exclusive
// or.
template <class T>
WARPUP_HD void least_product_gradient(T ac, T ar, T bc, T br, T g_shift, T g_excess, T* d_center, T* d_radius) {
  const T x = ac < 0 ? -ac : ac, y = bc < 0 ? -bc : bc, h = g_shift * sign_of_product(ac, bc) + g_excess;
  const T near = br < y ? br : y, both = ar * near, other = x * br;
  const bool of_center = other < both;
  const T sign = ac > 0 ? T(1) : ac < 0 ? T(-1) : T(0);
  *d_center += of_center ? h * br * sign : T(0);
  *d_radius += of_center ? T(0) : h * near;
}

template <class T>
void interval_product_cpu(const IntervalProductArgs<T>& args);
template <class T>
void interval_product_cuda(const IntervalProductArgs<T>& args, void* stream);

template <class T>
void interval_product_backward_cpu(const IntervalProductBackwardArgs<T>& args);
template <class T>
void interval_product_backward_cuda(const IntervalProductBackwardArgs<T>& args, void* stream);

}  // namespace warpup
