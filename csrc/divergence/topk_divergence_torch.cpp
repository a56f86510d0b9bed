// torch ops of topk_divergence: allocate the results, call the entry.
#include "divergence/topk_divergence.h"
#include "divergence/topk_divergence_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor> topk_divergence_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                              const OptionalTensor& temperature, const OptionalTensor& mask,
                                              double temperature_scalar) {
  const DType acc = accumulator_of(student);
  Tensor value = empty(sizes_of(student, 1), acc, student);
  Tensor stats = empty(sizes_of(student, 1, {kTopkStats}), acc, student);
  topk_divergence(view(student), {view(ids), view(logp)}, {view(temperature), temperature_scalar}, view(mask),
                  view(value), view(stats));
  return {value, stats};
}

Tensor topk_divergence_backward_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                   const OptionalTensor& temperature, const OptionalTensor& mask,
                                   double temperature_scalar, const Tensor& stats, const Tensor& grad_value) {
  const View z = view(student);
  Tensor grad = empty(sizes_of(student), z.dtype, student);
  topk_divergence_backward(z, {view(ids), view(logp)}, {view(temperature), temperature_scalar}, view(mask), view(stats),
                           view(grad_value), view(grad));
  return grad;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("topk_divergence", TORCH_BOX(&topk_divergence_op));
  m.impl("topk_divergence_backward", TORCH_BOX(&topk_divergence_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "topk_divergence(Tensor student, Tensor ids, Tensor logp, Tensor? temperature, Tensor? mask, "
      "float temperature_scalar) -> (Tensor value, Tensor stats)");
  m.def(
      "topk_divergence_backward(Tensor student, Tensor ids, Tensor logp, Tensor? temperature, Tensor? mask, "
      "float temperature_scalar, Tensor stats, Tensor grad_value) -> (Tensor grad_student)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
