// torch ops of token_logprob: allocate the results, call the entry.
#include "logprob/token_logprob_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using LogprobResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

LogprobResult token_logprob_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                               double temperature_scalar, int64_t ignore_index, const OptionalTensor& boosted,
                               const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept,
                               bool entropy, bool lse, bool sum_p2) {
  const DType acc = accumulator_of(logits);
  const auto output = [&](bool wanted) {
    return wanted ? empty(sizes_of(logits, 1), acc, logits) : empty({0}, acc, logits);
  };
  const auto optional = [](bool wanted, const Tensor& t) { return wanted ? OptionalView(view(t)) : std::nullopt; };
  Tensor logp = output(true), h = output(entropy), log_sum = output(lse), p2 = output(sum_p2);
  Tensor stats = empty(sizes_of(logits, 1, {2}), acc, logits);
  token_logprob(
      view(logits), view(targets),
      {view(temperature), temperature_scalar, ignore_index, view(boosted), view(delta), delta_scalar, view(kept)},
      std::nullopt, view(logp), optional(entropy, h), optional(lse, log_sum), optional(sum_p2, p2), view(stats));
  return {logp, h, log_sum, p2, stats};
}

void token_logprob_slice_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                            double temperature_scalar, int64_t ignore_index, const OptionalTensor& boosted,
                            const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept,
                            int64_t vocab_begin, int64_t vocab_total, Tensor state, Tensor logp, OptionalTensor entropy,
                            OptionalTensor lse, OptionalTensor sum_p2, Tensor stats) {
  token_logprob(view(logits), view(targets),
                {view(temperature), temperature_scalar, ignore_index, view(boosted), view(delta), delta_scalar,
                 view(kept), vocab_begin, vocab_total},
                view(state), view(logp), view(entropy), view(lse), view(sum_p2), view(stats));
}

Tensor token_logprob_backward_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                                 double temperature_scalar, int64_t ignore_index, const OptionalTensor& boosted,
                                 const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept,
                                 const Tensor& stats, const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                                 const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                                 const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2) {
  const View z = view(logits);
  Tensor grad_logits = empty(sizes_of(logits), z.dtype, logits);
  token_logprob_backward(
      z, view(targets),
      {view(temperature), temperature_scalar, ignore_index, view(boosted), view(delta), delta_scalar, view(kept)},
      view(stats), view(entropy), view(sum_p2),
      {view(grad_logp), view(grad_entropy), view(grad_lse), view(grad_sum_p2)}, view(grad_logits));
  return grad_logits;
}

void token_logprob_backward_inplace_op(Tensor logits, const Tensor& targets, const OptionalTensor& temperature,
                                       double temperature_scalar, int64_t ignore_index, const OptionalTensor& boosted,
                                       const OptionalTensor& delta, double delta_scalar, const OptionalTensor& kept,
                                       const Tensor& stats, const OptionalTensor& entropy, const OptionalTensor& sum_p2,
                                       const OptionalTensor& grad_logp, const OptionalTensor& grad_entropy,
                                       const OptionalTensor& grad_lse, const OptionalTensor& grad_sum_p2,
                                       int64_t vocab_begin, int64_t vocab_total) {
  const View z = view(logits);
  token_logprob_backward(z, view(targets),
                         {view(temperature), temperature_scalar, ignore_index, view(boosted), view(delta), delta_scalar,
                          view(kept), vocab_begin, vocab_total},
                         view(stats), view(entropy), view(sum_p2),
                         {view(grad_logp), view(grad_entropy), view(grad_lse), view(grad_sum_p2)}, z);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("token_logprob", TORCH_BOX(&token_logprob_op));
  m.impl("token_logprob_slice_", TORCH_BOX(&token_logprob_slice_op));
  m.impl("token_logprob_backward", TORCH_BOX(&token_logprob_backward_op));
  m.impl("token_logprob_backward_", TORCH_BOX(&token_logprob_backward_inplace_op));
}

#define UNDER                                                                                          \
  "Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, Tensor? boosted, " \
  "Tensor? delta, float delta_scalar, Tensor? kept, "
#define GRADIENTS                                                                                              \
  "Tensor stats, Tensor? entropy, Tensor? sum_p2, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, " \
  "Tensor? grad_sum_p2"

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("token_logprob(Tensor logits, " UNDER
        "bool entropy, bool lse, bool sum_p2) -> (Tensor logp, Tensor entropy, Tensor lse, Tensor sum_p2, "
        "Tensor stats)");
  m.def("token_logprob_slice_(Tensor logits, " UNDER
        "int vocab_begin, int vocab_total, Tensor(a!) state, Tensor(b!) logp, Tensor(c!)? entropy, Tensor(d!)? lse, "
        "Tensor(e!)? sum_p2, Tensor(f!) stats) -> ()");
  m.def("token_logprob_backward(Tensor logits, " UNDER GRADIENTS ") -> Tensor");
  m.def("token_logprob_backward_(Tensor(a!) logits, " UNDER GRADIENTS ", int vocab_begin, int vocab_total) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
