// torch ops of policy_loss: allocate the results, call the entry.
#include "policy/policy_loss_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;

Three policy_loss_op(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages, const Tensor& mask,
                     const OptionalTensor& ref_logp, const OptionalTensor& weights, const OptionalTensor& penalty,
                     const OptionalTensor& ref_kl, const OptionalTensor& entropy, const OptionalTensor& cu_seqlens,
                     const OptionalTensor& denominator, std::vector<int64_t> choices, std::vector<double> numbers) {
  const View lp = view(logp);
  const OptionalView offsets = view(cu_seqlens);
  const int64_t rows = offsets ? std::max<int64_t>(0, offsets->numel() - 1) : lp.dims > 0 ? lp.sizes[0] : 0;
  Tensor loss = empty({}, lp.dtype, logp), metrics = empty({kPolicyMetrics}, lp.dtype, logp);
  Tensor row_state = empty({rows, kPolicyState}, lp.dtype, logp);
  const Tensor partials = empty({policy_slots(lp, offsets), kPolicyScratch}, lp.dtype, logp);
  policy_loss(lp, view(old_logp), view(advantages), view(mask), view(ref_logp), view(weights), view(penalty),
              view(ref_kl), view(entropy), offsets, view(denominator), {choices, numbers}, view(loss), view(metrics),
              view(row_state), view(partials));
  return {loss, metrics, row_state};
}

// The gradients of an input that is not there have no elements.
Three policy_loss_backward_op(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages, const Tensor& mask,
                              const OptionalTensor& ref_logp, const OptionalTensor& weights,
                              const OptionalTensor& penalty, const OptionalTensor& ref_kl,
                              const OptionalTensor& entropy, const OptionalTensor& cu_seqlens,
                              std::vector<int64_t> choices, std::vector<double> numbers, const Tensor& row_state,
                              const Tensor& grad_loss) {
  const View lp = view(logp);
  const auto like_logp = [&](bool given) {
    return empty(given ? sizes_of(logp) : std::vector<int64_t>{0}, lp.dtype, logp);
  };
  Tensor grad_logp = like_logp(true), grad_ref_kl = like_logp(bool(ref_kl)), grad_entropy = like_logp(bool(entropy));
  policy_loss_backward(lp, view(old_logp), view(advantages), view(mask), view(ref_logp), view(weights), view(penalty),
                       view(ref_kl), view(entropy), view(cu_seqlens), {choices, numbers}, view(row_state),
                       view(grad_loss), view(grad_logp), ref_kl ? OptionalView(view(grad_ref_kl)) : std::nullopt,
                       entropy ? OptionalView(view(grad_entropy)) : std::nullopt);
  return {grad_logp, grad_ref_kl, grad_entropy};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("policy_loss", TORCH_BOX(&policy_loss_op));
  m.impl("policy_loss_backward", TORCH_BOX(&policy_loss_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "policy_loss(Tensor logp, Tensor old_logp, Tensor advantages, Tensor mask, Tensor? ref_logp, Tensor? weights, "
      "Tensor? penalty, Tensor? ref_kl, Tensor? entropy, Tensor? cu_seqlens, Tensor? denominator, int[] choices, "
      "float[] numbers) -> (Tensor loss, Tensor metrics, Tensor row_state)");
  m.def(
      "policy_loss_backward(Tensor logp, Tensor old_logp, Tensor advantages, Tensor mask, Tensor? ref_logp, "
      "Tensor? weights, Tensor? penalty, Tensor? ref_kl, Tensor? entropy, Tensor? cu_seqlens, int[] choices, "
      "float[] numbers, Tensor row_state, Tensor grad_loss) "
      "-> (Tensor grad_logp, Tensor grad_ref_kl, Tensor grad_entropy)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
