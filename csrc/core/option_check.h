// Numbers among the options. They arrive as double, whatever type a kernel computes in: 1e-50 would be 0 in float32 and
// 1e50 infinite there, and the result NaN. So they are checked as the numbers that the kernel will see.
#pragma once

#include <cmath>

#include "core/view.h"

namespace warpup {

template <class Acc>
constexpr const char* option_type() {
  return sizeof(Acc) == sizeof(float) ? "float32" : "float64";
}

template <class Acc>
void finite_option(const char* op, const char* name, double value) {
  if (!std::isfinite(static_cast<Acc>(value))) {
    fail(op, ": ", name, " must be a finite ", option_type<Acc>(), ", got ", value);
  }
}

// Of a number that is divided by, a temperature above all: its inverse and the square of that must be numbers too, with
// room for what is multiplied by them. `where` ends the message: " in row 3".
template <class Acc, class... Where>
void divisor_option(const char* op, const char* name, double value, const Where&... where) {
  if (!(value > 0)) fail(op, ": ", name, " must be above 0, got ", value, where...);
  const double least = sizeof(Acc) == sizeof(float) ? 0x1p-63 : 0x1p-511;
  if (value >= least && value <= 1 / least) return;
  fail(op, ": ", name, " must be in [", least, ", ", 1 / least, "] where ", option_type<Acc>(),
       " is divided by it, got ", value, where...);
}

}  // namespace warpup
