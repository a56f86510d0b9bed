// torch ops of divergence: allocate the results, call the entry.
#include "divergence/divergence.h"
#include "divergence/divergence_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

DivergenceOptions options_of(const OptionalTensor& temperature, const OptionalTensor& mask,
                             const OptionalTensor& targets, std::string_view kind, double temperature_scalar,
                             double beta, double scale, double softcap, double teacher_scale, double teacher_softcap) {
  return {.kind = kind,
          .temperature = {view(temperature), temperature_scalar},
          .beta = beta,
          .mask = view(mask),
          .targets = view(targets),
          .student_form = {scale, softcap},
          .teacher_form = {teacher_scale, teacher_softcap}};
}

std::tuple<Tensor, Tensor> divergence_op(const Tensor& student, const Tensor& teacher,
                                         const OptionalTensor& temperature, const OptionalTensor& mask,
                                         const OptionalTensor& targets, std::string kind, double temperature_scalar,
                                         double beta, double scale, double softcap, double teacher_scale,
                                         double teacher_softcap) {
  const DType acc = accumulator_of(student);
  Tensor value = empty(sizes_of(student, 1), acc, student);
  Tensor stats = empty(sizes_of(student, 1, {kDivergenceStats}), acc, student);
  divergence(view(student), view(teacher),
             options_of(temperature, mask, targets, kind, temperature_scalar, beta, scale, softcap, teacher_scale,
                        teacher_softcap),
             view(value), view(stats));
  return results(value, stats);
}

Tensor divergence_backward_op(const Tensor& student, const Tensor& teacher, const OptionalTensor& temperature,
                              const OptionalTensor& mask, const OptionalTensor& targets, std::string kind,
                              double temperature_scalar, double beta, double scale, double softcap,
                              double teacher_scale, double teacher_softcap, const Tensor& stats,
                              const Tensor& grad_value) {
  const View z = view(student);
  Tensor grad = empty(sizes_of(student), z.dtype, student);
  divergence_backward(z, view(teacher),
                      options_of(temperature, mask, targets, kind, temperature_scalar, beta, scale, softcap,
                                 teacher_scale, teacher_softcap),
                      view(stats), view(grad_value), view(grad));
  return grad;
}

void divergence_backward_inplace_op(Tensor student, const Tensor& teacher, const OptionalTensor& temperature,
                                    const OptionalTensor& mask, const OptionalTensor& targets, std::string kind,
                                    double temperature_scalar, double beta, double scale, double softcap,
                                    double teacher_scale, double teacher_softcap, const Tensor& stats,
                                    const Tensor& grad_value) {
  const View z = view(student);
  divergence_backward(z, view(teacher),
                      options_of(temperature, mask, targets, kind, temperature_scalar, beta, scale, softcap,
                                 teacher_scale, teacher_softcap),
                      view(stats), view(grad_value), z);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("divergence", boxed<divergence_op>);
  m.impl("divergence_backward", boxed<divergence_backward_op>);
  m.impl("divergence_backward_", boxed<divergence_backward_inplace_op>);
}

#define OPTIONS                                                                                                       \
  "Tensor? temperature, Tensor? mask, Tensor? targets, str kind, float temperature_scalar, float beta, float scale, " \
  "float softcap, float teacher_scale, float teacher_softcap"

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("divergence(Tensor student, Tensor teacher, " OPTIONS ") -> (Tensor value, Tensor stats)");
  m.def("divergence_backward(Tensor student, Tensor teacher, " OPTIONS
        ", Tensor stats, Tensor grad_value) -> (Tensor grad_student)");
  m.def("divergence_backward_(Tensor(a!) student, Tensor teacher, " OPTIONS ", Tensor stats, Tensor grad_value) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
