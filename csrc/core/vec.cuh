// Walking a row with 16-byte accesses, whatever its alignment and length.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "core/types.h"

namespace warpup {

template <class T>
inline constexpr int kVec = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void unpack(const uint4& raw, acc_t<T> (&to)[kVec<T>]) {
  T values[kVec<T>];
  memcpy(values, &raw, 16);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) to[i] = load(values[i]);
}

template <class T>
__device__ __forceinline__ void store_vec(T* to, const acc_t<T> (&from)[kVec<T>]) {
  T values[kVec<T>];
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) values[i] = store<T>(from[i]);
  uint4 raw;
  memcpy(&raw, values, 16);
  __stcs(reinterpret_cast<uint4*>(to), raw);
}

// from[0, N) to `to`, as a vector where it is one and `aligned` says that vectors of x and of `to` begin alike.
template <class T, int N>
__device__ __forceinline__ void store_all(T* to, const acc_t<T> (&from)[N], bool aligned) {
  if constexpr (N == kVec<T>) {
    if (aligned) return store_vec(to, from);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = store<T>(from[i]);
}

// Elements of x[0, n) before the first 16-byte boundary.
template <class T>
__device__ __forceinline__ int64_t unaligned_head(const T* x, int64_t n) {
  const int64_t head = (-reinterpret_cast<intptr_t>(x) & 15) / int64_t(sizeof(T));
  return head < n ? head : n;
}

// Calls body(values, first) on all of x[0, n), shared out over `step` threads of which this one is `rank`: `values` is
// an array of kVec elements that begin at index `first`, or of one. kUnroll vectors are in flight before the first is
// used. The elements beside the vectors, at both ends of the row, come first, in one loop: the body is compiled less
// often.
template <int kUnroll, class T, class Body>
__device__ __forceinline__ void walk(const T* x, int64_t n, int rank, int step, Body body) {
  using Acc = acc_t<T>;
  const int64_t head = unaligned_head(x, n), vectors = (n - head) / kVec<T>, inner = vectors * kVec<T>;
  for (int64_t i = rank; i < n - inner; i += step) {
    const int64_t j = i < head ? i : i + inner;
    const Acc one[1] = {load(x[j])};
    body(one, j);
  }
  for (int64_t v = rank; v < vectors; v += int64_t(step) * kUnroll) {
    uint4 raw[kUnroll];  // as they come: 16-bit values unpacked take twice the registers
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = v + u * int64_t(step);
      if (at < vectors) raw[u] = __ldcs(reinterpret_cast<const uint4*>(x + head + at * kVec<T>));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = v + u * int64_t(step);
      if (at >= vectors) break;
      Acc values[kVec<T>];
      unpack<T>(raw[u], values);
      body(values, head + at * kVec<T>);
    }
  }
}

}  // namespace warpup
