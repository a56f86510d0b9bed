// torch ops of interval_linear's kernels: allocate the results, call the entry. interval_linear itself is an op made in
// Python (python/warpup/interval/interval_linear.py) of these and the library's products.
#include "interval/interval_linear_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

void interval_linear_sign_op(Tensor gradient, const Tensor& weight, const OptionalTensor& base) {
  interval_linear_sign(view(gradient), view(weight), view(base));
}

std::tuple<Tensor, Tensor> interval_linear_exact_op(const Tensor& a_center, const Tensor& a_radius,
                                                    const Tensor& b_center, const Tensor& b_radius) {
  const View a = view(a_center), b = view(b_center);
  Tensor shift = empty({a.sizes[0], b.sizes[0]}, a.dtype, a_center), excess = empty(sizes_of(shift), a.dtype, a_center);
  interval_linear_exact(a, view(a_radius), b, view(b_radius), view(shift), view(excess));
  return results(shift, excess);
}

std::tuple<Tensor, Tensor> interval_linear_exact_backward_op(const Tensor& a_center, const Tensor& a_radius,
                                                             const Tensor& b_center, const Tensor& b_radius,
                                                             const Tensor& grad_shift, const Tensor& grad_excess,
                                                             bool transposed) {
  const View a = view(a_center);
  Tensor center = empty(sizes_of(a_center), a.dtype, a_center), radius = empty(sizes_of(a_center), a.dtype, a_center);
  interval_linear_exact_backward(a, view(a_radius), view(b_center), view(b_radius), view(grad_shift), view(grad_excess),
                                 transposed, view(center), view(radius));
  return results(center, radius);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("interval_linear_sign_", boxed<interval_linear_sign_op>);
  m.impl("interval_linear_exact", boxed<interval_linear_exact_op>);
  m.impl("interval_linear_exact_backward", boxed<interval_linear_exact_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("interval_linear_sign_(Tensor(a!) gradient, Tensor weight, Tensor? base) -> ()");
  m.def(
      "interval_linear_exact(Tensor a_center, Tensor a_radius, Tensor b_center, Tensor b_radius) -> (Tensor shift, "
      "Tensor excess)");
  m.def(
      "interval_linear_exact_backward(Tensor a_center, Tensor a_radius, Tensor b_center, Tensor b_radius, "
      "Tensor grad_shift, Tensor grad_excess, bool transposed) -> (Tensor center, Tensor radius)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
