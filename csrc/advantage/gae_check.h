// Entry of gae and reward_to_go: checks every argument, chooses dtype and device, calls the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// advantages and, with values, returns [rows, length] are written; see advantage/gae.h.
void gae(const View& rewards, const OptionalView& values, const View& mask, const OptionalView& bootstrap, double gamma,
         double decay, bool cut, const View& advantages, const OptionalView& returns);

}  // namespace warpup
