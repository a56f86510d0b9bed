// CPU kernels of the family work on blocks that stay in L1, with loops that know the accumulator's type only: 16-bit
// operands are widened before and rounded after. So a loop is compiled once for three dtypes.
#pragma once

#include <cstring>

#include "core/alone.h"
#include "core/widen.h"

namespace warpup {

// x[begin, begin + n) in the accumulator's type: where it is, or in `buffer`; zeros where x is null.
template <class T>
const acc_t<T>* in_block(const T* x, int64_t begin, int64_t n, acc_t<T>* buffer) {
  if (!x) {
    std::memset(buffer, 0, n * sizeof(acc_t<T>));
    return buffer;
  }
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return x + begin;
  } else {
    widen(x + begin, n, buffer);
    return buffer;
  }
}

// Where a loop writes the results for `to`: there, or to a buffer that `settle` then rounds.
template <class T>
acc_t<T>* out_block(T* to, acc_t<T>* buffer) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return to;
  } else {
    return buffer;
  }
}
template <class T>
void settle(const acc_t<T>* from, int64_t n, T* to) {
  if constexpr (!std::is_same_v<T, acc_t<T>>) narrow(from, n, to);
}

}  // namespace warpup
