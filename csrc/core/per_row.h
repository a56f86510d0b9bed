// Arguments that hold a value, or several, for each row, as kernels take them: targets, masks, temperatures, gradients.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct PerRow {
  const T* data = nullptr;  // null: not given
  Rows rows;                // strides may be 0, as those of an expanded gradient are
  WARPUP_HD const T& operator[](int64_t row) const { return data[rows.offset(row)]; }
  WARPUP_HD explicit operator bool() const { return data != nullptr; }
};

// `count` values for each row.
template <class T>
struct PerRowList {
  const T* data = nullptr;  // null: not given
  Rows rows;
  int64_t count = 1, stride = 1;  // stride: from one to the next, 0 in an expanded gradient
  WARPUP_HD const T& at(int64_t row, int64_t k) const { return data[rows.offset(row) + k * stride]; }
  WARPUP_HD explicit operator bool() const { return data != nullptr; }
};

// A value for each row, or one number for all of them.
struct PerRowOrScalar {
  PerRow<float> each;
  double scalar = 0;  // where `each` is not given
  WARPUP_HD double operator[](int64_t row) const { return each ? each[row] : scalar; }
};

}  // namespace warpup
