// Entries of interval_activation: check every argument, choose dtype and device, call the kernel.
#pragma once

#include <string_view>

#include "core/view.h"

namespace warpup {

// kind: a function's name, see interval/interval_activation.h; out_clean is written if clean is given.
void interval_activation(const View& center, const View& radius, const OptionalView& clean, std::string_view kind,
                         double a, double b, const View& out_center, const View& out_radius,
                         const OptionalView& out_clean);

void interval_activation_backward(const View& center, const View& radius, const OptionalView& clean,
                                  std::string_view kind, double a, double b, const View& grad_out_center,
                                  const View& grad_out_radius, const OptionalView& grad_out_clean,
                                  const View& grad_center, const View& grad_radius, const OptionalView& grad_clean);

}  // namespace warpup
