// torch ops of policy_loss: allocate the results, call the entry.
#include "bind/logprob_policy.h"
#include "bind/torch.h"

namespace warpup {
namespace {

using PolicyResult = std::tuple<Tensor, Tensor, Tensor>;

PolicyResult policy_loss_op(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages, const Tensor& mask,
                            const OptionalTensor& ref_logp, const OptionalTensor& denominator_tensor, int64_t kind,
                            double clip_low, double clip_high, double kl_k1, double kl_k2, double kl_k3,
                            bool per_sequence, int64_t denominator, double denominator_value) {
  const View lp = view(logp);
  const int64_t batch = lp.dims == 2 ? lp.sizes[0] : 0, length = lp.dims == 2 ? lp.sizes[1] : 0;
  Tensor loss = empty({}, lp.dtype, logp), metrics = empty({kPolicyMetrics}, lp.dtype, logp);
  Tensor row_weight = empty({batch}, lp.dtype, logp);
  const Tensor partials = empty({batch * policy_pieces(length), kPolicySums}, lp.dtype, logp);
  const PolicyOptions options{kind,         clip_low,    clip_high,        kl_k1, kl_k2, kl_k3,
                              per_sequence, denominator, denominator_value};
  policy_loss(lp, view(old_logp), view(advantages), view(mask), view(ref_logp), view(denominator_tensor), options,
              view(loss), view(metrics), view(row_weight), view(partials));
  return {loss, metrics, row_weight};
}

Tensor policy_loss_backward_op(const Tensor& logp, const Tensor& old_logp, const Tensor& advantages, const Tensor& mask,
                               const OptionalTensor& ref_logp, int64_t kind, double clip_low, double clip_high,
                               double kl_k1, double kl_k2, double kl_k3, const Tensor& row_weight,
                               const Tensor& grad_loss) {
  const View lp = view(logp);
  Tensor grad_logp = empty(sizes_of(logp), lp.dtype, logp);
  const PolicyOptions options{kind, clip_low, clip_high, kl_k1, kl_k2, kl_k3, false, 0, 0.0};
  policy_loss_backward(lp, view(old_logp), view(advantages), view(mask), view(ref_logp), options, view(row_weight),
                       view(grad_loss), view(grad_logp));
  return grad_logp;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("policy_loss", TORCH_BOX(&policy_loss_op));
  m.impl("policy_loss_backward", TORCH_BOX(&policy_loss_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "policy_loss(Tensor logp, Tensor old_logp, Tensor advantages, Tensor mask, Tensor? ref_logp, "
      "Tensor? denominator_tensor, int kind, float clip_low, float clip_high, float kl_k1, float kl_k2, float kl_k3, "
      "bool per_sequence, int denominator, float denominator_value) -> (Tensor loss, Tensor metrics, Tensor "
      "row_weight)");
  m.def(
      "policy_loss_backward(Tensor logp, Tensor old_logp, Tensor advantages, Tensor mask, Tensor? ref_logp, int kind, "
      "float clip_low, float clip_high, float kl_k1, float kl_k2, float kl_k3, Tensor row_weight, Tensor grad_loss) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
