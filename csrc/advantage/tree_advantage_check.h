// Entry of tree_advantage: checks every argument, chooses dtype and device, calls the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// values (nodes,) are written, settled (nodes,) is scratch; see advantage/tree_advantage.h.
void tree_advantage(const View& rewards, const View& children, const View& begin, const View& end, const View& values,
                    const View& settled);

}  // namespace warpup
