// torch ops of moe_plan, moe_gather and moe_combine: allocate the results, call the entry.
#include "moe/moe_gather_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using PlanResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

PlanResult moe_plan_op(const Tensor& indices, int64_t experts, int64_t block) {
  const View v = view(indices);
  Argument("moe_plan", "indices", v).dims(2);
  if (experts < 1) fail("moe_plan: num_experts must be at least 1, got ", experts);
  if (block < 1) fail("moe_plan: block must be at least 1, got ", block);
  const auto output = [&](const std::vector<int64_t>& sizes) { return empty(sizes, DType::i64, indices); };
  Tensor counts = output({experts}), offsets = output({experts + 1});
  Tensor permutation = output({moe_plan_rows(v.numel(), experts, block)}), inverse = output(sizes_of(indices));
  moe_plan(v, block, view(counts), view(offsets), view(permutation), view(inverse),
           view(output({MoePlanChunks::count(v.numel()), experts})));
  return {counts, offsets, permutation, inverse};
}

Tensor moe_gather_op(const Tensor& x, const Tensor& permutation, const Tensor& inverse) {
  const View v = view(x), rows = view(permutation);
  Argument("moe_gather", "x", v).dims(2);
  Argument("moe_gather", "permutation", rows).dims(1);
  Tensor out = empty({rows.sizes[0], v.sizes[1]}, v.dtype, x);
  moe_gather(v, rows, view(inverse), {}, {}, view(out), {});
  return out;
}

Tensor moe_combine_op(const Tensor& y, const OptionalTensor& weights, const Tensor& inverse) {
  const View v = view(y), copies = view(inverse);
  Argument("moe_combine", "y", v).dims(2);
  Argument("moe_combine", "inverse", copies).dims(2);
  Tensor out = empty({copies.sizes[0], v.sizes[1]}, v.dtype, y);
  moe_combine(v, view(weights), copies, view(out));
  return out;
}

std::tuple<Tensor, Tensor> moe_combine_backward_op(const Tensor& grad, const Tensor& y, const Tensor& weights,
                                                   const Tensor& permutation, const Tensor& inverse) {
  Tensor grad_y = empty(sizes_of(y), view(y).dtype, y);
  Tensor grad_weights = empty(sizes_of(inverse), accumulator_of(y), y);
  moe_gather(view(grad), view(permutation), view(inverse), view(weights), view(y), view(grad_y), view(grad_weights));
  return {grad_y, grad_weights};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("moe_plan", TORCH_BOX(&moe_plan_op));
  m.impl("moe_gather", TORCH_BOX(&moe_gather_op));
  m.impl("moe_combine", TORCH_BOX(&moe_combine_op));
  m.impl("moe_combine_backward", TORCH_BOX(&moe_combine_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "moe_plan(Tensor indices, int num_experts, int block) -> (Tensor counts, Tensor offsets, Tensor permutation, "
      "Tensor inverse)");
  m.def("moe_gather(Tensor x, Tensor permutation, Tensor inverse) -> Tensor");
  m.def("moe_combine(Tensor y, Tensor? weights, Tensor inverse) -> Tensor");
  m.def(
      "moe_combine_backward(Tensor grad, Tensor y, Tensor weights, Tensor permutation, Tensor inverse) -> "
      "(Tensor grad_y, Tensor grad_weights)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
