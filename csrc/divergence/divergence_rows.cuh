// What the CUDA kernels of divergence and topk_divergence share: the softmax's sums of a row, and sums of pairs.
#pragma once

#include <algorithm>

#include "core/launch.cuh"
#include "core/row_reduce.cuh"
#include "core/vec.cuh"
#include "divergence/divergence_math.h"

namespace warpup {
namespace {

template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 2;  // 16-byte loads in flight a thread and side

template <class Acc>
struct RowSum {  // of the z seen so far: max, sum of exp((z - max) / T)
  Acc max, sum;
};

template <class Acc>
struct Sums {
  Acc value, c;
};

struct Add {
  template <class Acc>
  __device__ Sums<Acc> operator()(Sums<Acc> a, Sums<Acc> b) const {
    return {a.value + b.value, a.c + b.c};
  }
};

template <class Acc>
__device__ __forceinline__ Acc rescaled(RowSum<Acc> s, Acc max, Acc inv_t) {
  return s.max == max || s.sum == 0 ? s.sum : s.sum * exp_neg((s.max - max) * inv_t);
}

template <class Acc>
struct Combine {
  Acc inv_t;
  __device__ RowSum<Acc> operator()(RowSum<Acc> a, RowSum<Acc> b) const {
    const Acc max = a.max > b.max ? a.max : b.max;
    return {max, rescaled(a, max, inv_t) + rescaled(b, max, inv_t)};
  }
};

// A row needs one block of this size at most; a short one gets a smaller block, as a large one would wait on its own
// reductions. One kernel serves both: the number of threads is not known when it is compiled.
constexpr int kMaxThreads = 512;
inline int threads_for(int64_t vocab) { return vocab <= 4096 ? 128 : kMaxThreads; }

struct AsGiven {
  template <class Acc>
  __device__ Acc operator()(Acc x) const {
    return x;
  }
};

struct AllColumns {
  template <class Acc, int N>
  __device__ void operator()(Acc (&)[N], int64_t) const {}
};

// form: what makes a logit z of what is read. leave_out(z, first): makes -inf of what is not to count among the logits z
// from column `first` on.
template <class T, class Form = AsGiven, class LeaveOut = AllColumns>
__device__ __forceinline__ RowSum<acc_t<T>> sum_row(const T* x, int64_t n, acc_t<T> inv_t, Form form = {},
                                                    LeaveOut leave_out = {}) {
  using Acc = acc_t<T>;
  RowSum<Acc> row{-kInf<Acc>, 0};
  walk<2 * kUnroll<T>>(x, n, threadIdx.x, blockDim.x, [&]<int N>(const Acc(&logits)[N], int64_t first) {
    Acc max = row.max, z[N];
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = form(logits[i]);
    leave_out(z, first);
#pragma unroll
    for (int i = 0; i < N; ++i) max = z[i] > max ? z[i] : max;
    row = {max, rescaled(row, max, inv_t)};
    const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma unroll
    for (int i = 0; i < N; ++i) row.sum += exp_neg((z[i] - shift) * inv_t);
  });
  return block_reduce_up_to<kMaxThreads>(row, Combine<Acc>{inv_t});
}

constexpr int kBackwardThreads = 256;

// Columns of a row that one block of a backward takes.
template <class T>
int64_t piece_of(int64_t vocab) {
  return std::min<int64_t>(std::max<int64_t>(vocab, 1), kBackwardThreads * kVec<T> * kUnroll<T> * 2);
}

}  // namespace
}  // namespace warpup
