// reverse_scan: the linear recurrence behind GAE and reward-to-go, from the right.
//
//   without values   x[t] = r[t] + decay x[t+1]                                    decay = gamma: the reward-to-go
//   with values      x[t] = r[t] + gamma V[t+1] - V[t] + decay x[t+1]              decay = gamma lambda: the GAE
//   advantage
//                    returns[t] = x[t] + V[t]
//   Tokens outside the mask neither add nor decay: t+1 means the next token inside it, and what lies outside is not
//   read into anything. With `cut` such a token ends the recurrence instead: x[t+1] = 0. Past the last token V, or x
//   where there are no values, is `bootstrap` (null: 0). Outside the mask the results are 0.
//
// Layout   [rows, length], unit stride along length, rows strided; mask bytes, 0 or not; results contiguous.
// Numerics float32 (float64 for float64) results. CPU: a serial recurrence in float64. CUDA: a scan of pairs (a, b), x
// = a y + b,
//          in float32 (float64 for float64), in an order that depends on nothing but the length.
// Bytes    rows * length * (sizeof(T) (2 + 2 with values) + 1).
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>  // float, double
struct ReverseScanArgs {
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
  T* x;        // contiguous [rows, length]
  T* returns;  // contiguous [rows, length], or null; needs values
};

template <class T>
void reverse_scan_cpu(const ReverseScanArgs<T>& args);
template <class T>
void reverse_scan_cuda(const ReverseScanArgs<T>& args, void* stream);

}  // namespace warpup
