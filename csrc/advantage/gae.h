// gae and reward_to_go: what each token of a response is worth, one recurrence from its last token to its first.
//
//   with values      A[t] = r[t] + gamma V[t+1] - V[t] + decay A[t+1]    decay = gamma lambda: the GAE advantage
//                    returns[t] = A[t] + V[t]
//   without values   A[t] = r[t] + decay A[t+1]                          decay = gamma: the reward-to-go
//
// Why      a row is a serial chain of thousands of steps: in torch ops several launches a token, here one kernel.
// Mask     tokens outside the mask (padding, tool output) neither add nor decay: t+1 means the next token inside it,
// and
//          their rewards and values are not read, so NaN there does no harm. Their results are 0. With `cut` such a
//          token ends the recurrence instead: A[t+1] = 0 before it.
// End      past the last token stands `bootstrap` (null: 0), as V where there are values, else as A.
// Layout   [rows, length], unit stride along length, rows strided; mask bytes, 0 or not; results contiguous.
// Numerics results in float32 (float64 for float64). CPU: a serial recurrence in float64. CUDA: a scan of pairs (a, b)
//          that stand for A -> a A + b, in float32 (float64 for float64), in an order that depends on the length alone.
// Bytes    rows * length * (sizeof(T) (2 + 2 with values) + 1).
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>  // float, double
struct GaeArgs {
  int64_t rows, length;
  const T* rewards;
  int64_t rewards_stride;
  const T* values;  // or null
  int64_t values_stride;
  const uint8_t* mask;
  int64_t mask_stride;
  const T* bootstrap;  // contiguous [rows], or null
  double gamma, decay;
  bool cut;
  T* advantages;  // contiguous [rows, length]
  T* returns;     // contiguous [rows, length], or null; needs values
};

template <class T>
void gae_cpu(const GaeArgs<T>& args);
template <class T>
void gae_cuda(const GaeArgs<T>& args, void* stream);

}  // namespace warpup
