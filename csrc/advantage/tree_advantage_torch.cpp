// torch op of tree_advantage: allocates the results, calls the entry.
#include "advantage/tree_advantage_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor tree_advantage_op(const Tensor& rewards, const Tensor& children, const Tensor& begin, const Tensor& end) {
  const View r = view(rewards);
  Tensor values = empty(sizes_of(rewards), r.dtype, rewards);
  const Tensor settled = empty(sizes_of(rewards), DType::u8, rewards);
  tree_advantage(r, view(children), view(begin), view(end), view(values), view(settled));
  return values;
}

void implement(torch::stable::detail::StableLibrary& m) { m.impl("tree_advantage", boxed<tree_advantage_op>); }

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("tree_advantage(Tensor rewards, Tensor children, Tensor begin, Tensor end) -> (Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
