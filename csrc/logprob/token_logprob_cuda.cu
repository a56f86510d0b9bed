// Forward: one block a row, one read of it. Backward: one block a piece of a row, so that few long rows fill the GPU
// too.
#include <algorithm>

#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "logprob/token_logprob.h"
#include "logprob/token_logprob_math.h"

namespace warpup {
namespace {

template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 2 : 4;  // 16-byte loads in flight a thread: 4 of them spill in float64

template <class Acc>
struct Combine {
  Acc inv_t;
  __device__ Softmax<Acc> operator()(Softmax<Acc> a, Softmax<Acc> b) const {
    const Acc max = a.max > b.max ? a.max : b.max;
    a = a.under(max, inv_t), b = b.under(max, inv_t);
    return {max, a.sum + b.sum, a.shifted + b.shifted, a.squares + b.squares};
  }
};

// Walks z' of row r from column `begin` of the slice on: body(values, first), `first` counted from `begin`.
template <class T, bool kReplay, int kThreads, class Body>
__device__ __forceinline__ void walk_row(const TokenLogprobArgs<T>& args, int64_t r, int64_t begin, int64_t n,
                                         Body body) {
  using Acc = acc_t<T>;
  const T* x = args.logits + args.logits_rows.offset(r) + begin;
  if constexpr (!kReplay) {
    walk<kUnroll<T>>(x, n, threadIdx.x, kThreads, body);
  } else {
    const uint8_t* boosted = args.boosted ? args.boosted + begin : nullptr;
    const uint8_t* kept = args.kept ? args.kept + args.kept_rows.offset(r) + begin : nullptr;
    const Acc delta = delta_of(args, r);
    walk<1>(x, n, threadIdx.x, kThreads, [&]<int N>(const Acc(&z)[N], int64_t first) {
      Acc moved[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Acc raised = boosted && boosted[first + i] ? z[i] + delta : z[i];
        moved[i] = kept && !kept[first + i] ? -kInf<Acc> : raised;
      }
      body(moved, first);
    });
  }
}

template <class T, bool kMoments, bool kReplay, int kThreads>
__global__ __launch_bounds__(kThreads) void token_logprob_kernel(const TokenLogprobArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const Acc inv_t = inverse_temperature(args, r);
  Softmax<Acc> row;
  if (threadIdx.x == 0) row = read_state(args, r);
  if (args.targets[args.targets_rows.offset(r)] != args.ignore_index) {  // the same for the whole block
    walk_row<T, kReplay, kThreads>(args, r, 0, args.vocab, [&]<int N>(const Acc(&z)[N], int64_t) {
      Acc max = row.max;
#pragma unroll
      for (int i = 0; i < N; ++i) max = z[i] > max ? z[i] : max;
      row = row.under(max, inv_t);
      const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Acc d = (z[i] - shift) * inv_t, e = exp_neg(d);
        row.sum += e;
        if constexpr (kMoments) row.shifted += e * bounded(d), row.squares += e * e;
      }
    });
    row = block_reduce<kThreads>(row, Combine<Acc>{inv_t});
  }
  if (threadIdx.x == 0) finish_row(args, r, row);
}

template <class T, bool kReplay, int kThreads>
__global__ __launch_bounds__(kThreads) void token_logprob_backward_kernel(const TokenLogprobBackwardArgs<T> args,
                                                                          int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.logits + f.logits_rows.offset(r) + begin;
  T* dz = args.grad_logits + args.grad_logits_rows.offset(r) + begin;
  int64_t y = f.targets[f.targets_rows.offset(r)] - f.vocab_begin - begin;
  if (kReplay && y >= 0 && y < n && !is_kept(f, r, begin + y)) y = -1;
  const RowGradient<Acc> row = row_gradient(args, r);
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;

  walk_row<T, kReplay, kThreads>(f, r, begin, n, [&]<int N>(const Acc(&z)[N], int64_t first) {
    Acc out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out[i] = row.zero ? Acc(0) : row(z[i]) + (first + i == y ? row.at_target * row.inv_t : Acc(0));
    }
    if constexpr (N == kVec<T>) {
      if (aligned) return store_vec(dz + first, out);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) dz[first + i] = store<T>(out[i]);
  });
}

template <class T, bool kMoments>
void forward(const TokenLogprobArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.logits_rows.count));
  // Short rows get small blocks: a large one would wait on its own reduction. Two of 512 fit a multiprocessor, so that
  // one streams while the other reduces.
  const auto start = [&]<bool kReplay, int kThreads>() {
    launch("token_logprob", token_logprob_kernel<T, kMoments, kReplay, kThreads>, grid, dim3(kThreads), stream, args);
  };
  if (args.boosted || args.kept) {
    start.template operator()<true, 256>();
  } else if (args.vocab <= 1024) {
    start.template operator()<false, 32>();
  } else if (args.vocab <= 16384) {
    start.template operator()<false, 256>();
  } else {
    start.template operator()<false, 512>();
  }
}

}  // namespace

template <class T>
void token_logprob_cuda(const TokenLogprobArgs<T>& args, void* stream) {
  args.entropy || args.sum_p2 ? forward<T, true>(args, stream) : forward<T, false>(args, stream);
}

template <class T>
void token_logprob_backward_cuda(const TokenLogprobBackwardArgs<T>& args, void* stream) {
  constexpr int kThreads = 256;
  const TokenLogprobArgs<T>& f = args.forward;
  const int64_t piece = std::min<int64_t>(std::max<int64_t>(f.vocab, 1), kThreads * kVec<T> * kUnroll<T>);
  const int64_t pieces = ceil_div(f.vocab, piece);
  const auto start = [&]<bool kReplay>() {
    launch("token_logprob_backward", token_logprob_backward_kernel<T, kReplay, kThreads>,
           dim3(static_cast<unsigned>(f.logits_rows.count * pieces)), dim3(kThreads), stream, args, piece, pieces);
  };
  f.boosted || f.kept ? start.template operator()<true>() : start.template operator()<false>();
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
