#include <algorithm>

#include "core/math.h"
#include "core/parallel.h"
#include "core/stream_store.h"
#include "core/widen.h"
#include "divergence/divergence.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 1024;  // two of them, widened, stay in L1
constexpr int64_t kRun = 256;     // added up in float32: equal terms, all rounded the same way, add up their errors too

template <class Acc>
struct RowSum {
  Acc max = 0;
  double sum = 0;     // 0: no logit above -inf
  int64_t block = 0;  // the block in which max stands
};

struct Sums {
  double value = 0, c = 0;
};

}  // namespace

template <class T>
WARPUP_CLONES void sum_row(const T* __restrict x, int64_t n, acc_t<T> inv_t, RowSum<acc_t<T>>* __restrict out) {
  using Acc = acc_t<T>;
  Acc wide[kBlock], max = -kInf<Acc>;
  double total = 0;
  int64_t block = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t len = n - begin < kBlock ? n - begin : kBlock;
    const Acc* __restrict b = widened(x + begin, len, wide);
    Acc high = -kInf<Acc>;
#pragma omp simd reduction(max : high)
    for (int64_t j = 0; j < len; ++j) high = b[j] > high ? b[j] : high;
    if (high > max) {
      if (total > 0) total *= std::exp((double(max) - double(high)) * inv_t);
      max = high, block = begin;
    }
    // A block of -inf before any finite logit has no maximum to subtract; NaN still has to come through.
    const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < len; ++j) sum += exp_neg((b[j] - shift) * inv_t);
    total += sum;
  }
  *out = {max, total, block};
}

template <class T, Divergence kind>
WARPUP_CLONES void add_terms(const T* x_s, const T* x_t, int64_t n, DivergenceRow<acc_t<T>> row, Sums* out) {
  using Acc = acc_t<T>;
  Acc wide_s[kBlock], wide_t[kBlock];
  Sums sums;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t len = n - begin < kBlock ? n - begin : kBlock;
    const Acc* a = widened(x_s + begin, len, wide_s);
    const Acc* b = widened(x_t + begin, len, wide_t);
    for (int64_t first = 0; first < len; first += kRun) {
      const int64_t last = len - first < kRun ? len : first + kRun;
      Acc value = 0, c = 0;
#pragma omp simd reduction(+ : value, c)
      for (int64_t j = first; j < last; ++j) {
        const auto term = divergence_term<kind>(row, a[j], b[j]);
        value += term.value;
        c += term.c;
      }
      sums.value += value;
      sums.c += c;
    }
  }
  *out = sums;
}

// to[j] = factor * slope; n <= kBlock
template <class T, Divergence kind>
WARPUP_CLONES void slopes(const T* x_s, const T* x_t, int64_t n, DivergenceRow<acc_t<T>> row, acc_t<T> factor, T* to) {
  using Acc = acc_t<T>;
  Acc wide_s[kBlock], wide_t[kBlock], wide[kBlock];
  const Acc* a = widened(x_s, n, wide_s);
  const Acc* b = widened(x_t, n, wide_t);
  Acc* out = wide;
  if constexpr (sizeof(T) > 2) out = to;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    out[j] = factor * divergence_slope<kind>(row, a[j], b[j]);
  }
  if constexpr (sizeof(T) == 2) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = store<T>(wide[j]);
  }
}

// to[j] = p[j] * factor; n <= kBlock
template <class T>
WARPUP_CLONES void scaled_softmax(const T* x, int64_t n, acc_t<T> inv_t, RowSide<acc_t<T>> s, acc_t<T> factor, T* to) {
  using Acc = acc_t<T>;
  Acc wide[kBlock];
  const Acc* a = widened(x, n, wide);
  Acc* out = wide;
  if constexpr (sizeof(T) > 2) out = to;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = factor * s(a[j], inv_t).p;
  if constexpr (sizeof(T) == 2) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = store<T>(wide[j]);
  }
}

namespace {

template <class Args>
double inverse_temperature(const Args& args, int64_t r) {
  return 1 / (args.temperature ? double(args.temperature[args.temperature_rows.offset(r)]) : args.temperature_scalar);
}

template <class Args>
bool masked(const Args& args, int64_t r) {
  return args.mask && args.mask[args.mask_rows.offset(r)] == 0;
}

// From the sum as it is kept for the backward, which then meets the same probabilities: what cancels there has to be
// equal.
template <class Acc>
RowSide<Acc> side_of(const RowSum<Acc>& row) {
  return row_side(row.max, static_cast<Acc>(row.sum));
}

inline int64_t grain_of(int64_t vocab) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(vocab, 1)); }

