// Entries of masked_moments and masked_whiten: check every argument, choose dtype and device, call the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// moments (4,) float64 are written, partials (Moments::chunks, 5) float64 are scratch; see advantage/masked_whiten.h.
void masked_moments(const View& x, const OptionalView& mask, bool skip_nan, int64_t correction, const View& partials,
                    const View& moments);

// out (the shape of x; may be x itself) and moments are written, partials are scratch.
void masked_whiten(const View& x, const OptionalView& mask, bool shift_mean, int64_t correction, double eps,
                   const View& out, const View& partials, const View& moments);

// What a sum of n squared deviations is divided by is n - correction: 1 (Bessel) or 0.
int32_t check_correction(const char* op, int64_t correction);

}  // namespace warpup
