// Entry of sample_step: checks every argument, chooses dtype and device, calls the kernel.
#pragma once

#include "core/logit_form_check.h"
#include "reflection/apply_schedule_check.h"

namespace warpup {

struct SampledViews {
  View token;                      // int64
  View logp_raw, logp, kept, p_r;  // float32 (float64 for float64)
  View delta, temperature;         // float32
  View least, most;                // float32 (float64 for float64)
};

// All of `out` [rows] is written; scratch [rows, vocab] is needed on a GPU only. See reflection/sample_step.h.
void sample_step(const View& logits, const OptionalView& tuned, const OptionalView& base, const TableViews& tables,
                 const View& sampling, const View& slots, const OptionalView& back, const OptionalView& seen,
                 const OptionalView& counts, const OptionalView& bias, int64_t stream, const LogitFormOptions& form,
                 const OptionalView& scratch, const SampledViews& out);

}  // namespace warpup