// Fills gradient rows block by block, past the cache where that pays.
template <class T, class Backward, class Row>
void for_gradient_rows(const Backward& args, const Row& row) {
  const auto& f = args.forward;
  const bool streamed =
      args.grad_student != f.student && f.student_rows.count * f.vocab * int64_t(sizeof(T)) >= kStreamed;
  parallel_for(0, f.student_rows.count, grain_of(f.vocab), [&](int64_t first, int64_t last) {
    alignas(64) T block[kBlock];
    for (int64_t r = first; r < last; ++r) {
      T* dz = args.grad_student + args.grad_student_rows.offset(r);
      row(r, dz, [&](const auto& fill) {  // fill(begin, len, to)
        for (int64_t begin = 0; begin < f.vocab; begin += kBlock) {
          const int64_t len = std::min(kBlock, f.vocab - begin);
          fill(begin, len, streamed ? block : dz + begin);
          if (streamed) stream_store(dz + begin, block, len);
        }
      });
    }
    if (streamed) stream_fence();
  });
}

}  // namespace

// ---- divergence -----------------------------------------------------------------------------------------------------

template <class T>
void divergence_cpu(const DivergenceArgs<T>& args) {
  using Acc = acc_t<T>;
  const Acc beta = static_cast<Acc>(args.beta);
  parallel_for(0, args.student_rows.count, grain_of(args.vocab), [&args, beta](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* x_s = args.student + args.student_rows.offset(r);
      const T* x_t = args.teacher + args.teacher_rows.offset(r);
      const Acc inv_t = static_cast<Acc>(inverse_temperature(args, r));
      DivergenceRow<Acc> row;
      row.inv_t = inv_t, row.beta = beta;
      int64_t top = -1;  // the block of the teacher's maximum, then its place
      bool empty = masked(args, r);
      if (!empty && args.kind != Divergence::binary) {
        RowSum<Acc> s, t;
        sum_row(x_s, args.vocab, inv_t, &s);
        sum_row(x_t, args.vocab, inv_t, &t);
        empty = s.sum == 0 || t.sum == 0;
        row = divergence_row(side_of(s), side_of(t), inv_t, beta, Acc(0));
        top = t.block;
      }
      Acc* stats = args.stats + kDivergenceStats * r;
      if (empty) {
        std::fill(stats, stats + kDivergenceStats, Acc(0));
        args.value[r] = 0;
        continue;
      }
      Sums sums;
      dispatch_divergence(args.kind, [&]<Divergence kind>() { add_terms<T, kind>(x_s, x_t, args.vocab, row, &sums); });
      if (args.targets) {
        const T* begin = x_t + top;
        const T* end = x_t + std::min(args.vocab, top + kBlock);
        top =
            std::find_if(begin, end, [&row](T x) { return load(x) == row.t.max; }) - x_t;  // the end where there is NaN
        const int64_t y = args.targets[args.targets_rows.offset(r)];
        if (top < args.vocab && top != y) {
          const auto add = [&](int64_t at, int64_t teacher_at, int sign) {
            const auto term = divergence_term<Divergence::forward>(row, load(x_s[at]), load(x_t[teacher_at]));
            sums.value += sign * double(term.value), sums.c += sign * double(term.c);
          };
          add(top, top, -1), add(y, y, -1), add(top, y, 1), add(y, top, 1);
        }
      }
      args.value[r] = static_cast<Acc>(sums.value);
      const Acc kept[] = {row.s.max, row.s.sum, row.t.max, row.t.sum, static_cast<Acc>(sums.c), static_cast<Acc>(top)};
      std::copy(kept, kept + kDivergenceStats, stats);
    }
  });
}

