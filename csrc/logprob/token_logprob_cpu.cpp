// One pass over a row in blocks that stay in L1: each block's maximum, then its sums under the largest maximum so far.
#include <algorithm>
#include <vector>

#include "core/extremes.h"
#include "core/load_block.h"
#include "core/parallel.h"
#include "core/stream_store.h"
#include "logprob/token_logprob.h"
#include "logprob/token_logprob_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 2048;  // a block's second pass (exp) finds the first's (max) data in L1
constexpr int64_t kRun = 1024;    // added up in float32: longer sums lose digits, shorter ones cost time (512: 7 %)

// ---- loops over a block ---------------------------------------------------------------------------------------------

struct BlockMax {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* __restrict z, int64_t n, Acc* __restrict out) const {
    Acc high = -kInf<Acc>;
#pragma omp simd reduction(largest : high)
    for (int64_t j = 0; j < n; ++j) high = z[j] > high ? z[j] : high;
    *out = high;
  }
};

// z becomes z', the logits as the sampler left them.
struct Replay {
  template <class Acc>
  WARPUP_HD void operator()(const uint8_t* token_set, const uint8_t* kept_mask, Acc delta, int64_t n,
                            Acc* __restrict z) const {
    if (token_set) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) z[j] += token_set[j] ? delta : Acc(0);
    }
    if (kept_mask) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) z[j] = kept_mask[j] ? z[j] : -kInf<Acc>;
    }
  }
};

template <bool kEntropy, bool kSquares>
struct BlockSums {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* __restrict z, int64_t n, Acc shift, Acc inv_t,
                            Softmax<Acc, double>* __restrict row) const {
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
};

struct GradientBlock {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* z, int64_t n, RowGradient<Acc> row, Acc* to) const {
    const Acc constant = row.constant * row.inv_t, log_p = row.log_p * row.inv_t, p = row.p * row.inv_t;
    if (log_p == 0 && p == 0) {  // the gradient of logp and lse alone needs no log p
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
};

// z' of columns [begin, begin + n) of row r: where they are, or made in `buffer`; and the form's slopes, as `load_block`.
template <class T>
const acc_t<T>* block_of(const TokenLogprobArgs<T>& args, int64_t r, int64_t begin, int64_t n, acc_t<T>* buffer,
                         acc_t<T>* slope = nullptr) {
  const acc_t<T>* z = load_block(args.logits + args.logits_rows.offset(r) + begin, n, args.form, buffer, slope);
  if (!args.token_set && !args.kept_mask) return z;
  if (z != buffer) std::copy(z, z + n, buffer);
  run_alone(Replay{}, args.token_set ? args.token_set + begin : nullptr,
            args.kept_mask ? args.kept_mask + args.kept_rows.offset(r) + begin : nullptr, delta_of(args, r), n, buffer);
  return buffer;
}

// Rows that a thread takes at least: about 16 K logits, below which waking a thread costs more than it saves.
int64_t grain_of(int64_t vocab) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(vocab, 1)); }

// Adds the row's columns to what the slices before gave, unless all its targets are ignored.
template <class T, class Sums>
Softmax<acc_t<T>, double> sum_row(const TokenLogprobArgs<T>& args, int64_t r, int kinds, Sums sums, acc_t<T>* buffer) {
  using Acc = acc_t<T>;
  const Acc inv_t = inverse_temperature(args, r);
  const Softmax<Acc> seen = read_state(args, r);
  Softmax<Acc, double> row{seen.max, seen.sum, seen.shifted, seen.squares};
  if (!(kinds & kCounted)) return row;
  for (int64_t begin = 0; begin < args.vocab; begin += kBlock) {
    const int64_t n = std::min(kBlock, args.vocab - begin);
    const Acc* z = block_of(args, r, begin, n, buffer);
    Acc high;
    run_alone(BlockMax{}, z, n, &high);
    if (high > row.max) row = row.under(high, inv_t);
    // A block of -inf before any finite logit has no maximum to subtract; NaN still has to come through.
    const Acc shift = row.max == -kInf<Acc> ? Acc(0) : row.max;
    run_alone(sums, z, n, shift, inv_t, &row);
  }
  return row;
}

template <class T, class Sums>
void forward(const TokenLogprobArgs<T>& args, Sums sums) {
  parallel_for(0, args.logits_rows.count, grain_of(args.vocab), [&](int64_t first, int64_t last) {
    alignas(64) acc_t<T> buffer[kBlock];
    for (int64_t r = first; r < last; ++r) {
      const int kinds = kinds_of_targets(args, r, args.targets.count);
      finish_row(args, r, sum_row(args, r, kinds, sums, buffer), kinds, args.targets.count);
    }
  });
}

}  // namespace

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class T>
void token_logprob_cpu(const TokenLogprobArgs<T>& args) {
  if (args.sum_p2) {
    forward(args, BlockSums<true, true>{});
  } else if (args.entropy) {
    forward(args, BlockSums<true, false>{});
  } else {
    forward(args, BlockSums<false, false>{});
  }
}

template <class T>
void token_logprob_backward_cpu(const TokenLogprobBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  const bool streamed = args.grad_logits != f.logits && f.logits_rows.count * f.vocab * int64_t(sizeof(T)) >= kStreamed;
  parallel_for(0, f.logits_rows.count, grain_of(f.vocab), [&](int64_t first, int64_t last) {
    alignas(64) Acc buffer[kBlock];
    alignas(64) Acc slope[kBlock];
    alignas(64) T block[kBlock];
    std::vector<T> at_targets(f.targets.count);
    for (int64_t r = first; r < last; ++r) {
      T* dz = args.grad_logits + args.grad_logits_rows.offset(r);
      const RowGradient<Acc> row = row_gradient(args, r, target_gradients(args, r, f.targets.count));
      if (row.zero) {
        std::fill(dz, dz + f.vocab, T{});
        continue;
      }
      const auto each_target = [&](const auto& body) {
        for (int64_t k = 0; k < f.targets.count; ++k) {
          if (const int64_t j = target_column(f, r, k); j >= 0) body(k, j);
        }
      };
      each_target([&](int64_t k, int64_t j) {  // before the gradient is written over their logits
        at_targets[k] = store<T>(row(replayed(f, r, j), gradient_at(args, r, j)) * slope_at(f, r, j));
      });
      for (int64_t begin = 0; begin < f.vocab; begin += kBlock) {
        const int64_t n = std::min(kBlock, f.vocab - begin);
        const Acc* z = block_of(f, r, begin, n, buffer, slope);
        T* to = streamed ? block : dz + begin;
        const auto write = [&](Acc* gradient) {
          run_alone(GradientBlock{}, z, n, row, gradient);
          if (!f.form.plain()) run_alone(MultiplyBlock{}, &slope[0], n, gradient);
        };
        if constexpr (sizeof(T) > 2) {
          write(to);
        } else {
          write(buffer);
          narrow(buffer, n, to);
        }
        if (streamed) stream_store(dz + begin, block, n);
      }
      each_target([&](int64_t k, int64_t j) { dz[j] = at_targets[k]; });
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
