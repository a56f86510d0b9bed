// 16-bit values in the accumulator's type and back, in loops of their own: beside arithmetic gcc vectorises their loads
// badly.
#pragma once

#include "core/types.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace warpup {

// Halves by the CPU's own instruction where it has one, 8 at a time from the first on: how many. g++ takes it in no loop.
#ifdef __F16C__
inline int64_t convert_eights(const float16* x, int64_t n, float* to) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    _mm256_storeu_ps(to + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + j))));
  }
  return j;
}
inline int64_t convert_eights(const float* x, int64_t n, float16* to) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + j), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j), halves);
  }
  return j;
}
#else
inline int64_t convert_eights(const void*, int64_t, void*) { return 0; }
#endif

template <class T>
WARPUP_LOOP void widen(const T* __restrict x, int64_t n, acc_t<T>* __restrict to) {
  int64_t first = 0;
  if constexpr (std::is_same_v<T, float16>) first = convert_eights(x, n, to);
#pragma omp simd
  for (int64_t j = first; j < n; ++j) to[j] = load(x[j]);
}

template <class T>
WARPUP_LOOP void narrow(const acc_t<T>* __restrict x, int64_t n, T* __restrict to) {
  int64_t first = 0;
  if constexpr (std::is_same_v<T, float16>) first = convert_eights(x, n, to);
#pragma omp simd
  for (int64_t j = first; j < n; ++j) to[j] = store<T>(x[j]);
}

}  // namespace warpup
