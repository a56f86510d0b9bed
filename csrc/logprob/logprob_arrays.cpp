#include "arrays/arrays.h"
#include "logprob/token_logprob_check.h"

namespace warpup {

WARPUP_ARRAYS(m) {
  m.def(
      "token_logprob",
      "Log-probability of a token a row, or of several: logp (the shape of targets, [...] or [..., K]) and, for the\n"
      "backward, stats [..., 2] are written; entropy, lse\n"
      "and sum_p2 where they are given. Under a sampler: a temperature, delta added to the logits of token_set,\n"
      "kept_mask. Of logits that a model scales or caps (softcap, 0: none) its raw ones. Logits that are the columns "
      "of a larger vocabulary from vocab_begin on need state [..., 4 + K].",
      [](const View& logits, const View& targets, const OptionalView& temperature, double temperature_scalar,
         int64_t ignore_index, const OptionalView& token_set, const OptionalView& delta, double delta_scalar,
         const OptionalView& kept_mask, double scale, double softcap, int64_t vocab_begin, int64_t vocab_total,
         const OptionalView& state, const View& logp, const OptionalView& entropy, const OptionalView& lse,
         const OptionalView& sum_p2, const View& stats) {
        token_logprob(logits,
                      {.targets = targets,
                       .ignore_index = ignore_index,
                       .temperature = {temperature, temperature_scalar},
                       .token_set = token_set,
                       .delta = {delta, delta_scalar},
                       .kept_mask = kept_mask,
                       .form = {scale, softcap}},
                      {.begin = vocab_begin, .total = vocab_total},
                      {.logp = logp, .stats = stats, .entropy = entropy, .lse = lse, .sum_p2 = sum_p2, .state = state});
      },
      "logits"_a, "targets"_a, "temperature"_a = py::none(), py::kw_only(), "temperature_scalar"_a = 1.0,
      "ignore_index"_a = -100, "token_set"_a = py::none(), "delta"_a = py::none(), "delta_scalar"_a = 0.0,
      "kept_mask"_a = py::none(), "scale"_a = 1.0, "softcap"_a = 0.0, "vocab_begin"_a = 0, "vocab_total"_a = -1,
      "state"_w = py::none(), "logp"_w, "entropy"_w = py::none(), "lse"_w = py::none(), "sum_p2"_w = py::none(),
      "stats"_w);
  m.def(
      "token_logprob_backward",
      "Its gradient to the logits: grad_logits, which may be logits itself, is written. Takes what the forward wrote\n"
      "(entropy and sum_p2 where their gradients are given) and a gradient a row of each result that has one.",
      [](const View& logits, const View& targets, const OptionalView& temperature, double temperature_scalar,
         int64_t ignore_index, const OptionalView& token_set, const OptionalView& delta, double delta_scalar,
         const OptionalView& kept_mask, double scale, double softcap, int64_t vocab_begin, int64_t vocab_total,
         const View& stats, const OptionalView& entropy, const OptionalView& sum_p2, const OptionalView& grad_logp,
         const OptionalView& grad_entropy, const OptionalView& grad_lse, const OptionalView& grad_sum_p2,
         const View& grad_logits) {
        token_logprob_backward(logits,
                               {.targets = targets,
                                .ignore_index = ignore_index,
                                .temperature = {temperature, temperature_scalar},
                                .token_set = token_set,
                                .delta = {delta, delta_scalar},
                                .kept_mask = kept_mask,
                                .form = {scale, softcap}},
                               {.begin = vocab_begin, .total = vocab_total},
                               {.stats = stats,
                                .entropy = entropy,
                                .sum_p2 = sum_p2,
                                .grad_logp = grad_logp,
                                .grad_entropy = grad_entropy,
                                .grad_lse = grad_lse,
                                .grad_sum_p2 = grad_sum_p2},
                               grad_logits);
      },
      "logits"_a, "targets"_a, "temperature"_a = py::none(), py::kw_only(), "temperature_scalar"_a = 1.0,
      "ignore_index"_a = -100, "token_set"_a = py::none(), "delta"_a = py::none(), "delta_scalar"_a = 0.0,
      "kept_mask"_a = py::none(), "scale"_a = 1.0, "softcap"_a = 0.0, "vocab_begin"_a = 0, "vocab_total"_a = -1,
      "stats"_a, "entropy"_a = py::none(), "sum_p2"_a = py::none(), "grad_logp"_a = py::none(),
      "grad_entropy"_a = py::none(), "grad_lse"_a = py::none(), "grad_sum_p2"_a = py::none(), "grad_logits"_w);
}

}  // namespace warpup
