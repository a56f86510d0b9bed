// Entries of margin_bounds and margin_cross_entropy: check every argument, choose dtype and device, call the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// bounds [B, K - 1] and, where given, loss [B] and share [B, K - 1] are written; see interval/margin_bounds.h.
void margin_bounds(const View& center, const View& radius, const View& weight, const OptionalView& bias,
                   const View& labels, const View& bounds, const OptionalView& loss, const OptionalView& share);

// Gradients of the shapes of center, radius, weight and [K] are written.
void margin_bounds_backward(const View& center, const View& radius, const View& weight, const View& labels,
                            const OptionalView& share, const OptionalView& grad_bounds, const OptionalView& grad_loss,
                            const View& grad_center, const View& grad_radius, const View& grad_weight,
                            const View& grad_bias);

}  // namespace warpup
