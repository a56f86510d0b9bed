// Warp and block reductions of any trivially copyable value, in a fixed order: the same bits on every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace warpup {

inline constexpr unsigned kFullWarp = 0xffffffffu;

template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int lane_mask) {
  static_assert(sizeof(V) % 4 == 0);
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &value, sizeof(V));
#pragma unroll
  for (auto& word : words) word = __shfl_xor_sync(kFullWarp, word, lane_mask);
  memcpy(&value, words, sizeof(V));
  return value;
}

// Every lane gets the reduction over the warp.
template <class V, class Op>
__device__ __forceinline__ V warp_reduce(V value, Op op) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) value = op(value, shuffle_xor(value, lane_mask));
  return value;
}

// Every thread of the block gets the reduction over the block. All threads must arrive.
template <int kThreads, class V, class Op>
__device__ __forceinline__ V block_reduce(V value, Op op) {
  constexpr int kWarps = kThreads / 32;
  value = warp_reduce(value, op);
  if constexpr (kWarps == 1) return value;
  __shared__ V partial[kWarps];
  __syncthreads();  // a previous reduction may still be reading
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
  for (int w = 1; w < kWarps; ++w) value = op(value, partial[w]);
  return value;
}

}  // namespace warpup
