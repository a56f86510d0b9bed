// torch ops of token_logprob: allocate the results, call the entry.
#include "bind/logprob.h"
#include "bind/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor, Tensor> token_logprob_op(const Tensor& logits, const Tensor& targets,
                                                    const OptionalTensor& temperature, double temperature_scalar,
                                                    int64_t ignore_index, bool entropy) {
  const DType acc = accumulator_of(logits);
  Tensor logp = empty(sizes_of(logits, 1), acc, logits);
  Tensor h = entropy ? empty(sizes_of(logits, 1), acc, logits) : empty({0}, acc, logits);
  Tensor stats = empty(sizes_of(logits, 1, {2}), acc, logits);
  token_logprob(view(logits), view(targets), view(temperature), temperature_scalar, ignore_index, view(logp),
                entropy ? OptionalView(view(h)) : std::nullopt, view(stats));
  return {logp, h, stats};
}

Tensor token_logprob_backward_op(const Tensor& logits, const Tensor& targets, const OptionalTensor& temperature,
                                 double temperature_scalar, int64_t ignore_index, const Tensor& stats,
                                 const OptionalTensor& entropy, const OptionalTensor& grad_logp,
                                 const OptionalTensor& grad_entropy) {
  const View z = view(logits);
  Tensor grad_logits = empty(sizes_of(logits), z.dtype, logits);
  token_logprob_backward(z, view(targets), view(temperature), temperature_scalar, ignore_index, view(stats),
                         view(entropy), view(grad_logp), view(grad_entropy), view(grad_logits));
  return grad_logits;
}

void token_logprob_backward_inplace_op(Tensor logits, const Tensor& targets, const OptionalTensor& temperature,
                                       double temperature_scalar, int64_t ignore_index, const Tensor& stats,
                                       const OptionalTensor& entropy, const OptionalTensor& grad_logp,
                                       const OptionalTensor& grad_entropy) {
  const View z = view(logits);
  token_logprob_backward(z, view(targets), view(temperature), temperature_scalar, ignore_index, view(stats),
                         view(entropy), view(grad_logp), view(grad_entropy), z);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("token_logprob", TORCH_BOX(&token_logprob_op));
  m.impl("token_logprob_backward", TORCH_BOX(&token_logprob_backward_op));
  m.impl("token_logprob_backward_", TORCH_BOX(&token_logprob_backward_inplace_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "token_logprob(Tensor logits, Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, "
      "bool entropy) -> (Tensor logp, Tensor entropy, Tensor stats)");
  m.def(
      "token_logprob_backward(Tensor logits, Tensor targets, Tensor? temperature, float temperature_scalar, "
      "int ignore_index, Tensor stats, Tensor? entropy, Tensor? grad_logp, Tensor? grad_entropy) -> Tensor");
  m.def(
      "token_logprob_backward_(Tensor(a!) logits, Tensor targets, Tensor? temperature, float temperature_scalar, "
      "int ignore_index, Tensor stats, Tensor? entropy, Tensor? grad_logp, Tensor? grad_entropy) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
