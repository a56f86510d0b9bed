// From the sums of pieces to rows, and from rows to the loss: shared by the CPU and the CUDA kernel, all in double and
// always in the order of the rows, so that the result does not depend on the number of threads.
#pragma once

#include "policy/policy_loss.h"

namespace warpup {

struct PolicyTotals {
  PolicySums<double> sums;
  double sequences;  // with at least one token
};

template <class Acc>
WARPUP_HD PolicySums<Acc> add(const PolicySums<Acc>& a, const PolicySums<Acc>& b) {
  return {a.loss + b.loss,
          a.tokens + b.tokens,
          a.clipped_low + b.clipped_low,
          a.clipped_high + b.clipped_high,
          a.dual + b.dual,
          a.ratio + b.ratio,
          a.ratio_max > b.ratio_max ? a.ratio_max : b.ratio_max,
          a.approx_kl + b.approx_kl,
          a.ref_kl + b.ref_kl,
          a.entropy + b.entropy,
          a.slope + b.slope};
}

WARPUP_HD PolicyTotals add(const PolicyTotals& a, const PolicyTotals& b) {
  return {add(a.sums, b.sums), a.sequences + b.sequences};
}

template <class Acc, class T>
WARPUP_HD PolicySums<Acc> cast(const PolicySums<T>& s) {
  return {Acc(s.loss),      Acc(s.tokens),    Acc(s.clipped_low), Acc(s.clipped_high), Acc(s.dual), Acc(s.ratio),
          Acc(s.ratio_max), Acc(s.approx_kl), Acc(s.ref_kl),      Acc(s.entropy),      Acc(s.slope)};
}

template <class T>
WARPUP_HD PolicySums<T>& sums_of(const PolicyLossArgs<T>& args, int64_t slot) {
  return reinterpret_cast<PolicySums<T>*>(args.partials)[slot];
}
template <class T>
WARPUP_HD RowSums<T>& row_sums_of(const PolicyLossArgs<T>& args, int64_t slot) {
  return reinterpret_cast<RowSums<T>*>(args.partials + args.layout.slots() * kPolicySums)[slot];
}

// What a level of whole rows sums first; `own` is the sum where the row is one piece.
template <class T>
WARPUP_HD RowRatio ratio_of_row(const PolicyLossArgs<T>& args, int64_t b, RowSums<double> own) {
  if (!args.layout.one_piece(b)) {
    own = {0, 0};
    for (int64_t s = args.layout.first_slot(b); s < args.layout.first_slot(b + 1); ++s) {
      own.sum += row_sums_of(args, s).sum, own.tokens += row_sums_of(args, s).tokens;
    }
  }
  if (args.level == PolicyLevel::gamma && args.weights && args.weights.step == 0) {
    own.sum += gamma_term(double(*args.weights.row(args.layout, b)));
  }
  return row_ratio(args.level, own.sum, own.tokens, args.params);
}

template <class T>
WARPUP_HD void write_row_ratio(const PolicyLossArgs<T>& args, int64_t b, const RowRatio& ratio) {
  T* state = args.row_state + b * kPolicyState;
  state[kRatio] = T(ratio.positive), state[kRatioNegative] = T(ratio.negative), state[kSlope] = T(ratio.slope);
}

// The sums over row b; `loss` is already divided by the row's tokens where each sequence counts once.
template <class T>
WARPUP_HD PolicyTotals row_totals(const PolicyLossArgs<T>& args, int64_t b) {
  PolicySums<double> row{};
  for (int64_t s = args.layout.first_slot(b); s < args.layout.first_slot(b + 1); ++s) {
    row = add(row, cast<double>(sums_of(args, s)));
  }
  T* state = args.row_state + b * kPolicyState;
  if (args.layout.tokens(b) <= 0) write_row_ratio(args, b, {1, 1, 1});  // no piece of it did
  state[kWeight] = T(row.tokens);                                       // kept for write_row_weight
  if (spreads(args.level)) state[kSlope] = row.tokens > 0 ? T(row.slope / row.tokens) : T(0);
  if (args.per_sequence && row.tokens > 0) row.loss /= row.tokens;
  return {row, row.tokens > 0 ? 1.0 : 0.0};
}

template <class T>
WARPUP_HD double denominator_of(const PolicyLossArgs<T>& args, const PolicyTotals& totals) {
  switch (args.denominator) {
    case Denominator::tokens:
      return totals.sums.tokens;
    case Denominator::sequences:
      return totals.sequences;
    case Denominator::elements:
      return static_cast<double>(args.layout.batch) * static_cast<double>(args.layout.length);
    case Denominator::given:
      break;
  }
  return args.denominator_tensor ? static_cast<double>(*args.denominator_tensor) : args.denominator_scalar;
}

template <class T>
WARPUP_HD void write_row_weight(const PolicyLossArgs<T>& args, int64_t b, double denominator) {
  T& weight = args.row_state[b * kPolicyState + kWeight];
  const double tokens = weight;
  const bool counts = tokens > 0 && denominator != 0;
  weight = counts ? static_cast<T>(1 / (args.per_sequence ? denominator * tokens : denominator)) : T(0);
}

template <class T>
WARPUP_HD void write_results(const PolicyLossArgs<T>& args, const PolicyTotals& totals, double denominator) {
  const PolicySums<double>& s = totals.sums;
  const double per_token = s.tokens > 0 ? 1 / s.tokens : 0;
  *args.loss = s.tokens > 0 && denominator != 0 ? static_cast<T>(s.loss / denominator) : T(0);
  const double ratio_max = s.ratio == s.ratio ? s.ratio_max : s.ratio;  // a comparison leaves NaN out, a sum does not
  const double metrics[kPolicyMetrics] = {
      s.tokens,  s.clipped_low * per_token, s.clipped_high * per_token, s.dual * per_token,   s.ratio * per_token,
      ratio_max, s.approx_kl * per_token,   s.ref_kl * per_token,       s.entropy * per_token};
  for (int i = 0; i < kPolicyMetrics; ++i) args.metrics[i] = static_cast<T>(metrics[i]);
}

// Calls body.template operator()<formula>() for the runtime value.
template <class Body>
void dispatch_formula(PolicyFormula formula, const Body& body) {
  switch (formula) {
    case PolicyFormula::clip:
      return body.template operator()<PolicyFormula::clip>();
    case PolicyFormula::weighted:
      return body.template operator()<PolicyFormula::weighted>();
    case PolicyFormula::sapo:
      return body.template operator()<PolicyFormula::sapo>();
    case PolicyFormula::geometric:
      return body.template operator()<PolicyFormula::geometric>();
    case PolicyFormula::tv:
      return body.template operator()<PolicyFormula::tv>();
    case PolicyFormula::kl:
      return body.template operator()<PolicyFormula::kl>();
    case PolicyFormula::tv_both:
      return body.template operator()<PolicyFormula::tv_both>();
  }
}

}  // namespace warpup
