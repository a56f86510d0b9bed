// 16-bit values in the accumulator's type and back, in loops of their own: beside arithmetic gcc vectorises their loads
// badly.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
WARPUP_LOOP void widen(const T* __restrict x, int64_t n, acc_t<T>* __restrict to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = load(x[j]);
}

template <class T>
WARPUP_LOOP void narrow(const acc_t<T>* __restrict x, int64_t n, T* __restrict to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = store<T>(x[j]);
}

// Within a loop: x itself, or widened in `buffer`.
template <class T>
WARPUP_HD const acc_t<T>* widened(const T* x, int64_t n, acc_t<T>* buffer) {
  if constexpr (sizeof(T) > 2) {
    return x;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) buffer[j] = load(x[j]);
    return buffer;
  }
}

}  // namespace warpup
