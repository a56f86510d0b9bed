// A box of one element: every number within `radius` of `center`. Kernels of the family take and give boxes in this
// form; [center - radius, center + radius] are its ends.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct Box {
  T center, radius;
};

template <class Acc>
WARPUP_HD Acc magnitude(Acc x) {
  return x < 0 ? -x : x;
}

}  // namespace warpup
