// torch ops of new_op: allocate the result, call the entry. The names of the arguments tell _autograd.py what the
// backward needs: grad_out is the gradient of the result `out`, grad_x that of the argument `x`.
#include "new_family/new_op_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor new_op_op(const Tensor& x, double scale) {
  Tensor out = empty(sizes_of(x), view(x).dtype, x);
  new_op(view(x), scale, view(out));
  return out;
}

Tensor new_op_backward_op(const Tensor& grad_out, const Tensor& x, double scale) {
  (void)x;  // this op is linear; another one needs its input
  return new_op_op(grad_out, scale);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("new_op", boxed<new_op_op>);
  m.impl("new_op_backward", boxed<new_op_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("new_op(Tensor x, float scale) -> (Tensor out)");
  m.def("new_op_backward(Tensor grad_out, Tensor x, float scale) -> (Tensor grad_x)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
