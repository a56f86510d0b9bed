// group_advantage: rewards against the other rewards of their group.
//
//   n, mu, M2 = count, mean, sum of squared deviations of the group's rewards that are not NaN
//   c = r - mu                     Baseline::mean
//       n / (n - 1) (r - mu)       leave_one_out: r minus the mean of the others
//       r - sum(len r) / sum(len)  length_weighted (mu where the lengths sum to 0)
//       best - runner-up           runner_up: for the group's best row (the first of equals), 0 for all others
//       r                          none
//   A = c / (sqrt(M2 / (n - correction)) + eps)   Scale::std; batch_std takes n and M2 over all groups' rewards
//       c / (s + eps)                             leave_one_out_std: s over the others; c where s = 0 or n = 2
//       c                                         none
//   A NaN reward stands for "no reward": A = 0. n = 1: A = 0, or r itself with `singleton_raw`. max == min: c = 0
//   exactly unless the baseline is none, and A = 0 for std and batch_std: rounding noise is never divided by.
//
// Why      in a batch, groups have any order and any size; torch ops need them padded, or a loop in Python over ids.
// Layout   group g is rows [g size, (g + 1) size), or [offsets[g], offsets[g + 1]), of the rewards as they lie in
//          memory or, with `order`, of rewards[order]. Advantages stand where their rewards stand. Empty groups are
//          allowed.
// Numerics deviations and sums in float32 (float64 for float64; the CPU kernel sums in float64), in two passes; the
//          mean is carried as a rounded value and its remainder, so an offset of the rewards costs no digits.
//          Offsets that are not monotone, which the check rejects on the CPU, are clamped on CUDA: no crash, no row is
//          left unwritten.
// Bytes    rows * 2 sizeof(T), + 8 rows with `order`, + rows * sizeof(T) with lengths, + 8 groups with offsets.
#pragma once

#include "core/types.h"

namespace warpup {

enum class Baseline : int32_t { mean, leave_one_out, length_weighted, runner_up, none };
enum class Scale : int32_t { std, batch_std, leave_one_out_std, none };

template <class T>  // float, double
struct GroupAdvantageArgs {
  int64_t rows, groups;
  int64_t group_size;      // or 0: then `offsets`
  const int64_t* offsets;  // [groups + 1]
  const int64_t* order;    // [rows], a permutation, or null
  const T* rewards;
  int64_t rewards_stride;
  const T* lengths;  // for length_weighted
  int64_t lengths_stride;
  const double* batch;  // for batch_std: what masked_moments gives
  Baseline baseline;
  Scale scale;
  int32_t correction;  // 0 or 1
  bool singleton_raw;
  double eps;
  T* advantages;  // contiguous [rows]
  // Statistics, contiguous [groups] each, or all null. Of an empty group all are 0; std of one reward is 0.
  int64_t* count;
  T* mean;
  T* std;
  T* mean_abs;             // mean |A| over the rows with a reward
  uint8_t* zero_variance;  // 1 where there is a reward and all are equal
};

template <class T>
void group_advantage_cpu(const GroupAdvantageArgs<T>& args);
template <class T>
void group_advantage_cuda(const GroupAdvantageArgs<T>& args, void* stream);

}  // namespace warpup
