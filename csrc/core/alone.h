// A loop object called as a function of its own, as WARPUP_LOOP makes it of a plain function.
//
//   struct Scale { template <class Acc> void operator()(Acc* x, int64_t n) const { ... } };
//   run_alone(Scale{}, x, n);
#pragma once

#include "core/types.h"

namespace warpup {

template <class Loop, class... Arguments>
WARPUP_LOOP void run_alone(Loop loop, Arguments... arguments) {
  loop(arguments...);
}

}  // namespace warpup
