// The CPU kernels of moe_route: a row of logits after another, in L1, in loops that vectorize; then the chunks' sums.
#include <algorithm>
#include <bit>
#include <limits>
#include <type_traits>

#include "core/extremes.h"
#include "core/parallel.h"
#include "core/widen.h"
#include "moe/moe_route.h"
#include "moe/moe_route_math.h"

namespace warpup {
namespace {

// A key and its place in one integer that orders like them: the larger key, of equal ones the first place. All differ.
template <class Acc>
using Ranked = std::conditional_t<sizeof(Acc) == 8, __int128, int64_t>;
template <class Acc>
constexpr Ranked<Acc> kOut = Ranked<Acc>(1) << (8 * sizeof(Ranked<Acc>) - 1);  // the least: cannot be chosen

template <class Acc>
struct RouteRow {
  alignas(64) Acc z[kMaxExperts], s[kMaxExperts], p[kMaxExperts], key[kMaxExperts];
  alignas(64) Ranked<Acc> ranked[kMaxExperts];
};

}  // namespace

// p = softmax z (0 without a logit above -inf), and (max, log of the sum).
template <class Acc>
WARPUP_LOOP void route_softmax(const Acc* __restrict z, int64_t n, Acc* __restrict p, Acc* __restrict stats) {
  Acc max = -kInf<Acc>, sum = 0;
#pragma omp simd reduction(largest : max)
  for (int64_t e = 0; e < n; ++e) max = z[e] > max ? z[e] : max;
  const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < n; ++e) sum += p[e] = exp_neg(z[e] - shift);
  const Acc denominator = score_total(sum);
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) p[e] /= denominator;
  stats[0] = max, stats[1] = sum == 0 ? kInf<Acc> : log_pos(sum);
}

template <class Acc>
WARPUP_LOOP void route_probabilities(const Acc* __restrict z, int64_t n, Acc max, Acc log_sum, Acc* __restrict p) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) p[e] = exp_neg(z[e] - max - log_sum);
}

template <RouteScore kScore, class Acc>
WARPUP_LOOP void route_scores(const Acc* __restrict z, int64_t n, Acc* __restrict s, Acc* __restrict total) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < n; ++e) sum += s[e] = route_score<kScore>(z[e]);
  *total = sum;
}

// What is chosen by; a NaN is the smallest of all.
template <class Acc>
WARPUP_LOOP void route_keys(const Acc* __restrict x, const Acc* bias, int64_t n, Acc* __restrict key) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) key[e] = bias ? x[e] + bias[e] : x[e];
}

template <class Acc>
WARPUP_LOOP void route_rank(const Acc* __restrict key, int64_t n, Ranked<Acc>* __restrict ranked) {
  using Bits = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) {
    const Acc x = key[e] == key[e] ? key[e] + Acc(0) : -kInf<Acc>;  // + 0: of -0 too
    const Bits bits = std::bit_cast<Bits>(x), ordered = bits < 0 ? bits ^ std::numeric_limits<Bits>::max() : bits;
    ranked[e] = (Ranked<Acc>(ordered) << (8 * sizeof(Bits))) + (kMaxExperts - 1 - e);
  }
}

// The places of the k largest, falling: each time the largest below the last. Nothing is written on the way that the
// next round would have to wait for, and which place it is needs no branch that nobody can predict.
template <class Acc>
WARPUP_LOOP void route_select(const Ranked<Acc>* __restrict ranked, int64_t n, int64_t k, int64_t* __restrict chosen) {
  constexpr int64_t kLanes = 32;  // with the compiler's one vector of maxima, each would wait for the one before it
  Ranked<Acc> last = ~kOut<Acc>;
  for (int64_t j = 0; j < k; ++j) {
    alignas(64) Ranked<Acc> high[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) high[i] = kOut<Acc>;
    const auto see = [&](int64_t i, Ranked<Acc> x) __attribute__((always_inline)) {
      x = x < last ? x : kOut<Acc>;
      high[i] = x > high[i] ? x : high[i];
    };
    int64_t first = 0;
    for (; first + kLanes <= n; first += kLanes) {
#pragma omp simd
      for (int64_t i = 0; i < kLanes; ++i) see(i, ranked[first + i]);
    }
    for (int64_t e = first; e < n; ++e) see(e - first, ranked[e]);
    last = kOut<Acc>;
#pragma omp simd reduction(max : last)
    for (int64_t i = 0; i < kLanes; ++i) last = high[i] > last ? high[i] : last;
    chosen[j] = kMaxExperts - 1 - static_cast<int64_t>(last & (kMaxExperts - 1));
  }
}

