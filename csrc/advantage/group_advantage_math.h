// One group from its rewards to its advantages, written once for both kernels. A Team shares the group's rows out: the
// CPU's is one thread, CUDA's 8 lanes or a block. Every thread of a team makes the same calls to `reduce`, so nothing
// here returns early.
#pragma once

#include <cmath>

#include "advantage/group_advantage.h"
#include "core/math.h"

#ifdef __CUDACC__
#define WARPUP_TEAM __device__ __forceinline__
#else
#define WARPUP_TEAM inline
#endif

namespace warpup {

template <class Sum, class T>
struct First {  // of the first pass
  Sum total;
  int64_t count, best_at;
  T max, min, second;  // best_at: position of the first max; second: the greatest without it
};

template <class Sum>
struct Second {  // of the second pass; d = r - (rounded mean)
  Sum d, dd, length, length_d;
};

template <class T>
struct Extreme {  // the row furthest from the mean; how many rows share the maximum and the minimum
  T distance;
  int64_t at, at_max, at_min;
};

struct Merge {
  template <class Sum, class T>
  WARPUP_TEAM First<Sum, T> operator()(const First<Sum, T>& a, const First<Sum, T>& b) const {
    const bool a_leads = a.max > b.max || (a.max == b.max && a.best_at < b.best_at);
    const T runner_up = a_leads ? b.max : a.max, second = a_leads ? a.second : b.second;
    return {a.total + b.total,
            a.count + b.count,
            a_leads ? a.best_at : b.best_at,
            a_leads ? a.max : b.max,
            a.min < b.min ? a.min : b.min,
            second > runner_up ? second : runner_up};
  }
  template <class Sum>
  WARPUP_TEAM Second<Sum> operator()(const Second<Sum>& a, const Second<Sum>& b) const {
    return {a.d + b.d, a.dd + b.dd, a.length + b.length, a.length_d + b.length_d};
  }
  template <class T>
  WARPUP_TEAM Extreme<T> operator()(const Extreme<T>& a, const Extreme<T>& b) const {
    const bool a_leads = a.distance > b.distance || (a.distance == b.distance && a.at < b.at);
    return {a_leads ? a.distance : b.distance, a_leads ? a.at : b.at, a.at_max + b.at_max, a.at_min + b.at_min};
  }
  WARPUP_TEAM float operator()(float a, float b) const { return a + b; }
  WARPUP_TEAM double operator()(double a, double b) const { return a + b; }
};

// Rows [begin, end) of group g, which is written to the statistics if `counted`.
template <class T, class Team>
WARPUP_TEAM void group_advantage_of(const GroupAdvantageArgs<T>& args, int64_t g, int64_t begin, int64_t end,
                                    bool counted, const Team& team) {
  using Sum = typename Team::template Sum<T>;
  // Calls body(reward, position, row) on this thread's rows, NaN rewards included.
  const auto each = [&](auto body) {
    for (int64_t i = begin + team.rank; i < end; i += team.size) {
      const int64_t row = args.order ? args.order[i] : i;
      if (row < 0 || row >= args.rows) continue;  // a caller's own order on CUDA, unchecked
      body(args.rewards[row * args.rewards_stride], i, row);
    }
  };

  // First pass: count, sum and extremes. Where all rewards are equal, that value is the mean exactly.
  First<Sum, T> first{0, 0, end, -kInf<T>, kInf<T>, -kInf<T>};
  if (args.baseline == Baseline::runner_up) {
    each([&](T r, int64_t i, int64_t) {
      if (r == r) first = Merge{}(first, First<Sum, T>{Sum(r), 1, i, r, r, -kInf<T>});
    });
  } else {
    each([&](T r, int64_t, int64_t) {  // without branches; NaN is not above the maximum, nor below the minimum
      first.total += r == r ? Sum(r) : Sum(0);
      first.count += r == r;
      first.max = r > first.max ? r : first.max;
      first.min = r < first.min ? r : first.min;
    });
  }
  first = team.reduce(first, Merge{});
  const int64_t n = first.count;
  const bool equal = first.max == first.min;
  const T center = equal ? first.max : static_cast<T>(first.total / Sum(n > 0 ? n : 1));

  // Second pass: sums of the deviations from the rounded mean; what rounding left of it comes back as `rest`.
  Second<Sum> second{0, 0, 0, 0};
  each([&](T r, int64_t, int64_t) {
    const Sum d = r == r ? Sum(r) - Sum(center) : Sum(0);
    second.d += d;
    second.dd += d * d;
  });
  if (args.baseline == Baseline::length_weighted) {
    each([&](T r, int64_t, int64_t row) {
      const Sum length = r == r ? Sum(args.lengths[row * args.lengths_stride]) : Sum(0);
      second.length += length;
      second.length_d += r == r ? length * (Sum(r) - Sum(center)) : Sum(0);
    });
  }
  second = team.reduce(second, Merge{});
  const Sum rest = equal ? Sum(0) : second.d / Sum(n > 0 ? n : 1);  // the mean is center + rest
  Sum m2 = second.dd - second.d * rest;
  if (equal || m2 < 0) m2 = 0;  // NaN, from inf rewards, comes through
  const int64_t freedom = n - args.correction;
  const Sum std = freedom > 0 ? sqrt(m2 / Sum(freedom)) : Sum(0);

  // For leave_one_out_std. M2 of the others is M2 - d^2 n / (n - 1). Only for the row furthest from the mean can that
  // difference lose its digits, so its others are summed themselves.
  Extreme<T> extreme{-1, end, 0, 0};
  Sum others_m2 = 0;
  if (args.scale == Scale::leave_one_out_std) {  // the same for all teams
    each([&](T r, int64_t i, int64_t) {
      if (r != r) return;
      const Sum d = Sum(r) - Sum(center) - rest;
      const T distance = static_cast<T>(std::abs(d));
      extreme = Merge{}(extreme, Extreme<T>{distance, i, r == first.max, r == first.min});
    });
    extreme = team.reduce(extreme, Merge{});
    Sum others = 0, square = 0;
    each([&](T r, int64_t i, int64_t) { others += r == r && i != extreme.at ? Sum(r) - Sum(center) : Sum(0); });
    others = team.reduce(others, Merge{}) / Sum(n > 1 ? n - 1 : 1);
    each([&](T r, int64_t i, int64_t) {
      const Sum d = Sum(r) - Sum(center) - others;
      square += r == r && i != extreme.at ? d * d : Sum(0);
    });
    others_m2 = team.reduce(square, Merge{});
  }

  // Last pass. What is left is A = (r - origin - shift) * factor, but for the choices that look at a single row.
  Sum origin = Sum(center), shift = rest, factor = 1;
  if (args.baseline == Baseline::length_weighted && second.length > 0) shift = second.length_d / second.length;
  if (args.baseline == Baseline::none) origin = shift = 0;
  const Sum all_but_one = n > 1 ? Sum(n) / Sum(n - 1) : Sum(1);
  if (args.baseline == Baseline::leave_one_out) factor = all_but_one;
  if (args.scale == Scale::std) factor = equal ? Sum(0) : factor / (std + Sum(args.eps));
  if (args.scale == Scale::batch_std) {
    factor = args.batch[3] != 0 ? Sum(0) : factor / (sqrt(Sum(args.batch[2])) + Sum(args.eps));
  }
  if (equal && args.baseline != Baseline::none) factor = 0;
  Sum absolute = 0;
  each([&](T r, int64_t i, int64_t row) {
    Sum a = (Sum(r) - origin - shift) * factor;
    if (args.baseline == Baseline::runner_up) {
      a = i == first.best_at ? (Sum(first.max) - Sum(first.second)) * factor : Sum(0);
    }
    if (args.scale == Scale::leave_one_out_std) {
      const Sum d = Sum(r) - Sum(center) - rest;
      const Sum left = i == extreme.at ? others_m2 : m2 - d * d * all_but_one;
      const int64_t left_freedom = n - 1 - args.correction;
      // Without this row all are equal: it alone is the maximum and the others the minimum, or the other way round.
      const bool left_equal = equal || (r == first.max && extreme.at_max == 1 && extreme.at_min == n - 1) ||
                              (r == first.min && extreme.at_min == 1 && extreme.at_max == n - 1);
      if (!left_equal && left_freedom > 0) a /= sqrt((left > 0 ? left : Sum(0)) / Sum(left_freedom)) + Sum(args.eps);
    }
    if (n == 1) a = args.singleton_raw ? Sum(r) : Sum(0);
    if (r != r || (factor == 0 && n > 1)) a = 0;  // not 0 * inf
    args.advantages[row] = static_cast<T>(a);
    if (args.count != nullptr) absolute += std::abs(a);
  });
  // The group's statistics.
  if (args.count == nullptr) return;  // the same for all teams
  absolute = team.reduce(absolute, Merge{});
  if (!counted || team.rank != 0) return;
  args.count[g] = n;
  args.mean[g] = n > 0 ? static_cast<T>(Sum(center) + rest) : T(0);
  args.std[g] = static_cast<T>(std);
  args.mean_abs[g] = static_cast<T>(absolute / Sum(n > 0 ? n : 1));
  args.zero_variance[g] = n > 0 && equal;
}

}  // namespace warpup
