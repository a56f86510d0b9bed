// The scalar formulas of policy_loss, shared by the CPU and the CUDA kernel. A loss is a formula of one token's ratio
// and a level, which says whose ratio that is. A new kind is a value of one of the two enums, its case below, its name
// in policy_loss_check.cpp, and a line in the Python table (python/warpup/policy/kinds.py).
#pragma once

#include "core/math.h"

namespace warpup {

// With q the ratio, A the advantage:
//   clip       -min(min(q, delta) A, clamp(q, floor, ceiling) A), for A < 0 at most -c A: PPO, GRPO, two-sided, dual
//   weighted   -sg(clamp(q, floor, ceiling)) A logp: CISPO, VESPO, GPG, A-LoL
//   sapo       -(4 / tau) sigmoid(tau (q - 1)) A
//   geometric  -q A, q of a row, its gradient flowing to the tokens that its clip leaves open: GMPO
//   tv, kl     -sg(min(q, cap)) A logp, and 0 for a token that has left a trust region: DPPO. D is how far its own
//              probability has moved, p - p_old (tv), or by the KL of the two outcomes "this token" and "another", with
//              the sign of p - p_old (kl). A token has left where A > 0 and D > ceiling, or A < 0 and D < floor
//   tv_both    the same with tv and both bounds for every token, whatever its A: IPO
enum class PolicyFormula : int { clip, weighted, sapo, geometric, tv, kl, tv_both };

WARPUP_HD constexpr bool has_trust_region(PolicyFormula f) { return f >= PolicyFormula::tv; }

// With x = logp - old_logp and the sum and mean over a row's tokens:
//   one             q = 1
//   token           q = e^x
//   sequence        q = e^mean(x), the gradient through the mean: GSPO
//   sequence_token  the same value, the gradient to the own token only, the mean held at 10: GSPO-token
//   product         q = e^sum(x), without gradient: A-LoL
//   geometric       q = e^mean(x clipped to [floor, ceiling] where that takes gradient away): GMPO
//   gamma           q = e^(lambda + k log w - lambda w), log w = sum(clamp(x, +-20)) in [ln 1e-8, 20]: VESPO; without
//                   gradient, k and lambda by the sign of A
enum class PolicyLevel : int { one, token, sequence, sequence_token, product, geometric, gamma };

// The ratio is one a row, and a sum over the row comes first.
WARPUP_HD bool by_row(PolicyLevel level) { return level != PolicyLevel::token; }
WARPUP_HD bool sums_rows(PolicyLevel level) { return level > PolicyLevel::token; }
// Each token of a row gets the mean of the slopes of all of them.
WARPUP_HD bool spreads(PolicyLevel level) { return level == PolicyLevel::sequence || level == PolicyLevel::geometric; }
// The ratio that corrects a KL is the row's; else it is the token's own.
WARPUP_HD bool corrects_by_row(PolicyLevel level) {
  return level == PolicyLevel::sequence || level == PolicyLevel::sequence_token;
}
// That ratio's gradient flows to the token itself. Else it is shared by the row (sequence), or there is none: the mean
// of a sequence_token is held, and so its factor (RowRatio::slope) is 0.
template <class Acc>
WARPUP_HD bool corrects_by_own(PolicyLevel level, Acc row_slope) {
  return level == PolicyLevel::sequence_token ? row_slope != 0 : level != PolicyLevel::sequence;
}

// Weights of the estimators k1, k2 and k3 in the KL's value, and of their gradients in its gradient: a straight-through
// estimator has the value of one and the gradient of another. |d| and the estimate are held at the limits, infinite but
// for verl's estimator. The caller's own KL has none of them.
template <class Acc>
struct KlWeights {
  Acc k1 = 0, k2 = 0, k3 = 0, slope1 = 0, slope2 = 0, slope3 = 0;
  Acc input_limit = kInf<Acc>, output_limit = kInf<Acc>;
};

struct PolicyParams {
  double floor, ceiling;               // of the ratio; of its log at the geometric level; of D in a trust region
  double ceiling_negative;             // clip, where A < 0: min(max(delta, ceiling), c)
  double tau_positive, tau_negative;   // sapo: where A > 0, and elsewhere
  double k_positive, lambda_positive;  // gamma: where A >= 0
  double k_negative, lambda_negative;  // gamma: where A < 0
  double cap;                          // of the ratio in a trust region
  double proximal;                     // adds proximal / 2 x^2 to the policy term
  KlWeights<double> kl;
  double kl_coef, entropy_coef;  // of the KL, and of the bonus, which is subtracted
};

// The parameters that kernels read in their loops, in the type of the tokens.
template <class Acc>
struct PolicyBounds {
  Acc floor, ceiling, ceiling_negative, tau_positive, tau_negative, cap;
  WARPUP_HD explicit PolicyBounds(const PolicyParams& p)
      : floor(Acc(p.floor)),
        ceiling(Acc(p.ceiling)),
        ceiling_negative(Acc(p.ceiling_negative)),
        tau_positive(Acc(p.tau_positive)),
        tau_negative(Acc(p.tau_negative)),
        cap(Acc(p.cap)) {}
};

// KL of a coin that falls on this token with p_old from one with p; verl's 1e-8 keeps it finite where p is 1, and a p
// that rounding has put above 1 counts as 1.
template <class Acc>
WARPUP_HD Acc binary_kl(Acc log_ratio, Acc p, Acc old) {
  const Acc rest = p > 1 ? Acc(0) : Acc(1) - p, old_rest = old > 1 ? Acc(0) : Acc(1) - old;
  const Acc kl = old_rest * log_pos((old_rest + Acc(1e-8)) / (rest + Acc(1e-8))) - old * log_ratio;
  return kl < 0 ? Acc(0) : kl;  // rounding
}

template <class Acc>
WARPUP_HD KlWeights<Acc> kl_weights(const PolicyParams& p) {
  const KlWeights<double>& w = p.kl;
  return {Acc(w.k1),     Acc(w.k2),     Acc(w.k3),          Acc(w.slope1),
          Acc(w.slope2), Acc(w.slope3), Acc(w.input_limit), Acc(w.output_limit)};
}

template <class Acc>
struct PolicyTerm {
  Acc loss, slope;                      // slope: d loss / d log of the ratio; weighted: d loss / d logp
  Acc clipped_low, clipped_high, dual;  // 1 where a bound holds, else 0 (numbers vectorise); dual: from above, A < 0
};

template <PolicyFormula kFormula, class Acc>
WARPUP_HD PolicyTerm<Acc> policy_term(Acc ratio, Acc log_ratio, Acc logp, Acc advantage, const PolicyBounds<Acc>& p) {
  const bool positive = advantage > 0, negative = advantage < 0;
  if constexpr (kFormula == PolicyFormula::clip) {
    // Only one side of the clip can hold where A > 0: the upper. Delta and c bound the ratio from above where A < 0.
    const Acc floor = negative ? p.floor : Acc(0), ceiling = positive ? p.ceiling : p.ceiling_negative;
    const Acc above_floor = ratio < floor ? floor : ratio, held = above_floor > ceiling ? ceiling : above_floor;
    const Acc loss = -held * advantage, one = held < ratio ? Acc(1) : Acc(0);
    return {loss, held == ratio ? loss : Acc(0), held > ratio ? Acc(1) : Acc(0), positive ? one : Acc(0),
            negative ? one : Acc(0)};
  } else if constexpr (kFormula == PolicyFormula::weighted) {
    const Acc above_floor = ratio < p.floor ? p.floor : ratio;
    const Acc slope = -(above_floor > p.ceiling ? p.ceiling : above_floor) * advantage;
    const Acc low = ratio < p.floor ? Acc(1) : Acc(0), high = ratio > p.ceiling ? Acc(1) : Acc(0);
    return {slope * logp, slope, negative ? low : Acc(0), positive ? high : Acc(0), Acc(0)};
  } else if constexpr (kFormula == PolicyFormula::sapo) {
    const Acc tau = positive ? p.tau_positive : p.tau_negative, e = exp_held(tau - tau * ratio);
    const Acc sigmoid = Acc(1) / (Acc(1) + e);  // of tau (ratio - 1); its derivative is sigmoid^2 e
    return {Acc(-4) / tau * sigmoid * advantage, Acc(-4) * sigmoid * sigmoid * e * ratio * advantage, Acc(0), Acc(0),
            Acc(0)};
  } else if constexpr (has_trust_region(kFormula)) {
    const Acc now = exp_held(logp), old = exp_held(logp - log_ratio), moved = now - old;
    Acc distance = moved;
    if constexpr (kFormula == PolicyFormula::kl) {
      const Acc kl = binary_kl(log_ratio, now, old);
      distance = moved > 0 ? kl : -kl;
    }
    const bool both = kFormula == PolicyFormula::tv_both;
    const Acc low = distance < p.floor ? Acc(1) : Acc(0), high = distance > p.ceiling ? Acc(1) : Acc(0);
    const Acc below = both || negative ? low : Acc(0), above = both || positive ? high : Acc(0);
    const Acc slope = below + above != 0 ? Acc(0) : -(ratio > p.cap ? p.cap : ratio) * advantage;
    return {slope * logp, slope, below, above, Acc(0)};
  } else {
    const Acc loss = -ratio * advantage;
    const Acc low = log_ratio < p.floor ? Acc(1) : Acc(0), high = log_ratio > p.ceiling ? Acc(1) : Acc(0);
    return {loss, loss, negative ? low : Acc(0), positive ? high : Acc(0), Acc(0)};
  }
}

// What a token adds to the sum that the ratio of its row is made of.
template <class Acc>
WARPUP_HD Acc row_term(PolicyLevel level, Acc x, Acc advantage, const PolicyBounds<Acc>& p) {
  if (level == PolicyLevel::gamma) return x < Acc(-20) ? Acc(-20) : x > Acc(20) ? Acc(20) : x;
  if (level != PolicyLevel::geometric) return x;
  const Acc from_above = x > p.ceiling ? p.ceiling : x, from_below = x < p.floor ? p.floor : x;
  return advantage > 0 ? from_above : advantage < 0 ? from_below : Acc(0);
}

constexpr double kLogGammaFloor = -18.420680743952367;  // ln 1e-8

// What a weight adds to VESPO's log w.
template <class Acc>
WARPUP_HD Acc gamma_term(Acc weight) {
  const Acc x = weight > 0 ? log(weight) : Acc(kLogGammaFloor);
  return x < Acc(kLogGammaFloor) ? Acc(kLogGammaFloor) : x > Acc(20) ? Acc(20) : x;
}

struct RowRatio {
  double positive, negative;  // q of the tokens with A >= 0 and of the others
  double slope;               // factor of their slopes
};

WARPUP_HD double gamma_weight(double log_w, double k, double lambda) {
  lambda = lambda < 1e-4 ? 1e-4 : lambda;
  return exp(lambda + k * log_w - lambda * exp(log_w));
}

WARPUP_HD RowRatio row_ratio(PolicyLevel level, double sum, double tokens, const PolicyParams& p) {
  const double mean = tokens > 0 ? sum / tokens : 0;
  double x = level == PolicyLevel::product ? sum : mean, slope = 1;
  switch (level) {
    case PolicyLevel::one:
    case PolicyLevel::token:
      return {1, 1, 1};
    case PolicyLevel::gamma: {
      const double log_w = sum < kLogGammaFloor ? kLogGammaFloor : sum > 20 ? 20 : sum;
      return {gamma_weight(log_w, p.k_positive, p.lambda_positive),
              gamma_weight(log_w, p.k_negative, p.lambda_negative), 1};
    }
    case PolicyLevel::sequence_token:
      slope = x > 10 ? 0 : 1;
      x = x > 10 ? 10 : x;
      break;
    default:
      break;
  }
  const double q = exp(x > 88 ? 88 : x);
  return {q, q, slope};
}

template <class Acc>
struct KlTerm {
  Acc value, slope;  // slope: d value / d logp
  Acc corrected;     // slope + value: d (q value) / d logp is q times this, q the token's own ratio
};

// With d = ref - logp:  k1 = -d,  k2 = d^2 / 2,  k3 = e^d - d - 1  (Schulman 2020). `corrected` in closed form, which for
// k3 is -d: as a sum of its two parts it would be a difference of exponentials, without a right digit from d = 17 on.
template <class Acc>
WARPUP_HD KlTerm<Acc> kl_term(Acc d, const KlWeights<Acc>& w) {
  const Acc low = d < -w.input_limit ? -w.input_limit : d, held = low > w.input_limit ? w.input_limit : low;
  const Acc e = exp_held(held);
  const Acc value = w.k3 * (e - held - Acc(1)) + held * (w.k2 * Acc(0.5) * held - w.k1);
  const Acc flat = w.slope1 - w.slope2 * held, slope = flat + w.slope3 * (Acc(1) - e);
  const Acc corrected = flat + (w.k3 - w.slope3) * (e - Acc(1)) + held * (w.k2 * Acc(0.5) * held - w.k1 - w.k3);
  const bool over = value > w.output_limit, under = value < -w.output_limit, limited = held != d || over || under;
  const Acc result = over ? w.output_limit : under ? -w.output_limit : value;
  return {result, limited ? Acc(0) : slope, limited ? result : corrected};
}

}  // namespace warpup