template <class Acc>
WARPUP_LOOP void route_dot(const Acc* __restrict x, const Acc* __restrict y, int64_t n, Acc* __restrict out) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < n; ++e) sum += x[e] * y[e];
  *out = sum;
}

// From the gradient of the scores to that of the logits, in place.
template <class Acc>
WARPUP_LOOP void softmax_gradient(const Acc* __restrict p, int64_t n, Acc mean, Acc pull, Acc* __restrict dz) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) dz[e] = p[e] * (dz[e] - mean + pull);
}

template <RouteScore kScore, class Acc>
WARPUP_LOOP void score_gradient(const Acc* __restrict z, const Acc* __restrict s, int64_t n, Acc mean, Acc share,
                                Acc* __restrict dz) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) dz[e] = route_slope<kScore>(z[e], s[e]) * (dz[e] - mean) * share;
}

template <class Acc>
WARPUP_LOOP void add_shares(const Acc* __restrict s, int64_t n, Acc total, Acc* __restrict to) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) to[e] += s[e] / total;
}

template <class Acc>
WARPUP_LOOP void add_scaled_row(const Acc* __restrict x, int64_t n, Acc factor, Acc* __restrict to) {
#pragma omp simd
  for (int64_t e = 0; e < n; ++e) to[e] += factor * x[e];
}

namespace {

template <class Acc>
Acc scores(RouteScore kind, const Acc* z, int64_t n, Acc* s) {
  Acc total;
  kind == RouteScore::sigmoid ? route_scores<RouteScore::sigmoid>(z, n, s, &total)
                              : route_scores<RouteScore::sqrt_softplus>(z, n, s, &total);
  return score_total(total);
}

// Experts of groups that are not kept cannot be chosen.
template <class T>
void keep_groups(const MoeRouteArgs<T>& args, RouteRow<acc_t<T>>& row) {
  using Acc = acc_t<T>;
  const int64_t size = args.experts / args.groups;
  Acc score[kMaxGroups];
  Ranked<Acc> ranked[kMaxGroups];
  int64_t chosen[kMaxExperts];
  for (int64_t g = 0; g < args.groups; ++g) {
    route_select<Acc>(row.ranked + g * size, size, args.group_top, chosen);
    score[g] = 0;
    for (int64_t j = 0; j < args.group_top; ++j) score[g] += row.key[chosen[j]];
  }
  route_rank(score, args.groups, ranked);
  route_select<Acc>(ranked, args.groups, args.kept_groups, chosen);
  for (int64_t g = 0; g < args.groups; ++g) {
    const bool kept = std::find(chosen, chosen + args.kept_groups, g) != chosen + args.kept_groups;
    if (!kept) std::fill_n(row.ranked + g * size, size, kOut<Acc>);
  }
}

template <class T>
acc_t<T> highest_chosen(const MoeRouteArgs<T>& args, const int64_t* chosen, const acc_t<T>* z) {
  acc_t<T> high = -kInf<acc_t<T>>;
  for (int64_t j = 0; j < args.k; ++j) {
    if (chosen[j] >= 0) high = std::max(high, z[chosen[j]]);
  }
  return high;
}

// Adds token t to its slot.
template <class T>
void route_token(const MoeRouteArgs<T>& args, int64_t t, RouteRow<acc_t<T>>& row, acc_t<T>* sums, int64_t* counts) {
  using Acc = acc_t<T>;
  const int64_t n = args.experts, k = args.k;
  Acc *weights = args.weights + t * k, *stats = args.stats + 2 * t;
  int64_t* chosen = args.indices + t * k;

  // The softmax, and whether the token counts.
  widen(args.logits + t * args.stride, n, row.z);
  route_softmax(row.z, n, row.p, stats);
  if (!counted(args, t)) stats[1] = kInf<Acc>;
  if (stats[1] == kInf<Acc>) {
    std::fill_n(weights, k, Acc(0));
    std::fill_n(chosen, k, -1);
    return;
  }

  // The scores and the choice.
  const bool softmax = args.score == RouteScore::softmax;
  const Acc total = softmax ? Acc(1) : scores(args.score, row.z, n, row.s);
  const Acc* s = softmax ? row.p : row.s;
  if (args.replay) {
    std::copy_n(args.replay + t * k, k, chosen);
  } else {
    route_keys(args.over_chosen || (!args.bias && !args.groups) ? row.z : s, args.bias, n, row.key);
    route_rank(row.key, n, row.ranked);
    if (args.groups) keep_groups(args, row);
    route_select<Acc>(row.ranked, n, k, chosen);
  }

  // The weights.
  const Acc high = args.over_chosen ? highest_chosen(args, chosen, row.z) : Acc(0);
  Acc sum = args.over_chosen ? Acc(0) : Acc(args.epsilon);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t e = chosen[j];
    weights[j] = e < 0 ? Acc(0) : args.over_chosen ? exp_neg(row.z[e] - high) : s[e];
    sum += weights[j];
    if (e >= 0) ++counts[e];
  }
  Acc factor = static_cast<Acc>(args.scale);
  if (args.over_chosen || args.renormalize) factor /= sum;
  for (int64_t j = 0; j < k; ++j) weights[j] = chosen[j] < 0 ? Acc(0) : weights[j] * factor;

