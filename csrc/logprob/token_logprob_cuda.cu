// Forward: one block a row, one read of it. Backward: one block a piece of a row, so that few long rows fill the GPU
// too.
#include <algorithm>

#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "logprob/token_logprob.h"

namespace warpup {
namespace {

template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 2 : 4;  // 16-byte loads in flight a thread: 4 of them spill in float64

template <class Acc>
struct Softmax {  // of the z seen so far: max, sum of e = exp(x), sum of e x; x = (z - max) / T
  Acc max, sum, shifted;
};

// exp(d) for d <= 0 and d * exp(d) that is 0 rather than NaN at d = -inf.
template <class Acc>
__device__ __forceinline__ Acc bounded(Acc d) {
  return d < Acc(-200) ? Acc(-200) : d;
}

template <class Acc>
__device__ __forceinline__ Softmax<Acc> rescale(Softmax<Acc> s, Acc max, Acc inv_t) {
  if (s.max == max || s.sum == 0) return {max, s.sum, s.shifted};
  const Acc moved = (s.max - max) * inv_t, scale = exp_neg(moved);
  return {max, s.sum * scale, scale * (s.shifted + moved * s.sum)};
}

template <class Acc>
struct Combine {
  Acc inv_t;
  __device__ Softmax<Acc> operator()(Softmax<Acc> a, Softmax<Acc> b) const {
    const Acc max = a.max > b.max ? a.max : b.max;
    a = rescale(a, max, inv_t), b = rescale(b, max, inv_t);
    return {max, a.sum + b.sum, a.shifted + b.shifted};
  }
};

template <class T, bool kEntropy, int kThreads>
__global__ __launch_bounds__(kThreads) void token_logprob_kernel(const TokenLogprobArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const T* x = args.logits + args.logits_rows.offset(r);
  const int64_t y = args.targets[args.targets_rows.offset(r)];
  const double t = args.temperature ? args.temperature[args.temperature_rows.offset(r)] : args.temperature_scalar;
  const Acc inv_t = static_cast<Acc>(1 / t);
  const bool ignored = y == args.ignore_index;

  Softmax<Acc> row{-kInf<Acc>, 0, 0};
  if (!ignored) {  // the same for the whole block
    walk<kUnroll<T>>(x, args.vocab, threadIdx.x, kThreads, [&]<int N>(const Acc(&z)[N], int64_t) {
      Acc max = row.max;
#pragma unroll
      for (int i = 0; i < N; ++i) max = z[i] > max ? z[i] : max;
      row = rescale(row, max, inv_t);
      const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Acc d = (z[i] - shift) * inv_t, e = exp_neg(d);
        row.sum += e;
        if constexpr (kEntropy) row.shifted += e * bounded(d);
      }
    });
    row = block_reduce<kThreads>(row, Combine<Acc>{inv_t});
  }
  if (threadIdx.x != 0) return;
  const bool empty = ignored || row.sum == 0;
  const bool invalid = !ignored && (y < 0 || y >= args.vocab || !(inv_t > 0));  // T = 0 gives NaN by itself
  const Acc nan = kInf<Acc> - kInf<Acc>;
  const Acc log_sum = log(row.sum);
  args.stats[2 * r] = invalid ? nan : empty ? Acc(0) : row.max;
  args.stats[2 * r + 1] = empty ? kInf<Acc> : log_sum;
  args.logp[r] = invalid ? nan : empty ? Acc(0) : (load(x[y]) - row.max) * inv_t - log_sum;
  if (args.entropy) args.entropy[r] = invalid ? nan : empty ? Acc(0) : log_sum - row.shifted / row.sum;
}

template <class T, int kThreads>
__global__ __launch_bounds__(kThreads) void token_logprob_backward_kernel(const TokenLogprobBackwardArgs<T> args,
                                                                          int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.logits + f.logits_rows.offset(r) + begin;
  T* dz = args.grad_logits + args.grad_logits_rows.offset(r) + begin;
  const int64_t y = f.targets[f.targets_rows.offset(r)] - begin;
  const double t = f.temperature ? f.temperature[f.temperature_rows.offset(r)] : f.temperature_scalar;
  const Acc inv_t = static_cast<Acc>(1 / t);
  const Acc max = f.stats[2 * r], log_sum = f.stats[2 * r + 1];
  const Acc g = args.grad_logp ? args.grad_logp[args.grad_logp_rows.offset(r)] : Acc(0);
  const Acc h = args.grad_entropy ? args.grad_entropy[args.grad_entropy_rows.offset(r)] : Acc(0);
  const Acc a = g + (h == 0 ? Acc(0) : h * f.entropy[r]);
  const bool zero = log_sum == kInf<Acc> || (g == 0 && h == 0);
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;

  walk<kUnroll<T>>(x, n, threadIdx.x, kThreads, [&]<int N>(const Acc(&z)[N], int64_t first) {
    Acc out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const Acc d = (z[i] - max) * inv_t - log_sum;
      const Acc at_target = first + i == y ? g : Acc(0);
      out[i] = zero ? Acc(0) : inv_t * (at_target - exp_neg(d) * (a + h * bounded(d)));
    }
    if constexpr (N == kVec<T>) {
      if (aligned) return store_vec(dz + first, out);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) dz[first + i] = store<T>(out[i]);
  });
}

template <class T, bool kEntropy>
void forward(const TokenLogprobArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.logits_rows.count));
  // Short rows get small blocks: a large one would wait on its own reduction. Two of 512 fit a multiprocessor, so that
  // one streams while the other reduces.
  if (args.vocab <= 1024) {
    launch("token_logprob", token_logprob_kernel<T, kEntropy, 32>, grid, dim3(32), stream, args);
  } else if (args.vocab <= 16384) {
    launch("token_logprob", token_logprob_kernel<T, kEntropy, 256>, grid, dim3(256), stream, args);
  } else {
    launch("token_logprob", token_logprob_kernel<T, kEntropy, 512>, grid, dim3(512), stream, args);
  }
}

}  // namespace

template <class T>
void token_logprob_cuda(const TokenLogprobArgs<T>& args, void* stream) {
  args.entropy ? forward<T, true>(args, stream) : forward<T, false>(args, stream);
}

template <class T>
void token_logprob_backward_cuda(const TokenLogprobBackwardArgs<T>& args, void* stream) {
  constexpr int kThreads = 256;
  const int64_t piece = std::min<int64_t>(std::max<int64_t>(args.forward.vocab, 1), kThreads * kVec<T> * kUnroll<T>);
  const int64_t pieces = ceil_div(args.forward.vocab, piece);
  launch("token_logprob_backward", token_logprob_backward_kernel<T, kThreads>,
         dim3(static_cast<unsigned>(args.forward.logits_rows.count * pieces)), dim3(kThreads), stream, args, piece,
         pieces);
}

#define INSTANTIATE(T)                                                                \
  template void token_logprob_cuda<T>(const TokenLogprobArgs<T>& args, void* stream); \
  template void token_logprob_backward_cuda<T>(const TokenLogprobBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
