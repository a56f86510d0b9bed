// torch ops of topk_divergence: allocate the results, call the entry.
#include "divergence/topk_divergence.h"
#include "divergence/topk_divergence_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

TopkOptions options_of(const OptionalTensor& temperature, const OptionalTensor& mask, std::string_view kind,
                       double temperature_scalar, double beta, bool tail, double scale, double softcap) {
  return {.kind = kind,
          .temperature = {view(temperature), temperature_scalar},
          .beta = beta,
          .tail = tail,
          .mask = view(mask),
          .form = {scale, softcap}};
}

std::tuple<Tensor, Tensor> topk_divergence_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                              const OptionalTensor& temperature, const OptionalTensor& mask,
                                              std::string kind, double temperature_scalar, double beta, bool tail,
                                              double scale, double softcap) {
  const DType acc = accumulator_of(student);
  Tensor value = empty(sizes_of(student, 1), acc, student);
  Tensor stats = empty(sizes_of(student, 1, {kTopkStats}), acc, student);
  topk_divergence(view(student), {view(ids), view(logp)},
                  options_of(temperature, mask, kind, temperature_scalar, beta, tail, scale, softcap), view(value),
                  view(stats));
  return results(value, stats);
}

Tensor topk_divergence_backward_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                   const OptionalTensor& temperature, const OptionalTensor& mask, std::string kind,
                                   double temperature_scalar, double beta, bool tail, double scale, double softcap,
                                   const Tensor& stats, const Tensor& grad_value) {
  const View z = view(student);
  Tensor grad = empty(sizes_of(student), z.dtype, student);
  topk_divergence_backward(z, {view(ids), view(logp)},
                           options_of(temperature, mask, kind, temperature_scalar, beta, tail, scale, softcap),
                           view(stats), view(grad_value), view(grad));
  return grad;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("topk_divergence", boxed<topk_divergence_op>);
  m.impl("topk_divergence_backward", boxed<topk_divergence_backward_op>);
}

#define TOPK_ARGUMENTS                                                                                               \
  "Tensor student, Tensor ids, Tensor logp, Tensor? temperature, Tensor? mask, str kind, float temperature_scalar, " \
  "float beta, bool tail, float scale, float softcap"

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("topk_divergence(" TOPK_ARGUMENTS ") -> (Tensor value, Tensor stats)");
  m.def("topk_divergence_backward(" TOPK_ARGUMENTS ", Tensor stats, Tensor grad_value) -> (Tensor grad_student)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