  // The token's share in the sums over tokens.
  add_shares(s, n, total, sums);
  const Acc lse = stats[0] + stats[1];
  sums[n] += lse * lse;
  ++counts[n];
}

}  // namespace

template <class T>
void moe_route_cpu(const MoeRouteArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t chunk = RouteChunks::size(args.tokens), columns = args.experts + 1;

  // Token by token, the sums of each chunk's tokens in its slots.
  parallel_for(0, RouteChunks::count(args.tokens), 1, [&](int64_t first, int64_t last) {
    RouteRow<Acc> row;
    for (int64_t c = first; c < last; ++c) {
      const int64_t end = std::min(args.tokens, (c + 1) * chunk);
      for (int64_t t = c * chunk, b = sequence_of(args, t); t < end; ++b) {
        Acc* sums = args.slot_scores + (c + b) * columns;
        int64_t* counts = args.slot_counts + (c + b) * columns;
        std::fill_n(sums, columns, Acc(0));
        std::fill_n(counts, columns, 0);
        for (const int64_t stop = std::min(end, route_bound(args, b + 1)); t < stop; ++t) {
          route_token(args, t, row, sums, counts);
        }
      }
    }
  });

  // The slots of each sequence, added up in order.
  double squares = 0;
  args.lengths[args.sequences] = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    double sums[kMaxExperts + 1] = {};
    int64_t first, last, counts[kMaxExperts + 1] = {};
    slots_of(args, b, chunk, &first, &last);
    for (int64_t slot = first; slot < last; ++slot) {
      for (int64_t e = 0; e < columns; ++e) {
        sums[e] += args.slot_scores[slot * columns + e];
        counts[e] += args.slot_counts[slot * columns + e];
      }
    }
    const int64_t length = counts[args.experts];
    for (int64_t e = 0; e < args.experts; ++e) {
      args.counts[b * args.experts + e] = counts[e];
      args.mean_score[b * args.experts + e] = static_cast<Acc>(sums[e] / std::max<int64_t>(length, 1));
    }
    squares += sums[args.experts];
    args.lengths[b] = length;
    args.lengths[args.sequences] += length;
  }
  *args.z_loss = static_cast<Acc>(squares / std::max<int64_t>(args.lengths[args.sequences], 1));
}

