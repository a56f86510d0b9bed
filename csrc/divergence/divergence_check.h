// Entries of divergence and topk_divergence: check every argument, choose dtype and device, call the kernel.
#pragma once

#include <string_view>

#include "core/view.h"

namespace warpup {

// value [...] and stats [..., 6] are written; see logprob/divergence.h.
void divergence(const View& student, const View& teacher, const OptionalView& temperature, const OptionalView& mask,
                const OptionalView& targets, std::string_view kind, double temperature_scalar, double beta,
                const View& value, const View& stats);

// grad_student (the shape of student; may be student itself) is written.
void divergence_backward(const View& student, const View& teacher, const OptionalView& temperature,
                         const OptionalView& mask, const OptionalView& targets, std::string_view kind,
                         double temperature_scalar, double beta, const View& stats, const View& grad_value,
                         const View& grad_student);

// value [...] and stats [..., 3] are written.
void topk_divergence(const View& student, const View& ids, const View& logp, const OptionalView& temperature,
                     const OptionalView& mask, double temperature_scalar, const View& value, const View& stats);

void topk_divergence_backward(const View& student, const View& ids, const View& logp, const OptionalView& temperature,
                              const OptionalView& mask, double temperature_scalar, const View& stats,
                              const View& grad_value, const View& grad_student);

}  // namespace warpup
