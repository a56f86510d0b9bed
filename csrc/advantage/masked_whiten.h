// masked_moments: count, mean and variance of what a mask keeps; masked_whiten: with them, to mean 0 and variance 1.
// masked_moments has no public function: group_advantage calls it for scale batch_std, masked_whiten for itself.
//
//   moments = (n, mean, M2 / (n - correction), 1 where max == min)     variance 0 where max == min or n <= correction
//   out = (x - mean) / sqrt(variance + eps) (+ mean without `shift_mean`)   0 outside the mask
//         x - mean = 0 exactly where max == min
//
// Why      advantages of all tokens of a batch are brought to one scale; in torch ops that is many passes over memory,
//          and a variance made of sums loses its digits where the mean is large.
// Layout   x, mask, out contiguous [count]; mask bytes, 0 or not, or null: all; `skip_nan` leaves NaN out too.
//          moments 4 float64; partials 5 float64 for each chunk of kChunk elements, scratch.
// Numerics each chunk in float32 (float64 for float64), two passes: mean, then squared deviations; chunks are merged
//          one after another in float64 (Chan et al.). Chunks do not depend on the number of threads, nor does the
//          result.
// Bytes    moments: count * (sizeof(T) + 1) read.  whiten: as much again, and count * sizeof(T) written.
#pragma once

#include "core/types.h"

namespace warpup {

struct Moments {
  static constexpr int64_t kChunk =
      4096;  // 16 KB of float32: the second pass finds it in L1; 16 elements a CUDA thread
  static constexpr int kPartial = 5, kResult = 4;
  static int64_t chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }

  double n = 0, mean = 0, m2 = 0;
  double max = -__builtin_inf(), min = __builtin_inf();

  WARPUP_HD void merge(const Moments& other) {
    if (other.n == 0) return;
    const double total = n + other.n, apart = other.mean - mean;
    m2 += other.m2 + apart * apart * (n / total * other.n);
    mean += apart * (other.n / total);
    n = total;
    max = other.max > max ? other.max : max;
    min = other.min < min ? other.min : min;
  }
  WARPUP_HD static Moments load(const double* p) { return {p[0], p[1], p[2], p[3], p[4]}; }
  WARPUP_HD void store(double* p) const { p[0] = n, p[1] = mean, p[2] = m2, p[3] = max, p[4] = min; }
  WARPUP_HD void result(int correction, double* p) const {
    const bool equal = n > 0 && max == min;
    const bool none = m2 < 0 || equal || n <= correction;
    p[0] = n, p[1] = equal ? max : mean, p[2] = none ? 0 : m2 / (n - correction), p[3] = equal;
  }
};

template <class T>  // float, double
struct MaskedMomentsArgs {
  int64_t count;
  const T* x;
  const uint8_t* mask;  // or null
  bool skip_nan;
  int32_t correction;
  double* partials;
  double* moments;
};

template <class T>
struct MaskedWhitenArgs {
  MaskedMomentsArgs<T> of;
  bool shift_mean;
  double eps;
  T* out;
};

template <class T>
void masked_moments_cpu(const MaskedMomentsArgs<T>& args);
template <class T>
void masked_moments_cuda(const MaskedMomentsArgs<T>& args, void* stream);

template <class T>
void masked_whiten_cpu(const MaskedWhitenArgs<T>& args);
template <class T>
void masked_whiten_cuda(const MaskedWhitenArgs<T>& args, void* stream);

}  // namespace warpup
