// Forward: one block a row, one read of the student's; the K listed tokens are fetched once its log-sum is there.
// Backward: one block a piece of a row, which writes the softmax, then the listed tokens of that piece again.
#include "core/listed_columns.cuh"
#include "divergence/divergence_rows.cuh"
#include "divergence/topk_divergence_math.h"

namespace warpup {
namespace {

template <class Acc>
struct TopkSums {
  Acc value, g;
  double p_t;
};

struct AddTopk {
  template <class Acc>
  __device__ TopkSums<Acc> operator()(TopkSums<Acc> a, TopkSums<Acc> b) const {
    return {a.value + b.value, a.g + b.g, a.p_t + b.p_t};
  }
};

// Sums over the unlisted tokens of a row, and with the listed ones over all; without a tail no token is listed here.
template <class T>
__device__ __forceinline__ void sum_both(const TopkDivergenceArgs<T>& args, const T* x, const TopkList<T>& list,
                                         acc_t<T> inv_t, RowSum<acc_t<T>>* rest, RowSum<acc_t<T>>* all) {
  using Acc = acc_t<T>;
  __shared__ uint32_t words[ListedColumns::kWords];
  const int64_t count = args.tail ? list.count : 0;
  const auto column = [&](int64_t k) { return list.holds(k) && list.ids[k] < args.vocab ? list.ids[k] : -1; };
  const ListedColumns listed(words, count, column);
  *rest = sum_row(x, args.vocab, inv_t, args.form, [&]<int N>(Acc(&z)[N], int64_t first) {
    if (!listed.may_hold(first, N)) return;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t j = column(k);
#pragma unroll
      for (int i = 0; i < N; ++i) z[i] = first + i == j ? -kInf<Acc> : z[i];
    }
  });
  const Combine<Acc> combine{inv_t};
  RowSum<Acc> mine{-kInf<Acc>, 0};
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
    if (column(k) < 0 || !list.first_of_its_id(k)) continue;
    const Acc z = args.form(load(x[column(k)]));
    if (z != -kInf<Acc>) mine = combine(mine, {z, Acc(1)});
  }
  *all = combine(*rest, block_reduce_up_to<kMaxThreads>(mine, combine));
}

// kAsGiven: of logits without a form, and without a tail.
template <class T, bool kAsGiven>
__global__ __launch_bounds__(kMaxThreads) void topk_divergence_kernel(const TopkDivergenceArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const T* x = args.student + args.student_rows.offset(r);
  const TopkList<T> list = list_of(args, r);
  const Acc inv_t = inverse_temperature(args, r), beta = static_cast<Acc>(args.beta), nan = kInf<Acc> - kInf<Acc>;
  RowSum<Acc> all{0, 0}, rest{0, 0};
  if (counts(args, r)) {  // the same for the whole block
    if constexpr (kAsGiven) {
      all = rest = sum_row(x, args.vocab, inv_t);
    } else {
      sum_both(args, x, list, inv_t, &rest, &all);
    }
  }
  const bool empty = all.sum == 0;
  const auto s = row_side(all.max, all.sum);
  TopkSums<Acc> sums{};
  for (int64_t k = threadIdx.x; k < list.count && !empty; k += blockDim.x) {
    if (!list.holds(k)) continue;
    const bool inside = list.ids[k] >= 0 && list.ids[k] < args.vocab && inv_t > 0;
    Acc z = inside ? load(x[list.ids[k]]) : nan;
    if constexpr (!kAsGiven) z = args.form(z);
    const auto term = topk_term(args.jsd, beta, list.logp[k], s(z, inv_t).x - s.log);
    sums.value += term.value, sums.g += term.g;
    if constexpr (!kAsGiven) sums.p_t += exp_neg(double(list.logp[k]));
  }
  sums = block_reduce_up_to<kMaxThreads>(sums, AddTopk{});
  if (threadIdx.x != 0) return;
  Acc of_rest = -sums.g;
  if (!kAsGiven && args.tail && !empty) {
    const Acc log_s = rest.sum == 0 ? -kInf<Acc> : (rest.max - all.max) * inv_t + log_pos(rest.sum / all.sum);
    const auto term = topk_term(args.jsd, beta, static_cast<Acc>(log_tail(sums.p_t)), log_s);
    sums.value += term.value, sums.g += term.g;
    of_rest = term.g - exp_neg(log_s) * sums.g;
    if (rest.sum == 0) rest = all;  // there is nothing for it to be of
  }
  args.value[r] = sums.value;
  const Acc kept[] = {all.max, all.sum, rest.max, rest.sum, sums.g, of_rest};
  for (int i = 0; i < kTopkStats; ++i) args.stats[kTopkStats * r + i] = empty ? Acc(0) : kept[i];
}