namespace {

// dz of token t in row.key; `mean_gradient` is G, `z_factor` c / lse.
template <class T>
void route_token_gradient(const MoeRouteBackwardArgs<T>& args, int64_t t, const acc_t<T>* mean_gradient,
                          acc_t<T> z_factor, RouteRow<acc_t<T>>& row) {
  using Acc = acc_t<T>;
  const MoeRouteArgs<T>& f = args.forward;
  const int64_t n = f.experts, k = f.k, *chosen = f.indices + t * k;
  const bool softmax = f.score == RouteScore::softmax;
  const Acc max = f.stats[2 * t], log_sum = f.stats[2 * t + 1], pull = z_factor * (max + log_sum);

  // The scores again.
  widen(f.logits + t * f.stride, n, row.z);
  if (softmax || z_factor != 0) route_probabilities(row.z, n, max, log_sum, row.p);
  const Acc total = softmax ? Acc(1) : scores(f.score, row.z, n, row.s);
  const Acc* s = softmax ? row.p : row.s;

  // From the weights to the scores of the chosen ones.
  const Acc* g = args.grad_weights ? args.grad_weights + t * k : nullptr;
  const Acc high = f.over_chosen ? highest_chosen(f, chosen, row.z) : Acc(0), scale = static_cast<Acc>(f.scale);
  const auto value = [&](int64_t e) { return f.over_chosen ? exp_neg(row.z[e] - high) : s[e]; };
  Acc sum = 1, weighted = 0;
  if (g && (f.over_chosen || f.renormalize)) {
    sum = f.over_chosen ? Acc(0) : Acc(f.epsilon);
    for (int64_t j = 0; j < k; ++j) {
      if (chosen[j] >= 0) sum += value(chosen[j]), weighted += g[j] * value(chosen[j]);
    }
  }
  const auto each_chosen = [&](const auto& body) {
    for (int64_t j = 0; g && j < k; ++j) {
      if (chosen[j] >= 0) body(chosen[j], route_value_gradient(g[j], weighted, sum, scale));
    }
  };

  // From the scores to the logits.
  Acc mean, *dz = row.key;
  std::copy_n(mean_gradient, n, dz);
  if (softmax) {
    if (!f.over_chosen) each_chosen([&](int64_t e, Acc dv) { dz[e] += dv; });  // through the same softmax
    route_dot(dz, row.p, n, &mean);
    softmax_gradient(row.p, n, mean, pull, dz);
    if (f.over_chosen) each_chosen([&](int64_t e, Acc dv) { dz[e] += dv * value(e); });
    return;
  }
  route_dot(dz, s, n, &mean);
  const auto slope = [&](int64_t e) {
    return f.score == RouteScore::sigmoid ? route_slope<RouteScore::sigmoid>(row.z[e], s[e])
                                          : route_slope<RouteScore::sqrt_softplus>(row.z[e], s[e]);
  };
  const auto rest = f.score == RouteScore::sigmoid ? score_gradient<RouteScore::sigmoid, Acc>
                                                   : score_gradient<RouteScore::sqrt_softplus, Acc>;
  rest(row.z, s, n, mean / total, 1 / total, dz);
  if (pull != 0) add_scaled_row(row.p, n, pull, dz);
  each_chosen([&](int64_t e, Acc dv) { dz[e] += dv * slope(e); });
}

}  // namespace

template <class T>
void moe_route_backward_cpu(const MoeRouteBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const MoeRouteArgs<T>& f = args.forward;
  const int64_t n = f.experts;
  const Acc z_factor = args.grad_z_loss ? 2 * *args.grad_z_loss / std::max<int64_t>(f.lengths[f.sequences], 1) : Acc(0);
  parallel_for(0, f.tokens, 16, [&](int64_t first, int64_t last) {
    RouteRow<Acc> row;
    alignas(64) Acc mean_gradient[kMaxExperts] = {};
    int64_t sequence = -1;
    for (int64_t t = first; t < last; ++t) {
      T* out = args.grad_logits + t * n;
      if (f.stats[2 * t + 1] == kInf<Acc>) {
        std::fill_n(out, n, T{});
        continue;
      }
      if (const int64_t b = args.grad_mean_score ? sequence_of(f, t) : -1; b != sequence) {
        std::fill_n(mean_gradient, n, Acc(0));
        add_scaled_row(args.grad_mean_score + b * n, n, Acc(1) / f.lengths[b], mean_gradient);
        sequence = b;
      }
      route_token_gradient(args, t, mean_gradient, z_factor, row);
      narrow(row.key, n, out);
    }
  });
}

#define INSTANTIATE(T)                                         \
  template void moe_route_cpu<T>(const MoeRouteArgs<T>& args); \
  template void moe_route_backward_cpu<T>(const MoeRouteBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
