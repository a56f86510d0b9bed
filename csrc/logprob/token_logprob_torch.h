// What the torch ops of token_logprob and linear_logprob have in common.
#pragma once

#include "logprob/token_logprob.h"
#include "logprob/token_logprob_check.h"
#include "torch/torch.h"

namespace warpup {

// The arguments that all of them share: in the schema of a backward and of a forward, as parameters, and as what the
// entries take.
#define WARPUP_SAMPLED_SCHEMA                                                                            \
  "Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, Tensor? token_set, " \
  "Tensor? delta, float delta_scalar, Tensor? kept_mask, float scale, float softcap, "
#define WARPUP_SAMPLED_DEFAULTS                                                                                   \
  "Tensor targets, Tensor? temperature=None, float temperature_scalar=1.0, int ignore_index=-100, "               \
  "Tensor? token_set=None, Tensor? delta=None, float delta_scalar=0.0, Tensor? kept_mask=None, float scale=1.0, " \
  "float softcap=0.0, "
#define WARPUP_SAMPLED_PARAMETERS                                                                            \
  const Tensor &targets, const OptionalTensor &temperature, double temperature_scalar, int64_t ignore_index, \
      const OptionalTensor &token_set, const OptionalTensor &delta, double delta_scalar,                     \
      const OptionalTensor &kept_mask, double scale, double softcap
#define WARPUP_SAMPLED                                                                                              \
  SampledTokens {                                                                                                   \
    .targets = view(targets), .ignore_index = ignore_index, .temperature = {view(temperature), temperature_scalar}, \
    .token_set = view(token_set), .delta = {view(delta), delta_scalar}, .kept_mask = view(kept_mask),               \
    .form = {scale, softcap}                                                                                        \
  }

// What a forward is asked for, and what it returns: None for what it was not asked for.
#define WARPUP_LOGPROB_FLAGS "bool with_entropy=False, bool with_lse=False, bool with_sum_p2=False"
#define WARPUP_LOGPROB_RESULTS "(Tensor logp, Tensor? entropy, Tensor? lse, Tensor? sum_p2, Tensor stats)"
using LogprobResults = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, Tensor>;

// Of targets and of rows as `x` has before its last dimension.
inline LogprobResults empty_results(const Tensor& x, const Tensor& targets, bool with_entropy, bool with_lse,
                                    bool with_sum_p2) {
  const DType acc = accumulator_of(x);
  const auto output = [&](bool wanted) {
    return wanted ? OptionalTensor(empty(sizes_of(x, 1), acc, x)) : std::nullopt;
  };
  return {empty(sizes_of(targets), acc, x), output(with_entropy), output(with_lse), output(with_sum_p2),
          empty(sizes_of(x, 1, {kLogprobStats}), acc, x)};
}

inline LogprobOutputs outputs_of(const LogprobResults& results, const OptionalView& state = {}) {
  const auto& [logp, entropy, lse, sum_p2, stats] = results;
  return {.logp = view(logp),
          .stats = view(stats),
          .entropy = view(entropy),
          .lse = view(lse),
          .sum_p2 = view(sum_p2),
          .state = state};
}

}  // namespace warpup
