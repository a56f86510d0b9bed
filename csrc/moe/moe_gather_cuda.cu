// moe_gather: a warp a copy, so that the copies of a token find its row in L1. moe_combine: a warp for a stretch of a
// token's columns, the copies' rows added in registers.
#include <algorithm>

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "moe/moe_gather.h"

namespace warpup {
namespace {

constexpr int kWarps = 8;

// N values from where a 16-byte vector may begin, or one from anywhere.
template <class T, int N>
__device__ __forceinline__ void read(const T* from, acc_t<T> (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = load(*from);
  } else {
    unpack<T>(*reinterpret_cast<const uint4*>(from), to);
  }
}

template <class T, int N>
__device__ __forceinline__ void write(T* to, const acc_t<T> (&from)[N]) {
  if constexpr (N == 1) {
    *to = store<T>(from[0]);
  } else {
    store_vec(to, from);
  }
}

template <class T, int N>
__global__ __launch_bounds__(32 * kWarps) void moe_gather_kernel(const MoeGatherArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;  // a copy, and a row to see whether it is empty
  const int lane = threadIdx.x % 32;
  if (item < args.rows && args.permutation[item] < 0) {
    const Acc zeros[N] = {};
    for (int64_t i = lane * N; i < args.width; i += 32 * N) write<T, N>(args.out + item * args.width + i, zeros);
  }
  if (item >= args.tokens * args.k) return;
  const int64_t row = args.inverse[item];
  const bool held = row >= 0 && row < args.rows;
  Acc dot = 0;
  if (held) {
    const T* x = args.x + item / args.k * args.x_stride;
    const T* y = args.y + row * args.y_stride;
    T* out = args.out + row * args.width;
    const Acc w = args.weights ? args.weights[item] : Acc(1);
#pragma unroll 2
    for (int64_t i = lane * N; i < args.width; i += 32 * N) {
      Acc values[N], others[N];
      read<T, N>(x + i, values);
      if (args.grad_weights) read<T, N>(y + i, others);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (args.grad_weights) dot += values[n] * others[n];
        values[n] *= w;
      }
      write<T, N>(out + i, values);
    }
  }
  if (!args.grad_weights) return;
  dot = warp_reduce(dot, [](Acc a, Acc b) { return a + b; });
  if (lane == 0) args.grad_weights[item] = dot;
}

template <class T, int N>
__global__ __launch_bounds__(32 * kWarps) void moe_combine_kernel(const MoeCombineArgs<T> args, int64_t stretches) {
  using Acc = acc_t<T>;
  const int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, t = item / stretches;
  const int64_t i = (item % stretches * 32 + threadIdx.x % 32) * N;
  if (t >= args.tokens || i >= args.width) return;
  Acc sum[N] = {};
#pragma unroll 4
  for (int64_t copy = t * args.k; copy < (t + 1) * args.k; ++copy) {
    const int64_t row = args.inverse[copy];
    if (row < 0 || row >= args.rows) continue;
    const Acc w = args.weights ? args.weights[copy] : Acc(1);
    Acc values[N];
    read<T, N>(args.y + row * args.y_stride + i, values);
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] += w * values[n];
  }
  write<T, N>(args.out + t * args.width + i, sum);
}

// Whether every row of an array begins where a 16-byte vector may.
template <class T>
bool aligned(const T* first, int64_t stride) {
  return reinterpret_cast<intptr_t>(first) % 16 == 0 && stride % kVec<T> == 0;
}

}  // namespace

template <class T>
void moe_gather_cuda(const MoeGatherArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(std::max(args.tokens * args.k, args.rows), kWarps)));
  const bool vectors =
      aligned(args.x, args.x_stride) && aligned(args.y, args.y_stride) && aligned<T>(args.out, args.width);
  launch("moe_gather", vectors ? moe_gather_kernel<T, kVec<T>> : moe_gather_kernel<T, 1>, grid, dim3(32 * kWarps),
         stream, args);
}

template <class T>
void moe_combine_cuda(const MoeCombineArgs<T>& args, void* stream) {
  const bool vectors = aligned(args.y, args.y_stride) && aligned<T>(args.out, args.width);
  const int64_t stretches = ceil_div(args.width, 32 * (vectors ? kVec<T> : 1));
  const dim3 grid(static_cast<unsigned>(ceil_div(args.tokens * stretches, kWarps)));
  launch("moe_combine", vectors ? moe_combine_kernel<T, kVec<T>> : moe_combine_kernel<T, 1>, grid, dim3(32 * kWarps),
         stream, args, stretches);
}

#define INSTANTIATE(T)                                                          \
  template void moe_gather_cuda<T>(const MoeGatherArgs<T>& args, void* stream); \
  template void moe_combine_cuda<T>(const MoeCombineArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
