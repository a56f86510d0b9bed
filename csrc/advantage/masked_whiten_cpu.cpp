#include <algorithm>
#include <cmath>

#include "advantage/masked_whiten.h"
#include "core/extremes.h"
#include "core/math.h"
#include "core/parallel.h"

namespace warpup {

// The elements that count, moved together: what follows then needs no mask, and NaN in what is left out cannot spread.
template <class T>
WARPUP_LOOP int64_t gather(const MaskedMomentsArgs<T>& args, int64_t begin, int64_t end, T* kept) {
  int64_t n = 0;
  for (int64_t i = begin; i < end; ++i) {
    kept[n] = args.x[i];
    n += (!args.mask || args.mask[i] != 0) && !(args.skip_nan && args.x[i] != args.x[i]);
  }
  return n;
}

template <class T>
WARPUP_LOOP void chunk_moments(const T* x, int64_t n, Moments* out) {
  if (n == 0) return;
  T sum = 0, max = x[0], min = x[0];
#pragma omp simd reduction(+ : sum) reduction(largest : max) reduction(smallest : min)
  for (int64_t i = 0; i < n; ++i) {
    sum += x[i];
    max = x[i] > max ? x[i] : max;
    min = x[i] < min ? x[i] : min;
  }
  const T mean = sum / T(n);
  T d_sum = 0, square = 0;
#pragma omp simd reduction(+ : d_sum, square)
  for (int64_t i = 0; i < n; ++i) {
    const T d = x[i] - mean;
    d_sum += d;
    square += d * d;
  }
  const double rest = double(d_sum) / n;
  *out = {double(n), double(mean) + rest, double(square) - double(d_sum) * rest, double(max), double(min)};
}

template <class T>
void masked_moments_cpu(const MaskedMomentsArgs<T>& args) {
  // Four chunks a task: fewer take less time than waking a thread.
  parallel_for(0, Moments::chunks(args.count), 4, [&args](int64_t first, int64_t last) {
    T kept[Moments::kChunk];
    for (int64_t c = first; c < last; ++c) {
      const int64_t begin = c * Moments::kChunk, end = std::min(args.count, begin + Moments::kChunk);
      Moments chunk;
      chunk_moments(kept, gather(args, begin, end, kept), &chunk);
      chunk.store(args.partials + c * Moments::kPartial);
    }
  });
  Moments all;
  for (int64_t c = 0; c < Moments::chunks(args.count); ++c)
    all.merge(Moments::load(args.partials + c * Moments::kPartial));
  all.result(args.correction, args.moments);
}

template <class T>
WARPUP_LOOP void whiten(const MaskedWhitenArgs<T>& args, T high, T low, T factor, T shift, int64_t begin, int64_t end) {
  const T* x = args.of.x;
  const uint8_t* mask = args.of.mask;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const T y = (x[i] - high - low) * factor + shift;
    args.out[i] = !mask || mask[i] != 0 ? y : T(0);
  }
}

template <class T>
void masked_whiten_cpu(const MaskedWhitenArgs<T>& args) {
  masked_moments_cpu(args.of);
  const double *m = args.of.moments, mean = m[1];
  // The mean in two parts, high + low: taken off one after the other, an offset of x costs no digits.
  const T high = static_cast<T>(mean), low = m[3] != 0 ? T(0) : static_cast<T>(mean - double(high));
  const double variance = m[2] + args.eps;
  const T factor = variance == 0 ? T(0) : static_cast<T>(1 / std::sqrt(variance));  // not 0 * inf
  const T shift = args.shift_mean ? T(0) : high;
  parallel_for(0, args.of.count, 1 << 15,
               [&](int64_t first, int64_t last) { whiten(args, high, low, factor, shift, first, last); });
}

#define INSTANTIATE(T)                                                   \
  template void masked_moments_cpu<T>(const MaskedMomentsArgs<T>& args); \
  template void masked_whiten_cpu<T>(const MaskedWhitenArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
