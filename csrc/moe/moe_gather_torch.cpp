// torch ops of moe_gather and moe_combine, each with its backward: allocate the results, call the entry. A forward
// takes all of a plan that its backward needs.
#include "moe/moe_gather_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor moe_gather_op(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  const View v = view(x), rows = view(permutation);
  Argument("moe_gather", "x", v).dims(2);
  Argument("moe_gather", "permutation", rows).dims(1);
  Tensor out = empty({rows.sizes[0], v.sizes[1]}, v.dtype, x);
  moe_gather(v, rows, view(inverse), {}, {}, view(out), {});
  return out;
}

// The sum of each token's rows.
Tensor moe_gather_backward_op(const Tensor& permutation, const Tensor& inverse, const Tensor& grad_out) {
  const View g = view(grad_out), copies = view(inverse);
  Argument("moe_gather_backward", "grad_out", g).dims(2);
  Argument("moe_gather_backward", "grad_out", g).shape({permutation.numel(), g.sizes[1]});
  Argument("moe_gather_backward", "inverse", copies).dims(2);
  Tensor grad_x = empty({copies.sizes[0], g.sizes[1]}, g.dtype, grad_out);
  moe_combine(g, {}, copies, view(grad_x));
  return grad_x;
}

Tensor moe_combine_op(const Tensor& y, const OptionalTensor& weights, const Tensor& permutation,
                      const Tensor& inverse) {
  const View v = view(y), copies = view(inverse);
  Argument("moe_combine", "y", v).dims(2);
  Argument("moe_combine", "inverse", copies).dims(2);
  if (v.sizes[0] != permutation.numel()) {
    fail("moe_combine: y must be (", permutation.numel(), ", H), the plan's rows, got ", shape_of(v));
  }
  Tensor out = empty({copies.sizes[0], v.sizes[1]}, v.dtype, y);
  moe_combine(v, view(weights), copies, view(out));
  return out;
}

std::tuple<Tensor, Tensor> moe_combine_backward_op(const Tensor& y, const OptionalTensor& weights,
                                                   const Tensor& permutation, const Tensor& inverse,
                                                   const Tensor& grad_out) {
  Tensor grad_y = empty(sizes_of(y), view(y).dtype, y);
  Tensor grad_weights = empty(sizes_of(inverse), accumulator_of(y), y);
  moe_gather(view(grad_out), view(permutation), view(inverse), view(weights), view(y), view(grad_y),
             view(grad_weights));
  return results(grad_y, grad_weights);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("moe_gather", boxed<moe_gather_op>);
  m.impl("moe_gather_backward", boxed<moe_gather_backward_op>);
  m.impl("moe_combine", boxed<moe_combine_op>);
  m.impl("moe_combine_backward", boxed<moe_combine_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("moe_gather(Tensor x, Tensor permutation, Tensor inverse) -> (Tensor out)");
  m.def("moe_gather_backward(Tensor permutation, Tensor inverse, Tensor grad_out) -> (Tensor grad_x)");
  m.def("moe_combine(Tensor y, Tensor? weights, Tensor permutation, Tensor inverse) -> (Tensor out)");
  m.def(
      "moe_combine_backward(Tensor y, Tensor? weights, Tensor permutation, Tensor inverse, Tensor grad_out) -> "
      "(Tensor grad_y, Tensor grad_weights)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
