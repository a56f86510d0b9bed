// One row at a time in a copy that stays in the core's cache: every further pass reads that.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "core/load_block.h"
#include "core/parallel.h"
#include "reflection/sample_step_loops.h"
#include "reflection/sample_step_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 2048;  // elements at once; 8 KB in float32 stay in L1

// A row's candidates: all of z, or those that a filter left, by rising id.
template <class Acc>
struct Candidates {
  const Acc* z;
  const int32_t* ids;  // null: 0, 1, ...
  int64_t n;
};

// What a row is worked on in. Memory that no element is written to is never touched.
template <class Acc>
class Row {
 public:
  explicit Row(int64_t vocab)
      : z(new Acc[vocab]), maxima_(new Acc[stripes(vocab)]), listed_(new Acc[vocab]), ids_(new int32_t[vocab]) {}
  const std::unique_ptr<Acc[]> z;
  std::vector<Acc> key;

  // Those of `from` that are >= least, or whose key is.
  Candidates<Acc> list(const Candidates<Acc>& from, Acc least) {
    if (from.ids) return list(from, from.z, least);
    stripe_max(from.z, from.n, maxima_.get());
    return list_stripes(from, least);
  }
  Candidates<Acc> list(const Candidates<Acc>& from, const Acc* key, Acc least) {
    return {listed_.get(), ids_.get(), append(from, key, 0, from.n, least, 0)};
  }

  // Some of `from`, among them its k largest elements and all that equal these. The k-th largest maximum of a stripe is
  // at most the k-th largest element.
  Candidates<Acc> list_largest(const Candidates<Acc>& from, int64_t k) {
    const int64_t n = stripes(from.n);
    if (from.ids || 4 * k > n) return from;
    stripe_max(from.z, from.n, maxima_.get());
    std::copy_n(maxima_.get(), n, listed_.get());
    std::nth_element(listed_.get(), listed_.get() + k - 1, listed_.get() + n, std::greater<Acc>());
    return list_stripes(from, listed_[k - 1]);
  }

 private:
  static int64_t stripes(int64_t n) { return (n + kStripe - 1) / kStripe; }

  // Of all of z: where the maximum of a stripe is too small, none of its elements is looked at.
  Candidates<Acc> list_stripes(const Candidates<Acc>& from, Acc least) {
    int64_t n = 0;
    for (int64_t first = 0; first < from.n; first += kStripe) {
      if (maxima_[first / kStripe] >= least) {
        n = append(from, from.z, first, std::min(from.n, first + kStripe), least, n);
      }
    }
    return {listed_.get(), ids_.get(), n};
  }

  // The list of n elements goes on with those of from[first, last) whose key is >= least.
  int64_t append(const Candidates<Acc>& from, const Acc* key, int64_t first, int64_t last, Acc least, int64_t n) {
    for (int64_t j = first; j < last; ++j) {  // in place where `from` is a list already: n <= j
      const Acc value = from.z[j];
      const int32_t id = from.ids ? from.ids[j] : int32_t(j);
      const bool stays = key[j] >= least;
      listed_[n] = value, ids_[n] = id;
      n += stays;
    }
    return n;
  }

  const std::unique_ptr<Acc[]> maxima_, listed_;
  const std::unique_ptr<int32_t[]> ids_;
};

template <class Acc>
int64_t fastest(const Candidates<Acc>& from, Acc max, Acc inv_t, RandomKey key) {
  alignas(64) Acc speed[kBlock];
  Acc best = -1;
  int64_t winner = 0;
  for (int64_t begin = 0; begin < from.n; begin += kBlock) {
    const int64_t n = std::min(kBlock, from.n - begin);
    if (from.ids) {
      race_block<Acc, true>(from.z + begin, from.ids + begin, begin, n, max, inv_t, key, speed);
    } else {
      race_block<Acc, false>(from.z + begin, nullptr, begin, n, max, inv_t, key, speed);
    }
    Acc high;
    row_max(speed, n, &high);
    if (!(high > best)) continue;
    best = high;
    const int64_t j = begin + (std::find(speed, speed + n, high) - speed);
    winner = from.ids ? from.ids[j] : j;
  }
  return winner;
}

