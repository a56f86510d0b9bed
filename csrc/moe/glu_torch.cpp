// torch ops of glu: allocate the results, call the entry.
#include "moe/glu_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor glu_op(const Tensor& h, const OptionalTensor& weights, const OptionalTensor& permutation,
              std::string activation) {
  const View v = view(h);
  Tensor a = empty(sizes_of(h, 1, {v.sizes[1] / 2}), v.dtype, h);
  glu(v, view(weights), view(permutation), activation, view(a));
  return a;
}

// What is not asked for has no elements.
std::tuple<Tensor, Tensor, Tensor> glu_backward_op(const Tensor& h, const OptionalTensor& weights,
                                                   const OptionalTensor& permutation, std::string activation,
                                                   const Tensor& grad_a, bool with_a) {
  const View v = view(h);
  const DType acc = accumulator_of(h);
  Tensor grad_h = empty(sizes_of(h), v.dtype, h);
  Tensor grad_weights = weights ? empty(sizes_of(*weights), acc, h) : empty({0}, acc, h);
  TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(grad_weights.get()));  // copies that no row holds
  Tensor a = with_a ? empty(sizes_of(grad_a), v.dtype, h) : empty({0}, v.dtype, h);
  glu_backward(v, view(weights), view(permutation), activation, view(grad_a), view(grad_h),
               weights ? OptionalView(view(grad_weights)) : std::nullopt,
               with_a ? OptionalView(view(a)) : std::nullopt);
  return results(grad_h, grad_weights, a);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("glu", boxed<glu_op>);
  m.impl("glu_backward", boxed<glu_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("glu(Tensor h, Tensor? weights, Tensor? permutation, str activation) -> (Tensor a)");
  m.def(
      "glu_backward(Tensor h, Tensor? weights, Tensor? permutation, str activation, Tensor grad_a, "
      "bool with_a=False) -> (Tensor grad_h, Tensor grad_weights, Tensor a)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
