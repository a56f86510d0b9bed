// What the CPU and the CUDA kernel compute once a row: from its sums to the outputs, from the outputs' gradients to the
// coefficients of the pass that writes dz.
#pragma once

#include "core/math.h"
#include "logprob/token_logprob.h"

namespace warpup {

// Of the z' seen so far: max, sum of e = exp(x), of e x, of e^2; x = (z' - max) / T.
template <class Acc, class Sum = Acc>
struct Softmax {
  Acc max = -kInf<Acc>;
  Sum sum = 0, shifted = 0, squares = 0;

  // The same sums under a larger maximum.
  WARPUP_HD Softmax under(Acc new_max, Acc inv_t) const {
    if (max == new_max || sum == 0) return {new_max, sum, shifted, squares};
    const Sum moved = (Sum(max) - Sum(new_max)) * inv_t, scale = exp_neg(moved);
    // So far below that nothing is left (logits masked with the least float): moved * sum may be -inf, its product 0.
    const Sum kept = scale == 0 ? Sum(0) : scale * (shifted + moved * sum);
    return {new_max, sum * scale, kept, squares * scale * scale};
  }
};

// A factor of e^d, d <= 0: d itself, or a number for which d e^d is 0 rather than NaN at d = -inf.
template <class Acc>
WARPUP_HD Acc bounded(Acc d) {
  return d < Acc(-200) ? Acc(-200) : d;
}

template <class T>
WARPUP_HD acc_t<T> inverse_temperature(const TokenLogprobArgs<T>& args, int64_t r) {
  return static_cast<acc_t<T>>(1 / args.temperature[r]);
}

template <class T>
WARPUP_HD acc_t<T> delta_of(const TokenLogprobArgs<T>& args, int64_t r) {
  return args.token_set ? static_cast<acc_t<T>>(args.delta[r]) : acc_t<T>(0);
}

// Whether column j of the slice can be drawn: what a mask leaves out has no gradient either.
template <class T>
WARPUP_HD bool is_kept(const TokenLogprobArgs<T>& args, int64_t r, int64_t j) {
  return !args.kept_mask || args.kept_mask[args.kept_rows.offset(r) + j];
}

// z' at column j of the slice.
template <class T>
WARPUP_HD acc_t<T> replayed(const TokenLogprobArgs<T>& args, int64_t r, int64_t j) {
  if (!is_kept(args, r, j)) return -kInf<acc_t<T>>;
  const acc_t<T> z = args.form(load(args.logits[args.logits_rows.offset(r) + j]));
  return args.token_set && args.token_set[j] ? z + delta_of(args, r) : z;
}

// dz / dlogit at column j of the slice.
template <class T>
WARPUP_HD acc_t<T> slope_at(const TokenLogprobArgs<T>& args, int64_t r, int64_t j) {
  return args.form.at(load(args.logits[args.logits_rows.offset(r) + j])).slope;
}

template <class T>
WARPUP_HD bool in_slice(const TokenLogprobArgs<T>& args, int64_t y) {
  return y >= args.vocab_begin && y < args.vocab_begin + args.vocab;
}

template <class T>
WARPUP_HD bool first_slice(const TokenLogprobArgs<T>& args) {
  return args.vocab_begin == 0;
}

template <class T>
WARPUP_HD acc_t<T>* state_of(const TokenLogprobArgs<T>& args, int64_t r) {
  return args.state + (kLogprobState + args.targets.count) * r;
}

template <class T>
WARPUP_HD Softmax<acc_t<T>> read_state(const TokenLogprobArgs<T>& args, int64_t r) {
  if (first_slice(args)) return {};
  const acc_t<T>* s = state_of(args, r);
  return {s[0], s[1], s[2], s[3]};
}

// What there is among a row's `count` targets: some that are not ignored, some outside the vocabulary. Functions of
// `rank` and `step` deal with targets rank, rank + step, ... only: all of them on a CPU, a thread's share on a GPU.
inline constexpr int kCounted = 1, kOutside = 2;

template <class T>
WARPUP_HD int kinds_of_targets(const TokenLogprobArgs<T>& args, int64_t r, int64_t count, int64_t rank = 0,
                               int64_t step = 1) {
  int kinds = 0;
  for (int64_t k = rank; k < count; k += step) {
    const int64_t y = args.targets.at(r, k);
    if (y == args.ignore_index) continue;
    kinds |= y < 0 || y >= args.vocab_total ? kCounted | kOutside : kCounted;
  }
  return kinds;
}

// Given the sums over all columns so far: after the last slice it writes the row's outputs, before that the state.
template <class T, class Sum>
WARPUP_HD void finish_row(const TokenLogprobArgs<T>& args, int64_t r, const Softmax<acc_t<T>, Sum>& row, int kinds,
                          int64_t count, int64_t rank = 0, int64_t step = 1) {
  using Acc = acc_t<T>;
  const bool last = args.vocab_begin + args.vocab >= args.vocab_total;
  Acc* s = args.state ? state_of(args, r) : nullptr;
  const Acc inv_t = inverse_temperature(args, r), nan = kInf<Acc> - kInf<Acc>;
  const bool empty = !(kinds & kCounted) || row.sum == 0;                           // NaN is not empty
  const bool invalid = (kinds & kOutside) || ((kinds & kCounted) && !(inv_t > 0));  // T = 0 gives NaN by itself
  const Sum log_sum = log(row.sum);
  const auto valid = [&](Sum value) { return invalid ? nan : empty ? Acc(0) : static_cast<Acc>(value); };
  for (int64_t k = rank; k < count; k += step) {
    const int64_t y = args.targets.at(r, k);
    const Acc target = in_slice(args, y)         ? replayed(args, r, y - args.vocab_begin)
                       : s && !first_slice(args) ? s[kLogprobState + k]
                                                 : Acc(0);
    if (!last) {
      s[kLogprobState + k] = target;
    } else {
      const Acc logp = valid((Sum(target) - Sum(row.max)) * inv_t - log_sum);
      args.logp[r * count + k] = y == args.ignore_index ? Acc(0) : logp;
    }
  }
  if (rank != 0) return;
  if (!last) {
    s[0] = row.max, s[1] = Acc(row.sum), s[2] = Acc(row.shifted), s[3] = Acc(row.squares);
    return;
  }
  const auto put = [&](Acc* out, Sum value) {
    if (out) out[r] = valid(value);
  };
  put(args.entropy, log_sum - row.shifted / row.sum);
  put(args.lse, Sum(row.max) * inv_t + log_sum);
  put(args.sum_p2, row.squares / (row.sum * row.sum));
  Acc* stats = args.stats + kLogprobStats * r;
  stats[0] = invalid ? nan : empty ? Acc(0) : row.max;
  stats[1] = empty ? kInf<Acc> : static_cast<Acc>(log_sum);
}

// dz[j] = p (constant + log_p log p + p p) / T, and g / T more at a target; all zero for a row without gradient. p =
// exp((z' - max) / T - log_sum).
template <class Acc>
struct RowGradient {
  Acc max, log_sum, inv_t, constant, log_p, p;
  bool zero;

