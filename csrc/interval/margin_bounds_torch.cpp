// torch ops of margin_bounds and margin_cross_entropy: allocate the results, call the entry.
#include "interval/margin_bounds_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor, Tensor> margin_bounds_op(const Tensor& center, const Tensor& radius, const Tensor& weight,
                                                    const OptionalTensor& bias, const Tensor& labels, bool with_loss) {
  const DType acc = accumulator_of(center);
  const View w = view(weight);
  const int64_t batch = labels.numel(), others = std::max<int64_t>(w.sizes[0] - 1, 0);
  const auto optional = [&](const Tensor& t) { return with_loss ? OptionalView(view(t)) : std::nullopt; };
  Tensor bounds = empty({batch, others}, acc, center);
  Tensor losses = empty({with_loss ? batch : 0}, acc, center),
         share = empty({with_loss ? batch : 0, others}, acc, center);
  margin_bounds(view(center), view(radius), w, view(bias), view(labels), view(bounds), optional(losses),
                optional(share));
  return results(bounds, losses, share);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> margin_bounds_backward_op(const Tensor& center, const Tensor& radius,
                                                                     const Tensor& weight, const Tensor& labels,
                                                                     const OptionalTensor& share,
                                                                     const OptionalTensor& grad_bounds,
                                                                     const OptionalTensor& grad_loss) {
  const View c = view(center);
  Tensor grad_center = empty(sizes_of(center), c.dtype, center), grad_radius = empty(sizes_of(center), c.dtype, center);
  Tensor grad_weight = empty(sizes_of(weight), c.dtype, center),
         grad_bias = empty(sizes_of(weight, 1), c.dtype, center);
  margin_bounds_backward(c, view(radius), view(weight), view(labels), view(share), view(grad_bounds), view(grad_loss),
                         view(grad_center), view(grad_radius), view(grad_weight), view(grad_bias));
  return results(grad_center, grad_radius, grad_weight, grad_bias);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("margin_bounds", boxed<margin_bounds_op>);
  m.impl("margin_bounds_backward", boxed<margin_bounds_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "margin_bounds(Tensor center, Tensor radius, Tensor weight, Tensor? bias, Tensor labels, bool with_loss) -> "
      "(Tensor bounds, Tensor loss, Tensor share)");
  m.def(
      "margin_bounds_backward(Tensor center, Tensor radius, Tensor weight, Tensor labels, Tensor? share, "
      "Tensor? grad_bounds, Tensor? grad_loss) -> "
      "(Tensor grad_center, Tensor grad_radius, Tensor grad_weight, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
