// Entries of interval_linear's kernels: check every argument, choose dtype and device, call the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// a [rows, width], b [columns, width]: shift and excess [rows, columns] are written; see interval/interval_linear.h.
void interval_linear_exact(const View& a_center, const View& a_radius, const View& b_center, const View& b_radius,
                           const View& shift, const View& excess);

// The gradient of a; that of b with the operands exchanged and `transposed` gradients.
void interval_linear_exact_backward(const View& a_center, const View& a_radius, const View& b_center,
                                    const View& b_radius, const View& grad_shift, const View& grad_excess,
                                    bool transposed, const View& out_center, const View& out_radius);

// gradient = base + sign(weight) gradient, in place; all in one layout without holes.
void interval_linear_sign(const View& gradient, const View& weight, const OptionalView& base);

}  // namespace warpup
