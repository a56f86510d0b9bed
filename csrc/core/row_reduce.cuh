// `block_reduce` for kernels that give a short row a small block: the number of threads is known at launch only, so that
// one compiled kernel serves all of them.
#pragma once

#include "core/reduce.cuh"

namespace warpup {

// Every thread of the block gets the reduction over the block, of any number of full warps up to kMaxThreads. All
// threads must arrive.
template <int kMaxThreads, class V, class Op>
__device__ __forceinline__ V block_reduce_up_to(V value, Op op) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  value = warp_reduce(value, op);
  if (warps == 1) return value;
  __shared__ V partial[kMaxThreads / 32];
  __syncthreads();  // a previous reduction may still be reading
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[0];
  for (int w = 1; w < warps; ++w) value = op(value, partial[w]);
  return value;
}

}  // namespace warpup
