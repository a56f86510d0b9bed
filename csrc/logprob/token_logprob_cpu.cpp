#include <algorithm>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "core/widen.h"
#include "logprob/token_logprob.h"
#include "logprob/token_logprob_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 2048;  // a block's second pass (exp) finds the first's (max) data in L1
constexpr int64_t kRun = 1024;    // added up in float32: longer sums lose digits, shorter ones cost time (512: 7 %)

}  // namespace

template <class Acc>
WARPUP_CLONES void block_max(const Acc* __restrict z, int64_t n, Acc* __restrict out) {
  Acc high = -kInf<Acc>;
#pragma omp simd reduction(max : high)
  for (int64_t j = 0; j < n; ++j) high = z[j] > high ? z[j] : high;
  *out = high;
}

template <class Acc>
WARPUP_CLONES void replay(const uint8_t* boosted, const uint8_t* kept, Acc delta, int64_t n, Acc* __restrict z) {
  if (boosted) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] += boosted[j] ? delta : Acc(0);
  }
  if (kept) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) z[j] = kept[j] ? z[j] : -kInf<Acc>;
  }
}

template <class Acc, bool kEntropy, bool kSquares>
WARPUP_CLONES void block_sums(const Acc* __restrict z, int64_t n, Acc shift, Acc inv_t,
                              Softmax<Acc, double>* __restrict row) {
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t last = n - first < kRun ? n : first + kRun;
    Acc sum = 0, shifted = 0, squares = 0;
#pragma omp simd reduction(+ : sum, shifted, squares)
    for (int64_t j = first; j < last; ++j) {
      const Acc d = (z[j] - shift) * inv_t, e = exp_neg(d);
      sum += e;
      if constexpr (kEntropy) shifted += e * bounded(d);
      if constexpr (kSquares) squares += e * e;
    }
    row->sum += sum, row->shifted += shifted, row->squares += squares;
  }
}

template <class Acc>
WARPUP_CLONES void gradient_block(const Acc* z, int64_t n, RowGradient<Acc> row, Acc* to) {
  const Acc constant = row.constant * row.inv_t, log_p = row.log_p * row.inv_t, p = row.p * row.inv_t;
  if (log_p == 0 && p == 0) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = exp_neg((z[j] - row.max) * row.inv_t - row.log_sum) * constant;
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const Acc d = (z[j] - row.max) * row.inv_t - row.log_sum, e = exp_neg(d);
      to[j] = e * (constant + log_p * bounded(d) + p * e);
    }
  }
}

namespace {

// Columns [begin, begin + n) of row r as the loops take them: where they lie, or widened and replayed in `buffer`.
template <class T>
const acc_t<T>* block_of(const TokenLogprobArgs<T>& args, int64_t r, int64_t begin, int64_t n, acc_t<T>* buffer) {
  const T* x = args.logits + args.logits_rows.offset(r) + begin;
  if constexpr (sizeof(T) > 2) {
    if (!args.boosted && !args.kept) return x;
  }
  widen(x, n, buffer);
  if (args.boosted || args.kept) {
    replay(args.boosted ? args.boosted + begin : nullptr,
           args.kept ? args.kept + args.kept_rows.offset(r) + begin : nullptr, delta_of(args, r), n, buffer);
  }
  return buffer;
}

}  // namespace

template <class T>
void token_logprob_cpu(const TokenLogprobArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(args.vocab, 1));
  const auto sums = args.sum_p2    ? block_sums<Acc, true, true>
                    : args.entropy ? block_sums<Acc, true, false>
                                   : block_sums<Acc, false, false>;
  parallel_for(0, args.logits_rows.count, grain, [&](int64_t first, int64_t last) {
    alignas(64) Acc buffer[kBlock];
    for (int64_t r = first; r < last; ++r) {
      const Acc inv_t = inverse_temperature(args, r);
      const Softmax<Acc> seen = read_state(args, r);
      Softmax<Acc, double> row{seen.max, seen.sum, seen.shifted, seen.squares};
      const bool ignored = args.targets[args.targets_rows.offset(r)] == args.ignore_index;
      for (int64_t begin = 0; begin < args.vocab && !ignored; begin += kBlock) {
        const int64_t n = std::min(kBlock, args.vocab - begin);
        const Acc* z = block_of(args, r, begin, n, buffer);
        Acc high;
        block_max(z, n, &high);
        if (high > row.max) row = row.under(high, inv_t);
        // A block of -inf before any finite logit has no maximum to subtract; NaN still has to come through.
        const Acc shift = row.max == -kInf<Acc> ? Acc(0) : row.max;
        sums(z, n, shift, inv_t, &row);
      }
      finish_row(args, r, row);
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
    alignas(64) Acc buffer[kBlock];
    alignas(64) T block[kBlock];
    for (int64_t r = first; r < last; ++r) {
      T* dz = args.grad_logits + args.grad_logits_rows.offset(r);
      const RowGradient<Acc> row = row_gradient(args, r);
      if (row.zero) {
        std::fill(dz, dz + f.vocab, T{});
        continue;
      }
      const int64_t y = f.targets[f.targets_rows.offset(r)] - f.vocab_begin;
      const bool here = y >= 0 && y < f.vocab && is_kept(f, r, y);
      const Acc target = here ? replayed(f, r, y) : Acc(0);  // before the gradient is written over it
      for (int64_t begin = 0; begin < f.vocab; begin += kBlock) {
        const int64_t n = std::min(kBlock, f.vocab - begin);
        const Acc* z = block_of(f, r, begin, n, buffer);
        T* to = streamed ? block : dz + begin;
        if constexpr (sizeof(T) > 2) {
          gradient_block(z, n, row, to);
        } else {
          gradient_block(z, n, row, buffer);
          narrow(buffer, n, to);
        }
        if (streamed) stream_store(dz + begin, block, n);
      }
      if (here) dz[y] = store<T>(row(target) + row.at_target * row.inv_t);
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
