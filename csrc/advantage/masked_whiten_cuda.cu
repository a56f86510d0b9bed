// Three launches: a block a chunk, one block for the chunks, then the elements.
#include <algorithm>

#include "advantage/masked_whiten.h"
#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"

namespace warpup {
namespace {

constexpr int kThreads = 256, kPerThread = Moments::kChunk / kThreads;

template <class T>
struct Sums {
  T sum, max, min, n;
};
template <class T>
struct Squares {
  T d, dd;
};

struct Merge {
  template <class T>
  __device__ __forceinline__ Sums<T> operator()(const Sums<T>& a, const Sums<T>& b) const {
    return {a.sum + b.sum, a.max > b.max ? a.max : b.max, a.min < b.min ? a.min : b.min, a.n + b.n};
  }
  template <class T>
  __device__ __forceinline__ Squares<T> operator()(const Squares<T>& a, const Squares<T>& b) const {
    return {a.d + b.d, a.dd + b.dd};
  }
};

template <class T>
__global__ __launch_bounds__(kThreads) void chunk_moments_kernel(const MaskedMomentsArgs<T> args) {
  const int64_t begin = int64_t(blockIdx.x) * Moments::kChunk;
  T x[kPerThread];
  unsigned kept = 0;
  Sums<T> sums{0, -kInf<T>, kInf<T>, 0};
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = begin + k * kThreads + threadIdx.x;
    const bool inside = i < args.count && (!args.mask || args.mask[i] != 0);
    x[k] = inside ? args.x[i] : T(0);
    if (!inside || (args.skip_nan && x[k] != x[k])) continue;
    kept |= 1u << k;
    sums = Merge{}(sums, Sums<T>{x[k], x[k], x[k], 1});
  }
  sums = block_reduce<kThreads>(sums, Merge{});
  const T n = sums.n, mean = n > 0 ? sums.sum / n : T(0);
  Squares<T> squares{0, 0};
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const T d = x[k] - mean;
    if (kept >> k & 1u) squares = Merge{}(squares, Squares<T>{d, d * d});
  }
  squares = block_reduce<kThreads>(squares, Merge{});
  if (threadIdx.x != 0) return;
  const double rest = n > 0 ? double(squares.d) / double(n) : 0;
  const Moments chunk{double(n), double(mean) + rest, double(squares.dd) - double(squares.d) * rest, double(sums.max),
                      double(sums.min)};
  chunk.store(args.partials + int64_t(blockIdx.x) * Moments::kPartial);
}

// Thread t merges chunks t, t + kThreads, ...; then a fixed tree.
__global__ __launch_bounds__(kThreads) void merge_moments_kernel(int64_t chunks, int32_t correction,
                                                                 const double* partials, double* moments) {
  Moments all;
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads) all.merge(Moments::load(partials + c * Moments::kPartial));
  __shared__ double each[kThreads][Moments::kPartial];
  all.store(each[threadIdx.x]);
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    all.merge(Moments::load(each[threadIdx.x + half]));
    all.store(each[threadIdx.x]);
  }
  if (threadIdx.x == 0) all.result(correction, moments);
}

template <class T>
__global__ __launch_bounds__(kThreads) void whiten_kernel(const MaskedWhitenArgs<T> args) {
  const double* m = args.of.moments;
  const T high = static_cast<T>(m[1]), low = m[3] != 0 ? T(0) : static_cast<T>(m[1] - double(high));
  const double variance = m[2] + args.eps;
  const T factor = variance == 0 ? T(0) : static_cast<T>(1 / sqrt(variance));  // not 0 * inf
  const T shift = args.shift_mean ? T(0) : high;
  const int64_t begin = int64_t(blockIdx.x) * Moments::kChunk;
#pragma unroll 4
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t i = begin + k * kThreads + threadIdx.x;
    if (i >= args.of.count) return;
    const bool inside = !args.of.mask || args.of.mask[i] != 0;
    args.out[i] = inside ? (args.of.x[i] - high - low) * factor + shift : T(0);
  }
}

}  // namespace

template <class T>
void masked_moments_cuda(const MaskedMomentsArgs<T>& args, void* stream) {
  const int64_t chunks = Moments::chunks(args.count);
  launch("chunk_moments", chunk_moments_kernel<T>, dim3(static_cast<unsigned>(chunks)), dim3(kThreads), stream, args);
  launch("merge_moments", merge_moments_kernel, dim3(1), dim3(kThreads), stream, chunks, args.correction, args.partials,
         args.moments);
}

template <class T>
void masked_whiten_cuda(const MaskedWhitenArgs<T>& args, void* stream) {
  masked_moments_cuda(args.of, stream);
  const dim3 grid(static_cast<unsigned>(Moments::chunks(args.of.count)));
  launch("masked_whiten", whiten_kernel<T>, grid, dim3(kThreads), stream, args);
}

#define INSTANTIATE(T)                                                                  \
  template void masked_moments_cuda<T>(const MaskedMomentsArgs<T>& args, void* stream); \
  template void masked_whiten_cuda<T>(const MaskedWhitenArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
