// Forward: one block a row, one read of it. Backward: one block a piece of a row, so that few long rows fill the GPU
// too.
#include <algorithm>

#include "core/launch.cuh"
#include "core/listed_columns.cuh"
#include "core/math.h"
#include "core/row_reduce.cuh"
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

struct Or {
  __device__ int operator()(int a, int b) const { return a | b; }
};

struct Add {
  template <class Acc>
  __device__ TargetGradients<Acc> operator()(TargetGradients<Acc> a, TargetGradients<Acc> b) const {
    return {a.sum + b.sum, a.size + b.size};
  }
};

// of(rank, step) for the whole block, which shares the targets out among its threads where there is more than one.
template <int kThreads, class Of, class Op>
__device__ __forceinline__ auto over_targets(int64_t count, Of of, Op op) {
  return count == 1 ? of(0, 1) : block_reduce_up_to<kThreads>(of(threadIdx.x, blockDim.x), op);
}

constexpr int kMaxThreads = 512, kBackwardThreads = 256;

// Walks row r from column `begin` of the slice on: body(z', slopes, first), `first` counted from `begin`; the slopes are
// those of the form, 1 where kReplay is off.
template <class T, bool kReplay, class Body>
__device__ __forceinline__ void walk_row(const TokenLogprobArgs<T>& args, int64_t r, int64_t begin, int64_t n,
                                         Body body) {
  using Acc = acc_t<T>;
  const T* x = args.logits + args.logits_rows.offset(r) + begin;
  if constexpr (!kReplay) {
    walk<kUnroll<T>>(x, n, threadIdx.x, blockDim.x, [&]<int N>(const Acc(&z)[N], int64_t first) {
      Acc ones[N];
#pragma unroll
      for (int i = 0; i < N; ++i) ones[i] = Acc(1);
      body(z, ones, first);
    });
  } else {
    const uint8_t* token_set = args.token_set ? args.token_set + begin : nullptr;
    const uint8_t* kept_mask = args.kept_mask ? args.kept_mask + args.kept_rows.offset(r) + begin : nullptr;
    const Acc delta = delta_of(args, r);
    const LogitForm<Acc> form = args.form;
    walk<1>(x, n, threadIdx.x, blockDim.x, [&]<int N>(const Acc(&logits)[N], int64_t first) {
      Acc moved[N], slopes[N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const auto [z, slope] = form.at(logits[i]);
        const Acc raised = token_set && token_set[first + i] ? z + delta : z;
        moved[i] = kept_mask && !kept_mask[first + i] ? -kInf<Acc> : raised;
        slopes[i] = slope;
      }
      body(moved, slopes, first);
    });
  }
}

// ---- kernels --------------------------------------------------------------------------------------------------------

