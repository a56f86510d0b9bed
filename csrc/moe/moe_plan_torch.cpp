// torch op of moe_plan: allocates the results, calls the entry.
#include "moe/moe_plan.h"
#include "moe/moe_plan_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> moe_plan_op(const Tensor& indices, int64_t experts, int64_t block) {
  const View v = view(indices);
  Argument("moe_plan", "indices", v).dims(2);
  if (experts < 1) fail("moe_plan: num_experts must be at least 1, got ", experts);
  if (block < 1) fail("moe_plan: block must be at least 1, got ", block);
  const auto output = [&](const Sizes& sizes) { return empty(sizes, DType::i64, indices); };
  Tensor counts = output({experts}), offsets = output({experts + 1});
  Tensor permutation = output({moe_plan_rows(v.numel(), experts, block)}), inverse = output(sizes_of(indices));
  const Tensor chunks = output({MoePlanChunks::count(v.numel()), experts});
  moe_plan(v, block, view(counts), view(offsets), view(permutation), view(inverse), view(chunks));
  return results(counts, offsets, permutation, inverse);
}

void implement(torch::stable::detail::StableLibrary& m) { m.impl("moe_plan", boxed<moe_plan_op>); }

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "moe_plan(Tensor indices, int num_experts, int block) -> (Tensor counts, Tensor offsets, Tensor permutation, "
      "Tensor inverse)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