template <class T>
void sample_row(const SampleStepArgs<T>& args, int64_t r, Row<acc_t<T>>& row) {
  using Acc = acc_t<T>;
  const RowPlan<Acc> plan = plan_of(args, r);
  if (!plan.drawn) return finish_nothing(args, r);
  // Copy the row, widened and combined, and find its maximum on the way.
  const int64_t v = args.vocab;
  Acc* z = row.z.get();
  Acc raw_max = -kInf<Acc>;
  for (int64_t begin = 0; begin < v; begin += kBlock) {
    const int64_t n = std::min(kBlock, v - begin);
    widen(args.logits + r * args.stride + begin, n, z + begin);
    if (!args.form.plain()) run_alone(FormBlock{}, args.form, n, z + begin, static_cast<Acc*>(nullptr));
    if (args.tuned) {
      add_difference(args.tuned + r * args.tuned_stride + begin, args.base + r * args.base_stride + begin, n, plan.beta,
                     z + begin);
    }
    Acc high;
    row_max(z + begin, n, &high);
    raw_max = std::max(raw_max, high);
  }
  // Its sums of e^z as it is, and at the temperature.
  const Acc shift = raw_max == -kInf<Acc> ? Acc(0) : raw_max;  // NaN has no maximum, and has to show
  double raw, cold;                                            // at T = 1, at T
  mass_of(z, v, shift, Acc(1), &raw);
  if (!(raw > 0)) return finish_without_draw(args, r, plan, raw != raw);
  cold = raw;
  if (plan.inv_t != 1) mass_of(z, v, raw_max, plan.inv_t, &cold);

  // The schedule and the penalties, and the sum again where they changed something.
  double in_set = 0;
  for (int64_t i = 0; i < plan.set_size; ++i) {
    const int32_t id = plan.set[i];
    if (id < 0 || id >= v) continue;
    in_set += exp_neg((z[id] - raw_max) * plan.inv_t);
    if (plan.delta != 0) z[id] += plan.delta;
  }
  if (plan.bias) add_bias(plan.bias, v, z);
  if (plan.penalized()) penalize_row(plan, v, z);
  if (plan.counted()) take_counts(plan.counts, v, plan.frequency, z);
  const auto raw_of = [&](int64_t id) {
    Acc z0 = args.form(load(args.logits[r * args.stride + id]));
    if (args.tuned) {
      z0 += plan.beta * (load(args.tuned[r * args.tuned_stride + id]) - load(args.base[r * args.base_stride + id]));
    }
    return z0;
  };
  Acc max = raw_max;
  double all = cold;
  if (plan.moves()) {
    row_max(z, v, &max);
    if (max == -kInf<Acc>) max = 0;  // NaN has no maximum, and has to show
    mass_of(z, v, max, plan.inv_t, &all);
    if (!(all > 0)) return finish_without_draw(args, r, plan, all != all);
  }
  if (plan.greedy) {
    const int64_t token = std::find(z, z + v, max) - z;
    return finish_sample(args, r, plan, token, raw_of(token), raw_max, raw, Acc(0), 1, 1, 0, max, kInf<Acc>);
  }

  // The filters: each leaves a list of candidates, which the next one goes through.
  Candidates<Acc> left{z, nullptr, v};
  double some = all;
  Acc least = std::numeric_limits<Acc>::lowest();
  const auto keep_largest = [&](int64_t k) {
    left = row.list_largest(left, k);
    const auto count = [&](Acc from) {
      Weight w{0, 0};
      count_from(left.z, left.n, from, &w.count);
      return w;
    };
    least = threshold(max, plan.temperature, double(k), count, [](Weight w) { return double(w.count); }).at;
    left = row.list(left, least);
    mass_of(left.z, left.n, max, plan.inv_t, &some);
  };
  Moments moments;
  if (plan.top_h > 0) {
    if (v > kTopH) keep_largest(kTopH);
    moments_of(left.z, left.n, max, plan.inv_t, &moments);
    const auto entropy = [&](Acc from) {
      Weight w{0, 0};
      for (int64_t j = 0; j < left.n; ++j) {
        if (!(left.z[j] >= from)) continue;
        const Acc x = (left.z[j] - max) * plan.inv_t;
        w.mass += moments.minus_p_log_p(x, exp_neg(x)), ++w.count;
      }
      return w;
    };
    Acc cut = std::numeric_limits<Acc>::lowest();
    if (plan.top_h < 1) {
      const double bound = beyond(plan.top_h, moments);
      cut = std::min(max, threshold(max, plan.temperature, bound, entropy, [](Weight w) { return w.mass; }).above);
    }
    left = row.list(left, cut);
    mass_of(left.z, left.n, max, plan.inv_t, &some);
  }
  if (plan.top_k && plan.top_k < left.n) keep_largest(plan.top_k);
  if (plan.top_p < 1) {
    // Elements below this make up less than half of 1 - p all together: they are out whatever the threshold is.
    const double share = 0.5 * (1 - plan.top_p) * some / double(std::max<int64_t>(left.n, 1));
    const Acc certain = share > 0 ? max + plan.temperature * Acc(std::log(share)) : least;
    left = row.list(left, std::max(least, certain));
    const auto mass = [&](Acc from) {
      Weight w;
      mass_from(left.z, left.n, from, max, plan.inv_t, &w);
      return w;
    };
    least = threshold(max, plan.temperature, plan.top_p * some, mass, [](Weight w) { return w.mass; }).at;
    left = row.list(left, least);
  }
  if (plan.min_x > -kInf<Acc>) left = row.list(left, max + plan.min_x * plan.temperature);
  if (plan.typical > 0) {
    moments_of(left.z, left.n, max, plan.inv_t, &moments);
    const Acc mean = max + plan.temperature * Acc(moments.mean());
    row.key.resize(left.n);
    Acc* key = row.key.data();
    nearness_of(left.z, left.n, mean, key);
    const auto mass = [&](Acc from) {
      Weight w{0, 0};
      for (int64_t j = 0; j < left.n; ++j) {
        if (key[j] >= from) w.mass += exp_neg((left.z[j] - max) * plan.inv_t), ++w.count;
      }
      return w;
    };
    Acc nearest;
    row_max(key, left.n, &nearest);
    const double target = plan.typical * moments.mass;
    left = row.list(left, key, threshold(nearest, plan.temperature, target, mass, [](Weight w) { return w.mass; }).at);
  }
  for (const bool by_entropy : {false, true}) {
    const double epsilon = by_entropy ? plan.eta : plan.epsilon;
    if (!(epsilon > 0)) continue;
    moments_of(left.z, left.n, max, plan.inv_t, &moments);
    Acc top;
    row_max(left.z, left.n, &top);
    left = row.list(left, std::min(top, max + plan.temperature * Acc(cut_of(epsilon, moments, by_entropy))));
  }
  if (left.ids) mass_of(left.z, left.n, max, plan.inv_t, &some);

  // The draw: the candidate that is fastest in a race of exponentials.
  const int64_t token = fastest(left, max, plan.inv_t, plan.key);
  least = left.ids ? *std::min_element(left.z, left.z + left.n) : -kInf<Acc>;
  const Acc most = plan.typical > 0 ? *std::max_element(left.z, left.z + left.n) : kInf<Acc>;
  finish_sample(args, r, plan, token, raw_of(token), raw_max, raw, (z[token] - max) * plan.inv_t, all, some,
                in_set / cold, least, most);
}

}  // namespace

template <class T>
void sample_step_cpu(const SampleStepArgs<T>& args) {
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(args.vocab, 1));
  parallel_for(0, args.rows, grain, [&](int64_t first, int64_t last) {
    Row<acc_t<T>> row(args.vocab);
    for (int64_t r = first; r < last; ++r) sample_row(args, r, row);
  });
}

#define INSTANTIATE(T) template void sample_step_cpu<T>(const SampleStepArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
