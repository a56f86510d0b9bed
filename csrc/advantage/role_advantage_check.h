// Entry of role_advantage: checks every argument, chooses dtype and device, calls the kernel.
#pragma once

#include "core/view.h"

namespace warpup {

// advantages (rows,) and new_state (roles,) are written; see advantage/role_advantage.h.
void role_advantage(const View& rewards, const View& roles, const View& state, double decay, const View& advantages,
                    const View& new_state);

}  // namespace warpup
