// Entries of interval_softmax, over the last dimension: check every argument, choose dtype and device, call the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

void interval_softmax(const View& center, const View& radius, const View& out_center, const View& out_radius);

void interval_softmax_backward(const View& center, const View& radius, const View& grad_out_center,
                               const View& grad_out_radius, const View& grad_center, const View& grad_radius);

}  // namespace warpup
