// The entries of glu: check every argument, choose dtype and device, call the kernel. See glu.h.
#pragma once

#include <string_view>

#include "core/view.h"

namespace warpup {

// weights: one a copy, in the accumulator's type, given together with permutation: one a row of h. a is written.
void glu(const View& h, const OptionalView& weights, const OptionalView& permutation, std::string_view activation,
         const View& a);

// grad_h is written, and a and grad_weights (like weights) where they are given; entries of grad_weights of copies that
// no row holds are left as they are.
void glu_backward(const View& h, const OptionalView& weights, const OptionalView& permutation,
                  std::string_view activation, const View& grad_a, const View& grad_h, const OptionalView& grad_weights,
                  const OptionalView& a);

}  // namespace warpup
