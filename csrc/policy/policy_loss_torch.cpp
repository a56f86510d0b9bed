// torch ops of policy_loss: allocate the results, call the entry.
#include "policy/policy_loss.h"
#include "policy/policy_loss_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The lists of policy_loss_check.h as a schema, as parameters of a function, and by name into their structs.
#define WARPUP_SCHEMA(type, name) #type " " #name ", "
#define WARPUP_TENSOR_SCHEMA(name) WARPUP_SCHEMA(Tensor, name)
#define WARPUP_OPTIONAL_SCHEMA(name) WARPUP_SCHEMA(Tensor?, name)
#define WARPUP_TEXT_SCHEMA(name, value) WARPUP_SCHEMA(str, name)
#define WARPUP_NUMBER_SCHEMA(name, value) WARPUP_SCHEMA(float, name)
#define WARPUP_FLAG_SCHEMA(name, value) WARPUP_SCHEMA(bool, name)
#define WARPUP_POLICY_SCHEMA                                         \
  WARPUP_POLICY_INPUTS(WARPUP_TENSOR_SCHEMA, WARPUP_OPTIONAL_SCHEMA) \
  WARPUP_POLICY_OPTIONS(WARPUP_TEXT_SCHEMA, WARPUP_NUMBER_SCHEMA, WARPUP_FLAG_SCHEMA)

#define WARPUP_TENSOR(name) const Tensor &name,
#define WARPUP_OPTIONAL(name) const OptionalTensor &name,
#define WARPUP_TEXT(name, value) std::string name,
#define WARPUP_NUMBER(name, value) double name,
#define WARPUP_FLAG(name, value) bool name,
#define WARPUP_POLICY_PARAMETERS                       \
  WARPUP_POLICY_INPUTS(WARPUP_TENSOR, WARPUP_OPTIONAL) \
  WARPUP_POLICY_OPTIONS(WARPUP_TEXT, WARPUP_NUMBER, WARPUP_FLAG)

#define WARPUP_GIVE_VIEW(name) .name = view(name),
#define WARPUP_GIVE(name, value) .name = name,
#define WARPUP_GIVEN_INPUTS \
  PolicyInputs { WARPUP_POLICY_INPUTS(WARPUP_GIVE_VIEW, WARPUP_GIVE_VIEW) }
#define WARPUP_GIVEN_OPTIONS \
  PolicyOptions { WARPUP_POLICY_OPTIONS(WARPUP_GIVE, WARPUP_GIVE, WARPUP_GIVE) }

Four policy_loss_op(WARPUP_POLICY_PARAMETERS const OptionalTensor& denominator, bool with_losses) {
  const PolicyInputs inputs = WARPUP_GIVEN_INPUTS;
  const View& lp = inputs.logp;
  const OptionalView& offsets = inputs.cu_seqlens;
  const int64_t rows = offsets ? std::max<int64_t>(0, offsets->numel() - 1) : lp.dims > 0 ? lp.sizes[0] : 0;
  Tensor loss = empty({}, lp.dtype, logp), metrics = empty({kPolicyMetrics}, lp.dtype, logp);
  Tensor row_state = empty({rows, kPolicyState}, lp.dtype, logp);
  const Tensor partials = empty({policy_slots(lp, offsets), kPolicyScratch}, lp.dtype, logp);
  Tensor losses = empty(with_losses ? sizes_of(logp) : Sizes{0}, lp.dtype, logp);
  policy_loss(inputs, WARPUP_GIVEN_OPTIONS, view(denominator), view(loss), view(metrics), view(row_state),
              view(partials), with_losses ? OptionalView(view(losses)) : std::nullopt);
  return results(loss, metrics, row_state, losses);
}

// The gradients of an input that is not there have no elements.
Three policy_loss_backward_op(WARPUP_POLICY_PARAMETERS const Tensor& row_state, const Tensor& grad_loss) {
  const PolicyInputs inputs = WARPUP_GIVEN_INPUTS;
  const auto like_logp = [&](bool given) { return empty(given ? sizes_of(logp) : Sizes{0}, inputs.logp.dtype, logp); };
  Tensor grad_logp = like_logp(true), grad_ref_kl = like_logp(bool(ref_kl)), grad_entropy = like_logp(bool(entropy));
  policy_loss_backward(inputs, WARPUP_GIVEN_OPTIONS, view(row_state), view(grad_loss), view(grad_logp),
                       ref_kl ? OptionalView(view(grad_ref_kl)) : std::nullopt,
                       entropy ? OptionalView(view(grad_entropy)) : std::nullopt);
  return results(grad_logp, grad_ref_kl, grad_entropy);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("policy_loss", boxed<policy_loss_op>);
  m.impl("policy_loss_backward", boxed<policy_loss_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("policy_loss(" WARPUP_POLICY_SCHEMA
        "Tensor? denominator, bool with_losses) -> (Tensor loss, Tensor metrics, Tensor row_state, Tensor losses)");
  m.def("policy_loss_backward(" WARPUP_POLICY_SCHEMA
        "Tensor row_state, Tensor grad_loss) -> (Tensor grad_logp, Tensor grad_ref_kl, Tensor grad_entropy)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
