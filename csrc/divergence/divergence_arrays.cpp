#include "arrays/arrays.h"
#include "divergence/divergence_check.h"

namespace warpup {

WARPUP_ARRAYS(m) {
  m.def("divergence",
        "Divergence of each row's two distributions: value [...] and, for the backward, stats [..., 6] are written.",
        &divergence, "student"_a, "teacher"_a, "temperature"_a = py::none(), "mask"_a = py::none(),
        "targets"_a = py::none(), py::kw_only(), "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5,
        "value"_a, "stats"_a);
  m.def("divergence_backward",
        "Its gradient to the student's logits: grad_student, which may be student itself, is written.",
        &divergence_backward, "student"_a, "teacher"_a, "temperature"_a = py::none(), "mask"_a = py::none(),
        "targets"_a = py::none(), py::kw_only(), "kind"_a = "forward", "temperature_scalar"_a = 1.0, "beta"_a = 0.5,
        "stats"_a, "grad_value"_a, "grad_student"_a);
  m.def("topk_divergence", "Forward KL on a teacher's top K: value [...] and stats [..., 3] are written.",
        &topk_divergence, "student"_a, "ids"_a, "logp"_a, "temperature"_a = py::none(), "mask"_a = py::none(),
        py::kw_only(), "temperature_scalar"_a = 1.0, "value"_a, "stats"_a);
  m.def("topk_divergence_backward", "Its gradient to the student's logits: grad_student is written.",
        &topk_divergence_backward, "student"_a, "ids"_a, "logp"_a, "temperature"_a = py::none(), "mask"_a = py::none(),
        py::kw_only(), "temperature_scalar"_a = 1.0, "stats"_a, "grad_value"_a, "grad_student"_a);
}

}  // namespace warpup
