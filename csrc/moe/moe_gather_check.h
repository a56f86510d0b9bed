// The entries of moe_gather and moe_combine: check every argument, choose dtype and device, call the kernel. See
// moe_gather.h.
#pragma once

#include "core/view.h"

namespace warpup {

// out (rows, H) is written; y (rows, H) and grad_weights (T, k) come together, in moe_combine's backward, and
// grad_weights, in float32 (float64), is written too.
void moe_gather(const View& x, const View& permutation, const View& inverse, const OptionalView& weights,
                const OptionalView& y, const View& out, const OptionalView& grad_weights);

// out (T, H) is written.
void moe_combine(const View& y, const OptionalView& weights, const View& inverse, const View& out);

}  // namespace warpup
