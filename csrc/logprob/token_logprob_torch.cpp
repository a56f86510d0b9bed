// torch ops of token_logprob: allocate the results, call the entry.
#include "logprob/token_logprob_torch.h"

namespace warpup {
namespace {

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

LogprobResults token_logprob_op(const Tensor& logits, WARPUP_SAMPLED_PARAMETERS, bool with_entropy, bool with_lse,
                                bool with_sum_p2) {
  LogprobResults results = empty_results(logits, targets, with_entropy, with_lse, with_sum_p2);
  token_logprob(view(logits), WARPUP_SAMPLED, {}, outputs_of(results));
  return results;
}

void token_logprob_slice_op(const Tensor& logits, WARPUP_SAMPLED_PARAMETERS, int64_t vocab_begin, int64_t vocab_total,
                            Tensor state, Tensor logp, OptionalTensor entropy, OptionalTensor lse,
                            OptionalTensor sum_p2, Tensor stats) {
  token_logprob(view(logits), WARPUP_SAMPLED, {.begin = vocab_begin, .total = vocab_total},
                {.logp = view(logp),
                 .stats = view(stats),
                 .entropy = view(entropy),
                 .lse = view(lse),
                 .sum_p2 = view(sum_p2),
                 .state = view(state)});
}

Tensor token_logprob_backward_op(const Tensor& logits, WARPUP_SAMPLED_PARAMETERS, const Tensor& stats,
                                 const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                                 const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                                 const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2) {
  const View z = view(logits);
  Tensor grad_logits = empty(sizes_of(logits), z.dtype, logits);
  token_logprob_backward(z, WARPUP_SAMPLED, {},
                         gradients(stats, entropy, sum_p2, grad_logp, grad_entropy, grad_lse, grad_sum_p2),
                         view(grad_logits));
  return grad_logits;
}

void token_logprob_backward_inplace_op(Tensor logits, WARPUP_SAMPLED_PARAMETERS, const Tensor& stats,
                                       const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                                       const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                                       const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2,
                                       int64_t vocab_begin, int64_t vocab_total) {
  const View z = view(logits);
  token_logprob_backward(z, WARPUP_SAMPLED, {.begin = vocab_begin, .total = vocab_total},
                         gradients(stats, entropy, sum_p2, grad_logp, grad_entropy, grad_lse, grad_sum_p2), z);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("token_logprob", boxed<token_logprob_op>);
  m.impl("token_logprob_slice_", boxed<token_logprob_slice_op>);
  m.impl("token_logprob_backward", boxed<token_logprob_backward_op>);
  m.impl("token_logprob_backward_", boxed<token_logprob_backward_inplace_op>);
}

#define GRADIENTS                                                                                              \
  "Tensor stats, Tensor? entropy, Tensor? sum_p2, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, " \
  "Tensor? grad_sum_p2"

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("token_logprob(Tensor logits, " WARPUP_SAMPLED_DEFAULTS WARPUP_LOGPROB_FLAGS ") -> " WARPUP_LOGPROB_RESULTS);
  m.def("token_logprob_slice_(Tensor logits, " WARPUP_SAMPLED_SCHEMA
        "int vocab_begin, int vocab_total, Tensor(a!) state, Tensor(b!) logp, Tensor(c!)? entropy, Tensor(d!)? lse, "
        "Tensor(e!)? sum_p2, Tensor(f!) stats) -> ()");
  m.def("token_logprob_backward(Tensor logits, " WARPUP_SAMPLED_SCHEMA GRADIENTS ") -> (Tensor grad_logits)");
  m.def("token_logprob_backward_(Tensor(a!) logits, " WARPUP_SAMPLED_SCHEMA GRADIENTS
        ", int vocab_begin=0, int vocab_total=-1) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
