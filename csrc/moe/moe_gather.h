// moe_gather and moe_combine: a token's row to the rows of its copies, and those back to one. Each is the other's
// backward, so these two kernels are all four directions. Indexing in torch needs atomics for the backward, or sorts,
// and rounds each addition; here a token owns what is computed for it.
//
//   moe_gather    out[inverse[t, j]] = w[t, j] x[t], other rows 0             gather forward: w = 1
//                 grad_w[t, j] = <y[inverse[t, j]], x[t]>                     combine backward: x = dy
//   moe_combine   out[t] = sum over j of w[t, j] y[inverse[t, j]]             combine forward; gather backward: w = 1
//
// Layout   x [tokens, width], y and out [rows, width] (combine: [tokens, width]): unit stride along width, x and y any
//          stride between rows, out contiguous. permutation [rows], inverse, w, grad_w [tokens, k] contiguous. A copy
//          whose inverse is outside [0, rows) was dropped: it adds nothing, its grad_w is 0.
// Numerics products and sums in float32 (float64 for float64), over j in order, rounded once; w is in that type.
//          A token owns all that is computed for it: no atomics, the same bits on any number of threads.
// Bytes    gather: tokens * width read, rows * width written, + copies * width read for grad_w.
//          combine: copies * width read, tokens * width written.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct MoeGatherArgs {
  using Acc = acc_t<T>;
  int64_t tokens, k, rows, width;
  const T* x;
  int64_t x_stride;
  const int64_t *permutation, *inverse;
  const Acc* weights;  // or null: 1
  const T* y;          // read for grad_weights
  int64_t y_stride;
  T* out;
  Acc* grad_weights;  // or null
};

template <class T>
struct MoeCombineArgs {
  using Acc = acc_t<T>;
  int64_t tokens, k, rows, width;
  const T* y;
  int64_t y_stride;
  const int64_t* inverse;
  const Acc* weights;  // or null: 1
  T* out;
};

template <class T>
void moe_gather_cpu(const MoeGatherArgs<T>& args);
template <class T>
void moe_gather_cuda(const MoeGatherArgs<T>& args, void* stream);

template <class T>
void moe_combine_cpu(const MoeCombineArgs<T>& args);
template <class T>
void moe_combine_cuda(const MoeCombineArgs<T>& args, void* stream);

}  // namespace warpup
