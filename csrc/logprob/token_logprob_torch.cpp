// torch ops of token_logprob: allocate the results, call the entry.
#include "logprob/token_logprob.h"
#include "logprob/token_logprob_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

SampledTokens sampled(const Tensor& targets, const OptionalTensor& temperature, double temperature_scalar,
                      int64_t ignore_index, const OptionalTensor& token_set, const OptionalTensor& delta,
                      double delta_scalar, const OptionalTensor& kept_mask, double scale, double softcap) {
  return {.targets = view(targets),
          .ignore_index = ignore_index,
          .temperature = {view(temperature), temperature_scalar},
          .token_set = view(token_set),
          .delta = {view(delta), delta_scalar},
          .kept_mask = view(kept_mask),
          .form = {scale, softcap}};
}

LogprobGradients gradients(const Tensor& stats, const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                           const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                           const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2) {
  return {.stats = view(stats),
          .entropy = view(entropy),
          .sum_p2 = view(sum_p2),
          .grad_logp = view(grad_logp),
          .grad_entropy = view(grad_entropy),
          .grad_lse = view(grad_lse),
          .grad_sum_p2 = view(grad_sum_p2)};
}

using LogprobResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

LogprobResult token_logprob_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                               double temperature_scalar, int64_t ignore_index, const OptionalTensor& token_set,
                               const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept_mask,
                               double scale, double softcap, bool with_entropy, bool with_lse, bool with_sum_p2) {
  const DType acc = accumulator_of(logits);
  const auto output = [&](bool wanted) {
    return empty(wanted ? sizes_of(logits, 1) : std::vector<int64_t>{0}, acc, logits);
  };
  const auto optional = [](bool wanted, const Tensor& t) { return wanted ? OptionalView(view(t)) : std::nullopt; };
  Tensor logp = empty(sizes_of(targets), acc, logits);
  Tensor entropy = output(with_entropy), lse = output(with_lse), sum_p2 = output(with_sum_p2);
  Tensor stats = empty(sizes_of(logits, 1, {kLogprobStats}), acc, logits);
  token_logprob(view(logits),
                sampled(targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
                        kept_mask, scale, softcap),
                {},
                {.logp = view(logp),
                 .stats = view(stats),
                 .entropy = optional(with_entropy, entropy),
                 .lse = optional(with_lse, lse),
                 .sum_p2 = optional(with_sum_p2, sum_p2),
                 .state = std::nullopt});
  return {logp, entropy, lse, sum_p2, stats};
}

void token_logprob_slice_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                            double temperature_scalar, int64_t ignore_index, const OptionalTensor& token_set,
                            const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept_mask,
                            double scale, double softcap, int64_t vocab_begin, int64_t vocab_total, Tensor state,
                            Tensor logp, OptionalTensor entropy, OptionalTensor lse, OptionalTensor sum_p2,
                            Tensor stats) {
  token_logprob(view(logits),
                sampled(targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
                        kept_mask, scale, softcap),
                {.begin = vocab_begin, .total = vocab_total},
                {.logp = view(logp),
                 .stats = view(stats),
                 .entropy = view(entropy),
                 .lse = view(lse),
                 .sum_p2 = view(sum_p2),
                 .state = view(state)});
}

Tensor token_logprob_backward_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                                 double temperature_scalar, int64_t ignore_index, const OptionalTensor& token_set,
                                 const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept_mask,
                                 double scale, double softcap, const Tensor& stats, const OptionalTensor& entropy,
                                 const OptionalTensor& sum_p2, const OptionalTensor& grad_logp,
                                 const OptionalTensor& grad_entropy, const OptionalTensor& grad_lse,
                                 const OptionalTensor& grad_sum_p2) {
  const View z = view(logits);
  Tensor grad_logits = empty(sizes_of(logits), z.dtype, logits);
  token_logprob_backward(z,
                         sampled(targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
                                 kept_mask, scale, softcap),
                         {}, gradients(stats, entropy, sum_p2, grad_logp, grad_entropy, grad_lse, grad_sum_p2),
                         view(grad_logits));
  return grad_logits;
}

void token_logprob_backward_inplace_op(Tensor logits, const Tensor& targets, const OptionalTensor& temperature,
                                       double temperature_scalar, int64_t ignore_index, const OptionalTensor& token_set,
                                       const OptionalTensor& delta, double delta_scalar,
                                       const OptionalTensor& kept_mask, double scale, double softcap,
                                       const Tensor& stats, const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                                       const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                                       const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2,
                                       int64_t vocab_begin, int64_t vocab_total) {
  const View z = view(logits);
  token_logprob_backward(z,
                         sampled(targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
                                 kept_mask, scale, softcap),
                         {.begin = vocab_begin, .total = vocab_total},
                         gradients(stats, entropy, sum_p2, grad_logp, grad_entropy, grad_lse, grad_sum_p2), z);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("token_logprob", TORCH_BOX(&token_logprob_op));
  m.impl("token_logprob_slice_", TORCH_BOX(&token_logprob_slice_op));
  m.impl("token_logprob_backward", TORCH_BOX(&token_logprob_backward_op));
  m.impl("token_logprob_backward_", TORCH_BOX(&token_logprob_backward_inplace_op));
}

// The arguments that all four share, as `sampled` and `gradients` take them.
#define SAMPLED_TOKENS                                                                                   \
  "Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, Tensor? token_set, " \
  "Tensor? delta, float delta_scalar, Tensor? kept_mask, float scale, float softcap, "
#define GRADIENTS                                                                                              \
  "Tensor stats, Tensor? entropy, Tensor? sum_p2, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, " \
  "Tensor? grad_sum_p2"

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("token_logprob(Tensor logits, " SAMPLED_TOKENS
        "bool with_entropy, bool with_lse, bool with_sum_p2) -> (Tensor logp, Tensor entropy, Tensor lse, "
        "Tensor sum_p2, Tensor stats)");
  m.def("token_logprob_slice_(Tensor logits, " SAMPLED_TOKENS
        "int vocab_begin, int vocab_total, Tensor(a!) state, Tensor(b!) logp, Tensor(c!)? entropy, Tensor(d!)? lse, "
        "Tensor(e!)? sum_p2, Tensor(f!) stats) -> ()");
  m.def("token_logprob_backward(Tensor logits, " SAMPLED_TOKENS GRADIENTS ") -> (Tensor grad_logits)");
  m.def("token_logprob_backward_(Tensor(a!) logits, " SAMPLED_TOKENS GRADIENTS
        ", int vocab_begin=0, int vocab_total=-1) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