// kMoments: the sums for entropy and sum_p2, too. kReplay: in a form, under a sampler's token_set or kept_mask, or of
// several targets a row.
template <class T, bool kMoments, bool kReplay>
__global__ __launch_bounds__(kMaxThreads) void token_logprob_kernel(const TokenLogprobArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const Acc inv_t = inverse_temperature(args, r);
  Softmax<Acc> row;
  if (threadIdx.x == 0) row = read_state(args, r);
  const int64_t count = kReplay ? args.targets.count : 1;
  const auto of = [&](int64_t rank, int64_t step) { return kinds_of_targets(args, r, count, rank, step); };
  const int kinds = over_targets<kMaxThreads>(count, of, Or{});
  if (kinds & kCounted) {  // the same for the whole block
    // Each thread's own online softmax over its share of the row.
    walk_row<T, kReplay>(args, r, 0, args.vocab, [&]<int N>(const Acc(&z)[N], const Acc(&)[N], int64_t) {
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
    row = block_reduce_up_to<kMaxThreads>(row, Combine<Acc>{inv_t});
  }
  if (threadIdx.x == 0 || (kReplay && threadIdx.x < count)) {
    finish_row(args, r, row, kinds, count, kReplay ? threadIdx.x : 0, blockDim.x);
  }
}

template <class T, bool kReplay>
__global__ __launch_bounds__(kBackwardThreads) void token_logprob_backward_kernel(
    const TokenLogprobBackwardArgs<T> args, int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  // The piece [begin, begin + n) of row r, and where in it the target is.
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.logits + f.logits_rows.offset(r) + begin;
  T* dz = args.grad_logits + args.grad_logits_rows.offset(r) + begin;
  const int64_t count = kReplay ? f.targets.count : 1;
  const auto of = [&](int64_t rank, int64_t step) { return target_gradients(args, r, count, rank, step); };
  const TargetGradients<Acc> g = over_targets<kBackwardThreads>(count, of, Add{});
  const RowGradient<Acc> row = row_gradient(args, r, g);
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  // at_targets(first, more): adds to more[i] the gradient of a target at column first + i.
  const auto write = [&](const auto& at_targets) {
    walk_row<T, kReplay>(f, r, begin, n, [&]<int N>(const Acc(&z)[N], const Acc(&slopes)[N], int64_t first) {
      Acc more[N] = {}, out[N];
      at_targets(first, more);
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = row.zero ? Acc(0) : row(z[i], more[i]) * slopes[i];
      store_all(dz + first, out, aligned);
    });
  };
  if constexpr (!kReplay) {
    const int64_t y = f.targets.at(r, 0) - f.vocab_begin - begin;
    write([&]<int N>(int64_t first, Acc(&more)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) more[i] = first + i == y ? g.sum : Acc(0);
    });
  } else {
    __shared__ uint32_t words[ListedColumns::kWords];
    // The row's own lists, found once: their places are divisions of 64 bits, over which a loop spills.
    const int64_t* ids = &f.targets.at(r, 0);
    const Acc* gradients = args.grad_logp ? &args.grad_logp.at(r, 0) : nullptr;
    const uint8_t* kept = f.kept_mask ? f.kept_mask + f.kept_rows.offset(r) + begin : nullptr;
    const int64_t ids_stride = f.targets.stride, gradients_stride = args.grad_logp.stride, base = f.vocab_begin + begin;
    const auto column = [&](int64_t k) {  // of target k in this piece, -1 where it is not or has no gradient
      const int64_t y = ids[k * ids_stride], j = y - base;
      return y != f.ignore_index && j >= 0 && j < n && (!kept || kept[j]) ? j : -1;
    };
    const ListedColumns listed(words, gradients ? count : 0, column);
    write([&]<int N>(int64_t first, Acc(&more)[N]) {
      if (!listed.may_hold(first, N)) return;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t j = column(k);
        const Acc g_k = j < 0 ? Acc(0) : gradients[k * gradients_stride];
#pragma unroll
        for (int i = 0; i < N; ++i) more[i] += first + i == j ? g_k : Acc(0);
      }
    });
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

// One kernel for all sizes of block: the number of threads is not known when it is compiled. Short rows get small
// blocks, as a large one would wait on its own reduction. Two of 512 fit a multiprocessor, so that one streams while
// the other reduces.
template <class T, bool kMoments, bool kReplay>
void forward(const TokenLogprobArgs<T>& args, void* stream) {
  const int threads = args.vocab <= 1024 ? 32 : args.vocab <= 16384 ? 256 : kMaxThreads;
  launch("token_logprob", token_logprob_kernel<T, kMoments, kReplay>,
         dim3(static_cast<unsigned>(args.logits_rows.count)), dim3(threads), stream, args);
}

template <class T, bool kReplay>
void backward(const TokenLogprobBackwardArgs<T>& args, void* stream) {
  const TokenLogprobArgs<T>& f = args.forward;
  const int64_t piece = std::min<int64_t>(std::max<int64_t>(f.vocab, 1), kBackwardThreads * kVec<T> * kUnroll<T>);
  const int64_t pieces = ceil_div(f.vocab, piece);
  launch("token_logprob_backward", token_logprob_backward_kernel<T, kReplay>,
         dim3(static_cast<unsigned>(f.logits_rows.count * pieces)), dim3(kBackwardThreads), stream, args, piece,
         pieces);
}

}  // namespace

// float64, for tests and oracles, has the one kernel that can do everything; so has a replay, which reads masks
// besides, a form, and several targets a row.
template <class T>
void token_logprob_cuda(const TokenLogprobArgs<T>& args, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.as_given() && args.targets.count == 1) {
      return args.entropy || args.sum_p2 ? forward<T, true, false>(args, stream)
                                         : forward<T, false, false>(args, stream);
    }
  }
  forward<T, true, true>(args, stream);
}

template <class T>
void token_logprob_backward_cuda(const TokenLogprobBackwardArgs<T>& args, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.forward.as_given() && args.forward.targets.count == 1) return backward<T, false>(args, stream);
  }
  backward<T, true>(args, stream);
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