template <class T, bool kAsGiven>
__global__ __launch_bounds__(kBackwardThreads) void topk_divergence_backward_kernel(
    const TopkDivergenceBackwardArgs<T> args, int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.student + f.student_rows.offset(r) + begin;
  T* dz = args.grad_student + args.grad_student_rows.offset(r) + begin;
  const Acc* stats = f.stats + kTopkStats * r;
  const TopkRow<Acc> row = topk_row(stats);
  const Acc g = args.grad_value[r], inv_t = inverse_temperature(f, r), factor = g * inv_t;
  const bool zero = stats[1] == 0 || g == 0;
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  const auto form = [&](Acc logit) {
    if constexpr (kAsGiven) return typename LogitForm<Acc>::Point{logit, Acc(1)};
    return f.form.at(logit);
  };
  walk<1>(x, n, threadIdx.x, kBackwardThreads, [&]<int N>(const Acc(&logits)[N], int64_t first) {
    Acc out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const auto [z, slope] = form(logits[i]);
      out[i] = zero ? Acc(0) : factor * row.of_rest * row.rest(z, inv_t).p * slope;
    }
    store_all(dz + first, out, aligned);
  });
  if (zero) return;
  __syncthreads();  // the listed tokens of this piece are written again
  const TopkList<T> list = list_of(f, r);
  for (int64_t k = threadIdx.x; k < list.count; k += kBackwardThreads) {
    const int64_t j = list.ids[k] - begin;
    if (j < 0 || j >= n || !list.holds(k)) continue;
    const auto [z, slope] = form(load(x[j]));
    const auto token = row.all(z, inv_t);
    if (token.x == -kInf<Acc>) continue;
    Acc g_k = 0;  // of all entries with this id: a token listed twice counts twice, and both write the same
    for (int64_t i = 0; i < list.count; ++i) {
      if (list.ids[i] != list.ids[k]) continue;
      g_k += topk_term(f.jsd, static_cast<Acc>(f.beta), list.logp[i], token.x - row.all.log).g;
    }
    dz[j] = store<T>(factor * row.listed(token.p, g_k) * slope);
  }
}

template <class T, bool kAsGiven>
void start(const TopkDivergenceArgs<T>& args, void* stream) {
  launch("topk_divergence", topk_divergence_kernel<T, kAsGiven>, dim3(static_cast<unsigned>(args.student_rows.count)),
         dim3(256), stream, args);
}

template <class T, bool kAsGiven>
void start_backward(const TopkDivergenceBackwardArgs<T>& args, void* stream) {
  const int64_t piece = piece_of<T>(args.forward.vocab), pieces = ceil_div(args.forward.vocab, piece);
  launch("topk_divergence_backward", topk_divergence_backward_kernel<T, kAsGiven>,
         dim3(static_cast<unsigned>(args.forward.student_rows.count * pieces)), dim3(kBackwardThreads), stream, args,
         piece, pieces);
}

}  // namespace

// float64, for tests and oracles, has the one kernel that can do everything.
template <class T>
void topk_divergence_cuda(const TopkDivergenceArgs<T>& args, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.as_given()) return start<T, true>(args, stream);
  }
  start<T, false>(args, stream);
}

template <class T>
void topk_divergence_backward_cuda(const TopkDivergenceBackwardArgs<T>& args, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.forward.as_given()) return start_backward<T, true>(args, stream);
  }
  start_backward<T, false>(args, stream);
}

#define INSTANTIATE(T)                                                                    \
  template void topk_divergence_cuda<T>(const TopkDivergenceArgs<T>& args, void* stream); \
  template void topk_divergence_backward_cuda<T>(const TopkDivergenceBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
