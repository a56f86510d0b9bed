// Entries of topk_divergence: check every argument, choose dtype and device, call the kernel. Contract:
// topk_divergence.h.
#pragma once

#include <string_view>

#include "core/logit_form_check.h"
#include "core/per_row_check.h"

namespace warpup {

struct TopkTeacher {
  View ids, logp;  // int64 and accumulator's type, [..., K]
};

struct TopkOptions {
  std::string_view kind = "forward";
  PerRowOrScalarView temperature{std::nullopt, 1.0};
  double beta = 0.5;  // the teacher's share, for kinds jsd and mixed
  bool tail = false;  // all that is not listed is one outcome more
  OptionalView mask;  // uint8, one a row; 0: the row counts for nothing
  LogitFormOptions form;
};

// value [...] and stats [..., 6] are written.
void topk_divergence(const View& student, const TopkTeacher& teacher, const TopkOptions& options, const View& value,
                     const View& stats);

// grad_student (the shape of student) is written.
void topk_divergence_backward(const View& student, const TopkTeacher& teacher, const TopkOptions& options,
                              const View& stats, const View& grad_value, const View& grad_student);

}  // namespace warpup