template <class T>
void divergence_backward_cpu(const DivergenceBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const DivergenceArgs<T>& f = args.forward;
  const Acc beta = static_cast<Acc>(f.beta);
  for_gradient_rows<T>(args, [&](int64_t r, T* dz, const auto& blocks) {
    const Acc* stats = f.stats + kDivergenceStats * r;
    const Acc g = args.grad_value[args.grad_value_rows.offset(r)];
    if (stats[1] == 0 || g == 0) {
      std::fill(dz, dz + f.vocab, T{});
      return;
    }
    const T* x_s = f.student + f.student_rows.offset(r);
    const T* x_t = f.teacher + f.teacher_rows.offset(r);
    const Acc inv_t = static_cast<Acc>(inverse_temperature(f, r)), factor = g * inv_t;
    const auto row = divergence_row(row_side(stats[0], stats[1]), row_side(stats[2], stats[3]), inv_t, beta, stats[4]);
    const int64_t top = f.targets ? static_cast<int64_t>(stats[5]) : f.vocab;
    const bool swap = top < f.vocab;
    const int64_t y = swap ? f.targets[f.targets_rows.offset(r)] : 0;
    const auto swapped = [&](int64_t at, int64_t teacher_at) {
      return store<T>(factor * divergence_slope<Divergence::forward>(row, load(x_s[at]), load(x_t[teacher_at])));
    };
    const T at_top = swap ? swapped(top, y) : T{}, at_y = swap ? swapped(y, top) : T{};  // dz may be x_s
    dispatch_divergence(f.kind, [&]<Divergence kind>() {
      blocks(
          [&](int64_t begin, int64_t len, T* to) { slopes<T, kind>(x_s + begin, x_t + begin, len, row, factor, to); });
    });
    if (swap) dz[top] = at_top, dz[y] = at_y;
  });
}

// ---- topk_divergence ------------------------------------------------------------------------------------------------

template <class T>
void topk_divergence_cpu(const TopkDivergenceArgs<T>& args) {
  using Acc = acc_t<T>;
  parallel_for(0, args.student_rows.count, grain_of(args.vocab), [&args](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const T* x = args.student + args.student_rows.offset(r);
      const Acc inv_t = static_cast<Acc>(inverse_temperature(args, r));
      RowSum<Acc> sum;
      if (!masked(args, r)) sum_row(x, args.vocab, inv_t, &sum);
      const bool empty = sum.sum == 0;
      const auto s = side_of(sum);
      double value = 0, listed = 0;
      const int64_t* ids = args.ids + args.ids_rows.offset(r);
      const Acc* logp = args.logp + args.logp_rows.offset(r);
      for (int64_t k = 0; k < args.k && !empty; ++k) {
        if (logp[k] == -kInf<Acc>) continue;
        const Acc log_s = s(load(x[ids[k]]), inv_t).x - s.log;
        if (log_s == -kInf<Acc>) continue;
        const double p = std::exp(double(logp[k]));
        value += p * (double(logp[k]) - log_s), listed += p;
      }
      args.value[r] = static_cast<Acc>(value);
      Acc* stats = args.stats + kTopkStats * r;
      stats[0] = sum.max, stats[1] = static_cast<Acc>(sum.sum), stats[2] = static_cast<Acc>(listed);
    }
  });
}

template <class T>
void topk_divergence_backward_cpu(const TopkDivergenceBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& f = args.forward;
  for_gradient_rows<T>(args, [&](int64_t r, T* dz, const auto& blocks) {
    const Acc* stats = f.stats + kTopkStats * r;
    const Acc g = args.grad_value[args.grad_value_rows.offset(r)];
    if (stats[1] == 0 || g == 0) {
      std::fill(dz, dz + f.vocab, T{});
      return;
    }
    const T* x = f.student + f.student_rows.offset(r);
    const Acc inv_t = static_cast<Acc>(inverse_temperature(f, r)), factor = g * inv_t, listed = stats[2];
    const auto s = row_side(stats[0], stats[1]);
    blocks([&](int64_t begin, int64_t len, T* to) { scaled_softmax(x + begin, len, inv_t, s, factor * listed, to); });
    const int64_t* ids = f.ids + f.ids_rows.offset(r);
    const Acc* logp = f.logp + f.logp_rows.offset(r);
    for (int64_t k = 0; k < f.k; ++k) {
      const auto token = s(load(x[ids[k]]), inv_t);
      if (token.x == -kInf<Acc>) continue;
      double p = 0;  // of all entries with this id: a token listed twice counts twice
      for (int64_t i = 0; i < f.k; ++i) p += ids[i] == ids[k] ? std::exp(double(logp[i])) : 0;
      dz[ids[k]] = store<T>(factor * (token.p * listed - static_cast<Acc>(p)));
    }
  });
}

#define INSTANTIATE(T)                                                             \
  template void divergence_cpu<T>(const DivergenceArgs<T>& args);                  \
  template void divergence_backward_cpu<T>(const DivergenceBackwardArgs<T>& args); \
  template void topk_divergence_cpu<T>(const TopkDivergenceArgs<T>& args);         \
  template void topk_divergence_backward_cpu<T>(const TopkDivergenceBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
