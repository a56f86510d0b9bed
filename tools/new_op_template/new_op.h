// new_op: x scaled, the smallest operator there can be. Replace this by what yours computes and why.
//
//   out = scale x          backward: grad_x = scale grad_out
//
// Layout   x, out contiguous, of `count` elements.
// Numerics products in float32 (float64 for float64), rounded once.
// Bytes    count read, count written, each way.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct NewOpArgs {
  int64_t count;
  const T* x;
  double scale;
  T* out;
};

template <class T>
void new_op_cpu(const NewOpArgs<T>& args);
template <class T>
void new_op_cuda(const NewOpArgs<T>& args, void* stream);

}  // namespace warpup
