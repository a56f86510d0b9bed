// torch op of gae and reward_to_go: allocates the results, calls the entry.
#include "advantage/gae_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor> gae_op(const Tensor& rewards, const OptionalTensor& values, const Tensor& mask,
                                  const OptionalTensor& bootstrap, double gamma, double decay, bool cut) {
  const View r = view(rewards);
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards);
  Tensor returns = values ? empty(sizes_of(rewards), r.dtype, rewards) : empty({0}, r.dtype, rewards);
  gae(r, view(values), view(mask), view(bootstrap), gamma, decay, cut, view(advantages),
      values ? OptionalView(view(returns)) : std::nullopt);
  return results(advantages, returns);
}

void implement(torch::stable::detail::StableLibrary& m) { m.impl("gae", boxed<gae_op>); }

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "gae(Tensor rewards, Tensor? values, Tensor mask, Tensor? bootstrap, float gamma, float decay, bool cut) "
      "-> (Tensor advantages, Tensor returns)");  // without values the returns have no elements
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
