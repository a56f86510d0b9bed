// What one row samples under, and the search for the threshold of a filter: the same steps in both kernels.
#pragma once

#include "core/math.h"
#include "core/random.h"
#include "reflection/apply_schedule_math.h"
#include "reflection/sample_step.h"

namespace warpup {

template <class Acc>
struct RowPlan {
  bool drawn, greedy;  // not drawn: a row of no request
  Acc temperature, inv_t;
  float delta;
  const int32_t* set;
  int64_t set_size;
  const uint8_t* seen;
  const int32_t* counts;
  const float* bias;
  Acc beta, repetition, presence, frequency;
  int64_t top_k;                        // 0: off
  double top_p;                         // 1: off
  Acc min_x;                            // -inf: off
  double top_h, typical, epsilon, eta;  // 0: off
  RandomKey key;

  WARPUP_HD bool filtered() const {
    return !greedy && (top_k || top_p < 1 || min_x > -kInf<Acc> || top_h > 0 || typical > 0 || epsilon > 0 || eta > 0);
  }
  WARPUP_HD bool penalized() const { return seen && (repetition != 1 || presence != 0); }
  WARPUP_HD Acc moved(Acc z, int64_t j) const {
    if (bias) z += bias[j];
    const uint8_t seen_as = penalized() ? seen[j] : 0;
    if (seen_as) z = z > 0 ? z / repetition : z * repetition;
    if (counted()) z -= frequency * Acc(counts[j]);
    return seen_as & 2 ? z - presence : z;
  }
  WARPUP_HD bool counted() const { return counts && frequency != 0; }
  WARPUP_HD bool moves() const { return delta != 0 || bias || penalized() || counted(); }  // z is not z0
};

inline constexpr int64_t kTopH = 100;  // tokens that top_h chooses among, as in transformers

template <class T>
WARPUP_HD RowPlan<acc_t<T>> plan_of(const SampleStepArgs<T>& args, int64_t r) {
  using Acc = acc_t<T>;
  const int64_t slot = args.slots[r];
  RowPlan<Acc> plan{};
  if (slot < 0 || slot >= args.tables.slots) return plan;
  const Progress at = progress_of(args.tables, slot, args.back ? args.back[r] : 0);
  const Sampling& s = args.sampling[slot];
  const Schedule& schedule = args.tables.schedules[slot];
  const double t = at.phase == kAnswer ? s.answer : at.phase == kCode ? s.code : s.think;
  plan.drawn = true, plan.greedy = t == 0;
  plan.temperature = Acc(t), plan.inv_t = plan.greedy ? Acc(1) : Acc(1 / t);
  plan.delta = delta_at(args.tables, slot, at, t);
  plan.set = args.tables.sets + int64_t(schedule.set), plan.set_size = int64_t(schedule.set_size);
  plan.seen = args.seen ? args.seen + slot * args.vocab : nullptr;
  plan.counts = args.counts ? args.counts + slot * args.vocab : nullptr;
  plan.bias = args.bias ? args.bias + slot * args.vocab : nullptr;
  plan.beta = Acc(s.beta), plan.repetition = Acc(s.repetition), plan.presence = Acc(s.presence);
  plan.frequency = Acc(s.frequency);
  plan.top_k = s.top_k > 0 && s.top_k < double(args.vocab) ? int64_t(s.top_k) : 0;
  plan.top_p = s.top_p, plan.min_x = s.min_p > 0 ? Acc(log(s.min_p)) : -kInf<Acc>;
  plan.top_h = s.top_h, plan.typical = s.typical < 1 ? s.typical : 0, plan.epsilon = s.epsilon, plan.eta = s.eta;
  plan.key = random_key(uint64_t(s.seed), uint64_t(at.generated), uint32_t(args.stream));
  return plan;
}

struct Weight {
  double mass;
  int64_t count;
};

// Of what is left of a row: the sums of e^x and of x e^x.
struct Moments {
  double mass, shifted;
  WARPUP_HD double mean() const { return shifted / mass; }  // of x
  WARPUP_HD double entropy() const { return log(mass) - mean(); }
  WARPUP_HD double minus_p_log_p(double x, double e) const { return e == 0 ? 0 : e / mass * (log(mass) - x); }
};

// x of the least probability that epsilon (or eta, by the entropy) leaves.
WARPUP_HD double cut_of(double epsilon, const Moments& left, bool by_entropy) {
  const double eta = sqrt(epsilon) * exp(-left.entropy()), least = by_entropy && eta < epsilon ? eta : epsilon;
  return log(least) + log(left.mass);
}

// How near z is to the mean of what is left: the key that typical keeps the largest of.
template <class Acc>
WARPUP_HD Acc nearness(Acc z, Acc mean) {
  return z < mean ? z - mean : mean - z;
}

// What of -p log p in a sum is beyond top_h times the entropy: the first number above.
WARPUP_HD double beyond(double top_h, const Moments& left) {
  const double most = top_h * left.entropy();
  return top_h >= 1 ? kInf<double> : most + most * 0x1p-52;
}

template <class Acc>
WARPUP_HD Acc between(Acc low, Acc high, int step) {
  if (step < 48) return low + (high - low) / 2;
  // Halving values takes forever from 1e30 down to 1: halve their bit patterns, which are ordered like them.
  using Bits = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
  const auto ordered = [](Acc x) {
    const Bits b = std::bit_cast<Bits>(x);
    return b < 0 ? std::numeric_limits<Bits>::min() - b : b;
  };
  const Bits a = ordered(low), b = ordered(high), m = a / 2 + b / 2 + (a & b & 1);
  return std::bit_cast<Acc>(m < 0 ? std::numeric_limits<Bits>::min() - m : m);
}

template <class Acc>
struct Cut {
  Acc at, above;  // above: where the elements begin that alone do not reach the target
};

// The largest v with weigh(v) >= target, where weigh(v) is the Weight of the elements >= v and `measure` the part of it
// that counts. Up to elements: the v returned and the largest such v cut the row at the same place. `high` is the
// largest element.
template <class Acc, class Weigh, class Measure>
WARPUP_HD Cut<Acc> threshold(Acc high, Acc width, double target, Weigh weigh, Measure measure) {
  Weight top = weigh(high);
  if (measure(top) >= target) return {high, kInf<Acc>};
  const Acc max = high, lowest = std::numeric_limits<Acc>::lowest();
  Acc low = high - width;
  Weight bottom = weigh(low);
  while (measure(bottom) < target && low > lowest) {
    high = low, top = bottom, width *= 4;
    low = max - width > lowest ? max - width : lowest;
    bottom = weigh(low);
  }
  for (int step = 0; bottom.count - top.count > 1; ++step) {
    const Acc middle = between(low, high, step);
    if (!(middle > low && middle < high)) break;
    const Weight w = weigh(middle);
    if (measure(w) >= target) {
      low = middle, bottom = w;
    } else {
      high = middle, top = w;
    }
  }
  return {low, high};
}

// e^x / E of a token: the largest one wins with the probability of its share of the sum of e^x.
template <class Acc>
WARPUP_HD Acc race(Acc x, RandomKey key, uint32_t token) {
  return exp_neg(x) / Acc(exponential(random_bits(key, token)));
}

// The row's outputs, from its token and sums. raw: max and sums at T = 1 of z0; p_r is done already.
template <class T>
WARPUP_HD void finish_sample(const SampleStepArgs<T>& args, int64_t r, const RowPlan<acc_t<T>>& plan, int64_t token,
                             acc_t<T> z0, acc_t<T> raw_max, double raw_sum, acc_t<T> x, double sum, double kept_sum,
                             double p_r, acc_t<T> least, acc_t<T> most) {
  using Acc = acc_t<T>;
  args.token[r] = token, args.least[r] = least, args.most[r] = most;
  args.delta[r] = plan.delta, args.temperature[r] = float(plan.temperature);
  args.logp_raw[r] = Acc(double(z0) - double(raw_max) - log(raw_sum));
  if (plan.greedy) {
    args.logp[r] = 0, args.kept[r] = 1;
    args.p_r[r] = contains(plan.set, plan.set_size, token) ? Acc(1) : Acc(0);
    return;
  }
  args.logp[r] = Acc(double(x) - log(kept_sum));
  args.kept[r] = Acc(kept_sum == sum ? 1 : kept_sum / sum);
  args.p_r[r] = Acc(p_r);
}

// A row without a finite logit, or one with NaN or +inf in it (`poison`), before or after what is added to it.
template <class T>
WARPUP_HD void finish_without_draw(const SampleStepArgs<T>& args, int64_t r, const RowPlan<acc_t<T>>& plan,
                                   bool poison) {
  using Acc = acc_t<T>;
  args.token[r] = 0;
  args.delta[r] = plan.delta, args.temperature[r] = float(plan.temperature);
  const Acc all = poison ? kInf<Acc> - kInf<Acc> : Acc(0);
  args.logp_raw[r] = args.logp[r] = args.kept[r] = args.p_r[r] = args.least[r] = args.most[r] = all;
}

template <class T>
WARPUP_HD void finish_nothing(const SampleStepArgs<T>& args, int64_t r) {
  args.token[r] = -1;
  args.logp_raw[r] = args.logp[r] = args.kept[r] = args.p_r[r] = args.least[r] = args.most[r] = 0;
  args.delta[r] = args.temperature[r] = 0;
}

}  // namespace warpup
