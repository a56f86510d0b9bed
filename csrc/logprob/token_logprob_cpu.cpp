#include <algorithm>

#include "core/math.h"
#include "core/parallel.h"
#include "core/stream_store.h"
#include "logprob/token_logprob.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 2048;  // a block's second pass (exp) finds the first's (max) data in L1
constexpr int64_t kRun = 1024;    // added up in float32: longer sums lose digits, shorter ones cost time (512: 7 %)

template <class T>
struct RowStats {
  T max = -kInf<T>;
  double sum = 0, shifted = 0;  // sum of e = exp(x); sum of e x
};

// exp(d) for d <= 0, and d * exp(d) that is 0 rather than NaN at d = -inf.
template <class Acc>
inline Acc bounded(Acc d) {
  return d < Acc(-200) ? Acc(-200) : d;
}

}  // namespace

template <class T, bool kEntropy>
WARPUP_CLONES void row_stats(const T* __restrict x, int64_t n, acc_t<T> inv_t, RowStats<acc_t<T>>* __restrict out) {
  using Acc = acc_t<T>;
  RowStats<Acc> row;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const T* __restrict b = x + begin;
    const int64_t len = n - begin < kBlock ? n - begin : kBlock;
    Acc high = -kInf<Acc>;
#pragma omp simd reduction(max : high)
    for (int64_t j = 0; j < len; ++j) {
      const Acc v = load(b[j]);
      high = v > high ? v : high;
    }
    if (high > row.max) {
      const double moved = row.sum > 0 ? (double(row.max) - double(high)) * inv_t : 0;
      const double scale = std::exp(moved);
      row.shifted = scale * (row.shifted + moved * row.sum);
      row.sum *= scale;
      row.max = high;
    }
    // A block of -inf before any finite logit has no maximum to subtract; NaN still has to come through.
    const Acc shift = row.max == -kInf<Acc> ? Acc(0) : row.max;
    for (int64_t first = 0; first < len; first += kRun) {
      const int64_t last = len - first < kRun ? len : first + kRun;
      Acc sum = 0, shifted = 0;
#pragma omp simd reduction(+ : sum, shifted)
      for (int64_t j = first; j < last; ++j) {
        const Acc d = (load(b[j]) - shift) * inv_t;
        const Acc e = exp_neg(d);
        sum += e;
        if constexpr (kEntropy) shifted += e * bounded(d);
      }
      row.sum += sum;
      row.shifted += shifted;
    }
  }
  *out = row;
}

// to[j] = -p (a + h d) / T for d = x - log_sum, p = e^d
template <class T, class To>
inline void gradient(const T* x, int64_t n, acc_t<T> inv_t, acc_t<T> max, acc_t<T> log_sum, acc_t<T> a, acc_t<T> h,
                     To* to) {
  using Acc = acc_t<T>;
  const Acc minus_a = -a * inv_t, minus_h = -h * inv_t;
  if (h == 0) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = exp_neg((load(x[j]) - max) * inv_t - log_sum) * minus_a;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const Acc d = (load(x[j]) - max) * inv_t - log_sum;
      to[j] = exp_neg(d) * (minus_a + minus_h * bounded(d));
    }
  }
}

template <class T>
WARPUP_CLONES void gradient_block(const T* x, int64_t n, acc_t<T> inv_t, acc_t<T> max, acc_t<T> log_sum, acc_t<T> a,
                                  acc_t<T> h, T* out) {
  if constexpr (sizeof(T) > 2) {
    gradient(x, n, inv_t, max, log_sum, a, h, out);
  } else {  // narrowed in a loop of its own, which vectorises better
    constexpr int64_t kTile = 512;
    acc_t<T> wide[kTile];
    for (int64_t begin = 0; begin < n; begin += kTile) {
      const int64_t len = n - begin < kTile ? n - begin : kTile;
      gradient(x + begin, len, inv_t, max, log_sum, a, h, wide);
#pragma omp simd
      for (int64_t j = 0; j < len; ++j) out[begin + j] = store<T>(wide[j]);
    }
  }
}

template <class T>
void token_logprob_cpu(const TokenLogprobArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(args.vocab, 1));
  parallel_for(0, args.logits_rows.count, grain, [&args](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* x = args.logits + args.logits_rows.offset(r);
      const int64_t y = args.targets[args.targets_rows.offset(r)];
      const double t = args.temperature ? args.temperature[args.temperature_rows.offset(r)] : args.temperature_scalar;
      const Acc inv_t = static_cast<Acc>(1 / t);
      RowStats<Acc> row;
      const bool ignored = y == args.ignore_index;
      if (!ignored) {
        args.entropy ? row_stats<T, true>(x, args.vocab, inv_t, &row) : row_stats<T, false>(x, args.vocab, inv_t, &row);
      }
      const bool empty = ignored || row.sum == 0;  // NaN is not empty
      const double log_sum = std::log(row.sum);
      args.stats[2 * r] = empty ? Acc(0) : row.max;
      args.stats[2 * r + 1] = empty ? kInf<Acc> : static_cast<Acc>(log_sum);
      args.logp[r] = empty ? Acc(0) : static_cast<Acc>((double(load(x[y])) - double(row.max)) * inv_t - log_sum);
      if (args.entropy) args.entropy[r] = empty ? Acc(0) : static_cast<Acc>(log_sum - row.shifted / row.sum);
    }
  });
}

template <class T>
void token_logprob_backward_cpu(const TokenLogprobBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(f.vocab, 1));
  const bool streamed = args.grad_logits != f.logits && f.logits_rows.count * f.vocab * int64_t(sizeof(T)) >= kStreamed;
  parallel_for(0, f.logits_rows.count, grain, [&](int64_t first, int64_t last) {
    alignas(64) T block[kBlock];
    for (int64_t r = first; r < last; ++r) {
      const T* x = f.logits + f.logits_rows.offset(r);
      T* dz = args.grad_logits + args.grad_logits_rows.offset(r);
      const int64_t y = f.targets[f.targets_rows.offset(r)];
      const double t = f.temperature ? f.temperature[f.temperature_rows.offset(r)] : f.temperature_scalar;
      const Acc inv_t = static_cast<Acc>(1 / t);
      const Acc max = f.stats[2 * r], log_sum = f.stats[2 * r + 1];
      const Acc g = args.grad_logp ? args.grad_logp[args.grad_logp_rows.offset(r)] : Acc(0);
      const Acc h = args.grad_entropy ? args.grad_entropy[args.grad_entropy_rows.offset(r)] : Acc(0);
      // log_sum = inf is how the forward marks a row that is ignored or has no logit above -inf.
      if (log_sum == kInf<Acc> || (g == 0 && h == 0)) {
        std::fill(dz, dz + f.vocab, T{});
        continue;
      }
      const Acc a = g + (h == 0 ? Acc(0) : h * f.entropy[r]);
      const Acc at_target = (load(x[y]) - max) * inv_t - log_sum;
      for (int64_t begin = 0; begin < f.vocab; begin += kBlock) {
        const int64_t len = std::min(kBlock, f.vocab - begin);
        gradient_block<T>(x + begin, len, inv_t, max, log_sum, a, h, streamed ? block : dz + begin);
        if (streamed) stream_store(dz + begin, block, len);
      }
      const Acc p = exp_neg(at_target);
      dz[y] = store<T>(inv_t * (g - p * (a + h * bounded(at_target))));
    }
    if (streamed) stream_fence();
  });
}

#define INSTANTIATE(T)                                                 \
  template void token_logprob_cpu<T>(const TokenLogprobArgs<T>& args); \
  template void token_logprob_backward_cpu<T>(const TokenLogprobBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
