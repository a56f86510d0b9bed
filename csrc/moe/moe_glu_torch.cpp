// torch ops of moe_glu and grouped_product: allocate the results, call the entry.
#include <algorithm>

#include "moe/grouped_product_check.h"
#include "moe/moe_glu_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor moe_glu_op(const Tensor& h, const OptionalTensor& weights, const OptionalTensor& permutation,
                  std::string activation) {
  const View v = view(h);
  Tensor a = empty(sizes_of(h, 1, {v.sizes[1] / 2}), v.dtype, h);
  moe_glu(v, view(weights), view(permutation), activation, view(a));
  return a;
}

std::tuple<Tensor, Tensor> moe_glu_backward_op(const Tensor& h, const OptionalTensor& weights,
                                               const OptionalTensor& permutation, const Tensor& grad_a,
                                               std::string activation, bool need_a, OptionalTensor grad_weights) {
  const View v = view(h), d = view(grad_a);
  Tensor grad_h = empty(sizes_of(h), v.dtype, h);
  Tensor a = need_a ? empty(sizes_of(grad_a), d.dtype, h) : empty({0}, d.dtype, h);
  moe_glu_backward(v, view(weights), view(permutation), d, activation, view(grad_h),
                   need_a ? OptionalView(view(a)) : std::nullopt, view(grad_weights));
  return {grad_h, a};
}

#ifndef WARPUP_HOST_CUDA  // has a CPU twin only
Tensor grouped_product_op(const Tensor& a, const Tensor& b, const Tensor& offsets, const OptionalTensor& a_rows,
                          const OptionalTensor& b_rows, bool turned) {
  const View v = view(a), w = view(b);
  const int64_t columns = w.dims > 1 ? w.sizes[turned ? 1 : w.dims - 1] : 0,
                groups = std::max<int64_t>(offsets.numel() - 1, 0);
  const int64_t width = v.dims > 1 ? v.sizes[1] : 0, rows = a_rows ? a_rows->numel() : v.sizes[0];
  Tensor out = w.dims == 2 ? empty({groups, width, columns}, v.dtype, a) : empty({rows, columns}, v.dtype, a);
  grouped_product(v, w, view(offsets), view(a_rows), view(b_rows), turned, view(out));
  return out;
}
#endif

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("moe_glu", TORCH_BOX(&moe_glu_op));
  m.impl("moe_glu_backward", TORCH_BOX(&moe_glu_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("moe_glu(Tensor h, Tensor? weights, Tensor? permutation, str activation) -> Tensor");
  m.def(
      "moe_glu_backward(Tensor h, Tensor? weights, Tensor? permutation, Tensor grad_a, str activation, bool need_a, "
      "Tensor(a!)? grad_weights) -> (Tensor grad_h, Tensor a)");
#ifndef WARPUP_HOST_CUDA
  m.def("grouped_product(Tensor a, Tensor b, Tensor offsets, Tensor? a_rows, Tensor? b_rows, bool turned) -> Tensor");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) {
  warpup::implement(m);
#ifndef WARPUP_HOST_CUDA
  m.impl("grouped_product", TORCH_BOX(&warpup::grouped_product_op));
#endif
}
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
