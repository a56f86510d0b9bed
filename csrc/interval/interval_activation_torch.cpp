// torch ops of interval_activation: allocate the results, call the entry.
#include "interval/interval_activation_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using Triple = std::tuple<Tensor, Tensor, Tensor>;

Tensor like(const Tensor& tensor) { return empty(sizes_of(tensor), view(tensor).dtype, tensor); }

Triple interval_activation_op(const Tensor& center, const Tensor& radius, const OptionalTensor& clean, std::string kind,
                              double a, double b) {
  Tensor c = like(center), r = like(center), x = clean ? like(center) : empty({0}, view(center).dtype, center);
  interval_activation(view(center), view(radius), view(clean), kind, a, b, view(c), view(r),
                      clean ? OptionalView(view(x)) : std::nullopt);
  return results(c, r, x);
}

Triple interval_activation_backward_op(const Tensor& center, const Tensor& radius, const OptionalTensor& clean,
                                       std::string kind, double a, double b, const Tensor& grad_out_center,
                                       const Tensor& grad_out_radius, const OptionalTensor& grad_out_clean) {
  Tensor c = like(center), r = like(center), x = clean ? like(center) : empty({0}, view(center).dtype, center);
  interval_activation_backward(view(center), view(radius), view(clean), kind, a, b, view(grad_out_center),
                               view(grad_out_radius), view(grad_out_clean), view(c), view(r),
                               clean ? OptionalView(view(x)) : std::nullopt);
  return results(c, r, x);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("interval_activation", boxed<interval_activation_op>);
  m.impl("interval_activation_backward", boxed<interval_activation_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "interval_activation(Tensor center, Tensor radius, Tensor? clean, str kind, float a, float b) -> "
      "(Tensor out_center, Tensor out_radius, Tensor out_clean)");
  m.def(
      "interval_activation_backward(Tensor center, Tensor radius, Tensor? clean, str kind, float a, float b, "
      "Tensor grad_out_center, Tensor grad_out_radius, Tensor? grad_out_clean) -> "
      "(Tensor grad_center, Tensor grad_radius, Tensor grad_clean)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
