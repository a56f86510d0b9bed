// Logits as the CPU kernels' loops take them: in the accumulator's type, in the model's form.
#pragma once

#include "core/alone.h"
#include "core/logit_form.h"
#include "core/widen.h"

namespace warpup {

// x becomes z; slope, where it is given, dz/dx.
struct FormBlock {
  template <class Acc>
  WARPUP_HD void operator()(LogitForm<Acc> form, int64_t n, Acc* __restrict x, Acc* __restrict slope) const {
    if (form.cap == 0) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) x[j] *= form.scale;
      for (int64_t j = 0; slope && j < n; ++j) slope[j] = form.scale;
    } else if (slope) {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        const auto point = form.capped(x[j]);
        x[j] = point.z, slope[j] = point.slope;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) x[j] = form.capped(x[j]).z;
    }
  }
};

struct MultiplyBlock {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* __restrict slope, int64_t n, Acc* __restrict gradient) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) gradient[j] *= slope[j];
  }
};

// x[0, n) where it is, or widened and formed in `buffer`; slope[0, n), where given, is written unless the form is plain.
template <class T>
const acc_t<T>* load_block(const T* x, int64_t n, LogitForm<acc_t<T>> form, acc_t<T>* buffer,
                           acc_t<T>* slope = nullptr) {
  if constexpr (sizeof(T) > 2) {
    if (form.plain()) return x;
  }
  widen(x, n, buffer);
  if (!form.plain()) run_alone(FormBlock{}, form, n, buffer, slope);
  return buffer;
}

}  // namespace warpup
