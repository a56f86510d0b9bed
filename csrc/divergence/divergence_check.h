// Entries of divergence: check every argument, choose dtype and device, call the kernel. Contract: divergence.h.
#pragma once

#include <string_view>

#include "core/logit_form_check.h"
#include "core/per_row_check.h"

namespace warpup {

struct DivergenceOptions {
  std::string_view kind = "forward";
  PerRowOrScalarView temperature{std::nullopt, 1.0};
  double beta = 0.5;     // the teacher's share of the mixture, for kind jsd
  OptionalView mask;     // uint8, one a row; 0: the row counts for nothing
  OptionalView targets;  // int64, one a row, for kind logit_swap
  LogitFormOptions student_form, teacher_form;
};

// value [...] and stats [..., 6] are written.
void divergence(const View& student, const View& teacher, const DivergenceOptions& options, const View& value,
                const View& stats);

// grad_student (the shape of student; may be student itself) is written.
void divergence_backward(const View& student, const View& teacher, const DivergenceOptions& options, const View& stats,
                         const View& grad_value, const View& grad_student);

}  // namespace warpup
