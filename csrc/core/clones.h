// Loops compiled once for each instruction set (WARPUP_CLONES), but for float64, which tests and oracles take: there
// one compilation is enough, and a third of the build's time is saved.
//
//   struct Scale { template <class Acc> WARPUP_HD void operator()(Acc* x, int64_t n) const { ... } };
//   cloned<T>(Scale{}, x, n);
#pragma once

#include <type_traits>

#include "core/types.h"

namespace warpup {
namespace {  // each object file has clones of its own

template <class Loop, class... Arguments>
WARPUP_CLONES void call_clone(Loop loop, Arguments... arguments) {
  loop(arguments...);
}

template <class T, class Loop, class... Arguments>
void cloned(Loop loop, Arguments... arguments) {
  if constexpr (std::is_same_v<T, double>) {
    loop(arguments...);
  } else {
    call_clone(loop, arguments...);
  }
}

}  // namespace
}  // namespace warpup