  // `more` is g or 0: added before the common factor, so that at p = 1 both cancel, however products are fused.
  WARPUP_HD Acc operator()(Acc z, Acc more) const {
    const Acc d = (z - max) * inv_t - log_sum, e = exp_neg(d);
    return inv_t * (e * (constant + log_p * bounded(d) + p * e) + more);
  }
};

// Of the gradients g of a row's targets, but for ignored ones: their sum, and of their sizes, which is 0 only if all are.
template <class Acc>
struct TargetGradients {
  Acc sum, size;
};

template <class T>
WARPUP_HD TargetGradients<acc_t<T>> target_gradients(const TokenLogprobBackwardArgs<T>& args, int64_t r, int64_t count,
                                                     int64_t rank = 0, int64_t step = 1) {
  TargetGradients<acc_t<T>> all{};
  if (!args.grad_logp) return all;
  for (int64_t k = rank; k < count; k += step) {
    if (args.forward.targets.at(r, k) == args.forward.ignore_index) continue;
    const acc_t<T> g = args.grad_logp.at(r, k);
    all.sum += g, all.size += g < 0 ? -g : g;
  }
  return all;
}

// The column of the slice that target k is and where its gradient goes; -1 if there is none.
template <class T>
WARPUP_HD int64_t target_column(const TokenLogprobArgs<T>& args, int64_t r, int64_t k) {
  const int64_t y = args.targets.at(r, k), j = y - args.vocab_begin;
  return y != args.ignore_index && in_slice(args, y) && is_kept(args, r, j) ? j : -1;
}

// g at a column that is a target: of all targets that are this one.
template <class T>
WARPUP_HD acc_t<T> gradient_at(const TokenLogprobBackwardArgs<T>& args, int64_t r, int64_t column) {
  acc_t<T> g = 0;
  for (int64_t k = 0; k < args.grad_logp.count && args.grad_logp; ++k) {
    if (args.forward.targets.at(r, k) == args.forward.vocab_begin + column) g += args.grad_logp.at(r, k);
  }
  return g;
}

template <class T>
WARPUP_HD RowGradient<acc_t<T>> row_gradient(const TokenLogprobBackwardArgs<T>& args, int64_t r,
                                             const TargetGradients<acc_t<T>>& g) {
  using Acc = acc_t<T>;
  const TokenLogprobArgs<T>& f = args.forward;
  const auto at = [r](const PerRow<Acc>& gradient) { return gradient ? gradient[r] : Acc(0); };
  const Acc h = at(args.grad_entropy), q = at(args.grad_lse), s = at(args.grad_sum_p2);
  const Acc max = f.stats[kLogprobStats * r], log_sum = f.stats[kLogprobStats * r + 1];
  const Acc constant = q - g.sum - (h == 0 ? Acc(0) : h * f.entropy[r]) - (s == 0 ? Acc(0) : 2 * s * f.sum_p2[r]);
  // log_sum = inf is how the forward marks a row that is ignored or has no logit above -inf.
  const bool zero = log_sum == kInf<Acc> || (g.size == 0 && h == 0 && q == 0 && s == 0);
  return {max, log_sum, inverse_temperature(f, r), constant, -h, 2 * s, zero};
}

}  // namespace warpup
