// interval_sign: the gradient of |W| R and of W C together, over the product that it comes from.
//
//   g = base + sign(w) g        sign(0) = 0; base may be null: 0
//
// Layout   g, w, base flat [count], in one layout.
// Bytes    count * sizeof(T) read twice (with a base three times) and written once; no sign(W) ever exists.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct IntervalSignArgs {
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
void interval_sign_cpu(const IntervalSignArgs<T>& args);
template <class T>
void interval_sign_cuda(const IntervalSignArgs<T>& args, void* stream);

}  // namespace warpup
