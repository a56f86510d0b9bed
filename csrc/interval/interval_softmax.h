// interval_softmax: the tightest bounds of each softmax probability over a box of logits. A kernel of its own, because
// the plain formula is O(n^2), and its short form takes a term out of a sum, which cancels where that term dominates.
//
//   l = c - r, u = c + r
//   lower[i] = e^l[i] / (e^l[i] + sum_{j != i} e^u[j]),   upper[i] = e^u[i] / (e^u[i] + sum_{j != i} e^l[j])
//   c' = (lower + upper) / 2,  r' = (upper - lower) / 2
//
// Layout   every array contiguous, [rows, n].
// Numerics in float32 (float64 for float64), rounded once, to T. The sums without i come from one sum a row, yet do not
//          cancel: the largest term m is never in a sum that it is taken out of. With M2 the second largest end,
//            T = sum_{j != m} e^(x[j] - M2)
//            without i != m: e^M (1 + (T - e^(x[i] - M2)) e^(M2 - M)),   without m: T e^M2
//          where what is left is never less than 1 (or T), in a shift that neither overflows nor vanishes.
//          A logit of -inf (center -inf, radius finite) has the box 0 +- 0; a row of them has nothing else, and no
//          gradient. NaN spreads over its row. A negative radius gives upper < lower, a negative radius.
// Bytes    forward: 4 sizeof(T) an element; backward: 6.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct IntervalSoftmaxArgs {
  int64_t rows, n;
  const T *center, *radius;
  T *out_center, *out_radius;
};

template <class T>
struct IntervalSoftmaxBackwardArgs {
  IntervalSoftmaxArgs<T> forward;  // outputs unused
  const T *grad_out_center, *grad_out_radius;
  T *grad_center, *grad_radius;
};

template <class T>
void interval_softmax_cpu(const IntervalSoftmaxArgs<T>& args);
template <class T>
void interval_softmax_cuda(const IntervalSoftmaxArgs<T>& args, void* stream);

template <class T>
void interval_softmax_backward_cpu(const IntervalSoftmaxBackwardArgs<T>& args);
template <class T>
void interval_softmax_backward_cuda(const IntervalSoftmaxBackwardArgs<T>& args, void* stream);

}  // namespace warpup
