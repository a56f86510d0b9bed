// torch ops of divergence and topk_divergence: allocate the results, call the entry.
#include "divergence/divergence.h"
#include "divergence/divergence_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

std::tuple<Tensor, Tensor> divergence_op(const Tensor& student, const Tensor& teacher,
                                         const OptionalTensor& temperature, const OptionalTensor& mask,
                                         const OptionalTensor& targets, std::string kind, double temperature_scalar,
                                         double beta) {
  const DType acc = accumulator_of(student);
  Tensor value = empty(sizes_of(student, 1), acc, student);
  Tensor stats = empty(sizes_of(student, 1, {kDivergenceStats}), acc, student);
  divergence(view(student), view(teacher), view(temperature), view(mask), view(targets), kind, temperature_scalar, beta,
             view(value), view(stats));
  return {value, stats};
}

Tensor divergence_backward_op(const Tensor& student, const Tensor& teacher, const OptionalTensor& temperature,
                              const OptionalTensor& mask, const OptionalTensor& targets, std::string kind,
                              double temperature_scalar, double beta, const Tensor& stats, const Tensor& grad_value) {
  const View z = view(student);
  Tensor grad = empty(sizes_of(student), z.dtype, student);
  divergence_backward(z, view(teacher), view(temperature), view(mask), view(targets), kind, temperature_scalar, beta,
                      view(stats), view(grad_value), view(grad));
  return grad;
}

void divergence_backward_inplace_op(Tensor student, const Tensor& teacher, const OptionalTensor& temperature,
                                    const OptionalTensor& mask, const OptionalTensor& targets, std::string kind,
                                    double temperature_scalar, double beta, const Tensor& stats,
                                    const Tensor& grad_value) {
  const View z = view(student);
  divergence_backward(z, view(teacher), view(temperature), view(mask), view(targets), kind, temperature_scalar, beta,
                      view(stats), view(grad_value), z);
}

std::tuple<Tensor, Tensor> topk_divergence_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                              const OptionalTensor& temperature, const OptionalTensor& mask,
                                              double temperature_scalar) {
  const DType acc = accumulator_of(student);
  Tensor value = empty(sizes_of(student, 1), acc, student);
  Tensor stats = empty(sizes_of(student, 1, {kTopkStats}), acc, student);
  topk_divergence(view(student), view(ids), view(logp), view(temperature), view(mask), temperature_scalar, view(value),
                  view(stats));
  return {value, stats};
}

Tensor topk_divergence_backward_op(const Tensor& student, const Tensor& ids, const Tensor& logp,
                                   const OptionalTensor& temperature, const OptionalTensor& mask,
                                   double temperature_scalar, const Tensor& stats, const Tensor& grad_value) {
  const View z = view(student);
  Tensor grad = empty(sizes_of(student), z.dtype, student);
  topk_divergence_backward(z, view(ids), view(logp), view(temperature), view(mask), temperature_scalar, view(stats),
                           view(grad_value), view(grad));
  return grad;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("divergence", TORCH_BOX(&divergence_op));
  m.impl("divergence_backward", TORCH_BOX(&divergence_backward_op));
  m.impl("divergence_backward_", TORCH_BOX(&divergence_backward_inplace_op));
  m.impl("topk_divergence", TORCH_BOX(&topk_divergence_op));
  m.impl("topk_divergence_backward", TORCH_BOX(&topk_divergence_backward_op));
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "divergence(Tensor student, Tensor teacher, Tensor? temperature, Tensor? mask, Tensor? targets, str kind, "
      "float temperature_scalar, float beta) -> (Tensor value, Tensor stats)");
  m.def(
      "divergence_backward(Tensor student, Tensor teacher, Tensor? temperature, Tensor? mask, Tensor? targets, "
      "str kind, float temperature_scalar, float beta, Tensor stats, Tensor grad_value) -> (Tensor grad_student)");
  m.def(
      "divergence_backward_(Tensor(a!) student, Tensor teacher, Tensor? temperature, Tensor? mask, Tensor? targets, "
      "str kind, float temperature_scalar, float beta, Tensor stats, Tensor grad_value) -> ()");
  m.def(
      "topk_divergence(Tensor student, Tensor ids, Tensor logp, Tensor? temperature, Tensor? mask, "
      "float temperature_scalar) -> (Tensor value, Tensor stats)");
  m.def(
      "topk_divergence_backward(Tensor student, Tensor ids, Tensor logp, Tensor? temperature, Tensor? mask, "
      "float temperature_scalar, Tensor stats, Tensor grad_value) -> (Tensor grad_student)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
