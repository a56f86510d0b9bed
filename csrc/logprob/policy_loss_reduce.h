// From the sums of pieces to the loss: shared by both twins, all in double, always in the order of the rows.
#pragma once

#include "logprob/policy_loss.h"

namespace warpup {

struct PolicyTotals {
  double loss, tokens, clipped_low, clipped_high, ratio, ratio_max, approx_kl, ref_kl;
  double sequences;  // with at least one token
};

WARPUP_HD PolicyTotals add(const PolicyTotals& a, const PolicyTotals& b) {
  return {a.loss + b.loss,
          a.tokens + b.tokens,
          a.clipped_low + b.clipped_low,
          a.clipped_high + b.clipped_high,
          a.ratio + b.ratio,
          a.ratio_max > b.ratio_max ? a.ratio_max : b.ratio_max,
          a.approx_kl + b.approx_kl,
          a.ref_kl + b.ref_kl,
          a.sequences + b.sequences};
}

// The sums over row b; `loss` is already divided by the row's tokens where each sequence counts once.
template <class T>
WARPUP_HD PolicyTotals row_totals(const PolicyLossArgs<T>& args, int64_t b) {
  const int64_t pieces = (args.length + kPolicyPiece - 1) / kPolicyPiece;
  PolicyTotals row{};
  for (int64_t p = b * pieces; p < (b + 1) * pieces; ++p) {
    const auto& s = reinterpret_cast<const PolicySums<T>*>(args.partials)[p];
    row = add(row, {double(s.loss), double(s.tokens), double(s.clipped_low), double(s.clipped_high), double(s.ratio),
                    double(s.ratio_max), double(s.approx_kl), double(s.ref_kl), 0.0});
  }
  row.sequences = row.tokens > 0 ? 1 : 0;
  args.row_weight[b] = static_cast<T>(row.tokens);  // kept for write_row_weight
  if (args.per_sequence && row.tokens > 0) row.loss /= row.tokens;
  return row;
}

template <class T>
WARPUP_HD double denominator_of(const PolicyLossArgs<T>& args, const PolicyTotals& totals) {
  switch (args.denominator) {
    case Denominator::tokens:
      return totals.tokens;
    case Denominator::sequences:
      return totals.sequences;
    case Denominator::elements:
      return static_cast<double>(args.batch) * static_cast<double>(args.length);
    case Denominator::given:
      break;
  }
  return args.denominator_data ? static_cast<double>(*args.denominator_data) : args.denominator_value;
}

template <class T>
WARPUP_HD void write_row_weight(const PolicyLossArgs<T>& args, int64_t b, double denominator) {
  const double tokens = args.row_weight[b];
  const bool counts = tokens > 0 && denominator != 0;
  args.row_weight[b] = counts ? static_cast<T>(1 / (args.per_sequence ? denominator * tokens : denominator)) : T(0);
}

template <class T>
WARPUP_HD void write_results(const PolicyLossArgs<T>& args, const PolicyTotals& totals, double denominator) {
  const double per_token = totals.tokens > 0 ? 1 / totals.tokens : 0;
  *args.loss = totals.tokens > 0 && denominator != 0 ? static_cast<T>(totals.loss / denominator) : T(0);
  const double metrics[kPolicyMetrics] = {
      totals.tokens,    totals.clipped_low * per_token, totals.clipped_high * per_token, totals.ratio * per_token,
      totals.ratio_max, totals.approx_kl * per_token,   totals.ref_kl * per_token};
  for (int i = 0; i < kPolicyMetrics; ++i) args.metrics[i] = static_cast<T>(metrics[i]);
}

}  // namespace warpup
