#include "arrays/arrays.h"
#include "divergence/divergence_check.h"
#include "divergence/topk_divergence_check.h"

namespace warpup {

WARPUP_ARRAYS(m) {
  m.def(
      "divergence",
      "Divergence of each row's two distributions: value [...] and, for the backward, stats [..., 6] are written.",
      [](const View& student, const View& teacher, const OptionalView& temperature, const OptionalView& mask,
         const OptionalView& targets, const std::string& kind, double temperature_scalar, double beta, double scale,
         double softcap, double teacher_scale, double teacher_softcap, const View& value, const View& stats) {
        divergence(student, teacher,
                   {.kind = kind,
                    .temperature = {temperature, temperature_scalar},
                    .beta = beta,
                    .mask = mask,
                    .targets = targets,
                    .student_form = {scale, softcap},
                    .teacher_form = {teacher_scale, teacher_softcap}},
                   value, stats);
      },
      "student"_a, "teacher"_a, "temperature"_a = py::none(), "mask"_a = py::none(), "targets"_a = py::none(),
      py::kw_only(), "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5, "scale"_a = 1.0,
      "softcap"_a = 0.0, "teacher_scale"_a = 1.0, "teacher_softcap"_a = 0.0, "value"_w, "stats"_w);
  m.def(
      "divergence_backward",
      "Its gradient to the student's logits: grad_student, which may be student itself, is written.",
      [](const View& student, const View& teacher, const OptionalView& temperature, const OptionalView& mask,
         const OptionalView& targets, const std::string& kind, double temperature_scalar, double beta, double scale,
         double softcap, double teacher_scale, double teacher_softcap, const View& stats, const View& grad_value,
         const View& grad_student) {
        divergence_backward(student, teacher,
                            {.kind = kind,
                             .temperature = {temperature, temperature_scalar},
                             .beta = beta,
                             .mask = mask,
                             .targets = targets,
                             .student_form = {scale, softcap},
                             .teacher_form = {teacher_scale, teacher_softcap}},
                            stats, grad_value, grad_student);
      },
      "student"_a, "teacher"_a, "temperature"_a = py::none(), "mask"_a = py::none(), "targets"_a = py::none(),
      py::kw_only(), "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5, "scale"_a = 1.0,
      "softcap"_a = 0.0, "teacher_scale"_a = 1.0, "teacher_softcap"_a = 0.0, "stats"_a, "grad_value"_a,
      "grad_student"_w);
  m.def(
      "topk_divergence", "Divergence on a teacher's top K: value [...] and stats [..., 6] are written.",
      [](const View& student, const View& ids, const View& logp, const OptionalView& temperature,
         const OptionalView& mask, const std::string& kind, double temperature_scalar, double beta, bool tail,
         double scale, double softcap, const View& value, const View& stats) {
        topk_divergence(student, {ids, logp},
                        {.kind = kind,
                         .temperature = {temperature, temperature_scalar},
                         .beta = beta,
                         .tail = tail,
                         .mask = mask,
                         .form = {scale, softcap}},
                        value, stats);
      },
      "student"_a, "ids"_a, "logp"_a, "temperature"_a = py::none(), "mask"_a = py::none(), py::kw_only(),
      "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5, "tail"_a = false, "scale"_a = 1.0,
      "softcap"_a = 0.0, "value"_w, "stats"_w);
  m.def(
      "topk_divergence_backward", "Its gradient to the student's logits: grad_student is written.",
      [](const View& student, const View& ids, const View& logp, const OptionalView& temperature,
         const OptionalView& mask, const std::string& kind, double temperature_scalar, double beta, bool tail,
         double scale, double softcap, const View& stats, const View& grad_value, const View& grad_student) {
        topk_divergence_backward(student, {ids, logp},
                                 {.kind = kind,
                                  .temperature = {temperature, temperature_scalar},
                                  .beta = beta,
                                  .tail = tail,
                                  .mask = mask,
                                  .form = {scale, softcap}},
                                 stats, grad_value, grad_student);
      },
      "student"_a, "ids"_a, "logp"_a, "temperature"_a = py::none(), "mask"_a = py::none(), py::kw_only(),
      "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5, "tail"_a = false, "scale"_a = 1.0,
      "softcap"_a = 0.0, "stats"_a, "grad_value"_a, "grad_student"_w);
}

}  // namespace warpup
