// Entry of new_op: checks every argument, chooses dtype and device, calls the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// out, of x's shape and dtype, is written.
void new_op(const View& x, double scale, const View& out);

}  // namespace warpup
