// torch op of role_advantage: allocates the results, calls the entry.
#include "advantage/role_advantage_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor> role_advantage_op(const Tensor& rewards, const Tensor& roles, const Tensor& state,
                                             double decay) {
  const View r = view(rewards);
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards), new_state = empty(sizes_of(state), r.dtype, rewards);
  role_advantage(r, view(roles), view(state), decay, view(advantages), view(new_state));
  return results(advantages, new_state);
}

void implement(torch::stable::detail::StableLibrary& m) { m.impl("role_advantage", boxed<role_advantage_op>); }

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "role_advantage(Tensor rewards, Tensor roles, Tensor state, float decay) "
      "-> (Tensor advantages, Tensor new_state)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
