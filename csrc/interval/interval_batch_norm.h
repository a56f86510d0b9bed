// interval_batch_norm and interval_relu: a box (center, radius) and, beside it, a clean operand through
// y = s x + t channel by channel (batch normalization; s = 1, t = 0 for the ReLU alone), then ReLU, in one pass that
// also makes the sums of the box before the ReLU. One kernel serves both, because a layer's box is then read once only.
//
//   s = gamma / sqrt(var + eps), t = beta - mean s     mean, var: given, or of one of the operands
//   yc = s c + t, yr = |s| r, l = yc - yr, u = yc + yr
//   ReLU on l and u:  l > 0: (yc, yr)    u <= 0: (0, 0)    else (u/2, u/2)        clean: max(s x + t, 0)
//   backward, h the gradient before the ReLU:  l > 0: (gc, gr)   u <= 0: (0, 0)   else both (gc + gr)/2, plus the sums'
//     dc = s hc, dr = |s| hr, dx = s hx
//     G0 = sum (hc + hx), G1 = sum (hc (c - mean) + hx (x - mean) + sign(s) hr r) for each channel
//     dbeta = G0, dgamma = G1 / sqrt(var + eps)
//     where mean and var are those of an operand v of n elements a channel:
//       dv -= s (G0 + (v - mean) G1 / (var + eps)) / n
//   From the outputs of a ReLU instead of its inputs, hc (yc - beta) + hr yr = gc c' + gr r' - beta hc, for the ReLU is
//   homogeneous: G1 follows by a division by s.
//
// Layout   operands [outer, channels, inner] contiguous; what is per channel [channels].
// Sound    the radius grows by what the rounding of s, t, yc, yr, u and u/2 can be at most; see scaled_box.
// Numerics float32 (float64 for float64); a channel's sums a task at a time in that, tasks in float64, in a fixed
//          order. The sums of the box in float64. NaN stays NaN.
// Bytes    forward: each operand read and written once, the source of the statistics once more. backward: gradients and
//          saved operands read once, gradients written once; the source and its gradient once more.
#pragma once

#include "core/types.h"

namespace warpup {

// How the work is cut into tasks, which depends on the shape alone, so that sums are the same with any number of
// threads. inner == 1: a task is kRows rows of all channels. Else up to kPiece elements of one channel.
struct ChannelLayout {
  static constexpr int64_t kRows = 32, kPiece = 4096;
  int64_t outer = 0, channels = 0, inner = 1;

  WARPUP_HD int64_t size() const { return outer * channels * inner; }
  WARPUP_HD int64_t pieces() const { return (inner + kPiece - 1) / kPiece; }
  WARPUP_HD int64_t chunks() const { return inner == 1 ? (outer + kRows - 1) / kRows : outer * pieces(); }
  WARPUP_HD int64_t tasks() const { return size() == 0 ? 0 : inner == 1 ? chunks() : chunks() * channels; }
};

// Of the box before the ReLU, in this order: sum of radii, of centers; of the active (l > 0) their count, sums of
// centers and of their squares; of the inactive (u < 0) the same. At most kBoxSumGroups partial sums are made.
inline constexpr int kBoxSums = 8, kBoxSumGroups = 1024;

// The statistics of `source` into mean and var, if it is given; then scale and shift from mean and var.
template <class T>
struct ChannelScaleArgs {
  using Acc = acc_t<T>;
  ChannelLayout layout;
  const T* source;           // or null: mean and var are read
  const Acc *weight, *bias;  // or null: 1, 0
  double eps;
  Acc* partials;  // [chunks, channels, 2], scratch, where there is a source
  Acc *mean, *var, *scale, *shift;
};

template <class T>
struct IntervalBatchNormArgs {
  using Acc = acc_t<T>;
  ChannelLayout layout;
  const T *center, *radius, *clean;        // clean may be null
  const Acc *scale, *shift, *mean, *bias;  // scale null: 1, 0; mean and (it may be null) bias are read where `sound`
  bool relu, sound;
  T *out_center, *out_radius, *out_clean;
  double *partials, *sums;  // [kBoxSumGroups, kBoxSums], [kBoxSums]; null: not made
  bool* negative;           // CPU: set where a radius is below 0
};

template <class T>
struct IntervalBatchNormBackwardArgs {
  using Acc = acc_t<T>;
  ChannelLayout layout;
  const T *grad_center, *grad_radius, *grad_clean;        // null: 0
  const T *center, *radius, *clean;                       // clean null: none
  bool from_outputs;                                      // center and radius are the ReLU's results; clean never is
  const Acc *scale, *shift, *mean, *var, *weight, *bias;  // scale null: identity; weight, bias null: 1, 0
  double eps;
  bool relu;
  int source;           // whose statistics mean and var are: 0 center, 2 clean, -1 constants
  const double* added;  // [6]: hc += a0 + [l > 0](a1 + a2 yc) + [u < 0](a3 + a4 yc), hr += a5; or null
  Acc* partials;        // [chunks, channels, 2], scratch, where there is a scale
  Acc* totals;          // [2, channels], scratch
  T *out_center, *out_radius, *out_clean;
  Acc *out_weight, *out_bias;  // [channels], where there is a scale
};

template <class T>
void channel_scale_cpu(const ChannelScaleArgs<T>& args);
template <class T>
void channel_scale_cuda(const ChannelScaleArgs<T>& args, void* stream);

template <class T>
void interval_batch_norm_cpu(const IntervalBatchNormArgs<T>& args);
template <class T>
void interval_batch_norm_cuda(const IntervalBatchNormArgs<T>& args, void* stream);

template <class T>
void interval_batch_norm_backward_cpu(const IntervalBatchNormBackwardArgs<T>& args);
template <class T>
void interval_batch_norm_backward_cuda(const IntervalBatchNormBackwardArgs<T>& args, void* stream);

}  // namespace warpup
