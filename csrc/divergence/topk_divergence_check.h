// Entries of topk_divergence: check every argument, choose dtype and device, call the kernel. Contract:
// topk_divergence.h.
#pragma once

#include "core/per_row_check.h"

namespace warpup {

struct TopkTeacher {
  View ids, logp;  // int64 and accumulator's type, [..., K]
};

// value [...] and stats [..., 3] are written.
void topk_divergence(const View& student, const TopkTeacher& teacher, const PerRowOrScalarView& temperature,
                     const OptionalView& mask, const View& value, const View& stats);

// grad_student (the shape of student) is written.
void topk_divergence_backward(const View& student, const TopkTeacher& teacher, const PerRowOrScalarView& temperature,
                              const OptionalView& mask, const View& stats, const View& grad_value,
                              const View& grad_student);

}  // namespace warpup
