// torch ops of interval_softmax: allocate the results, call the entry.
#include "interval/interval_softmax_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor like(const Tensor& tensor) { return empty(sizes_of(tensor), view(tensor).dtype, tensor); }

std::tuple<Tensor, Tensor> interval_softmax_op(const Tensor& center, const Tensor& radius) {
  Tensor c = like(center), r = like(center);
  interval_softmax(view(center), view(radius), view(c), view(r));
  return results(c, r);
}

std::tuple<Tensor, Tensor> interval_softmax_backward_op(const Tensor& center, const Tensor& radius,
                                                        const Tensor& grad_out_center, const Tensor& grad_out_radius) {
  Tensor c = like(center), r = like(center);
  interval_softmax_backward(view(center), view(radius), view(grad_out_center), view(grad_out_radius), view(c), view(r));
  return results(c, r);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("interval_softmax", boxed<interval_softmax_op>);
  m.impl("interval_softmax_backward", boxed<interval_softmax_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("interval_softmax(Tensor center, Tensor radius) -> (Tensor out_center, Tensor out_radius)");
  m.def(
      "interval_softmax_backward(Tensor center, Tensor radius, Tensor grad_out_center, Tensor grad_out_radius) -> "
      "(Tensor grad_center, Tensor grad_radius)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
