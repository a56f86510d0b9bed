#include "interval/interval_batch_norm_check.h"

#include "interval/operands.h"

namespace warpup {

ChannelLayout channel_layout(const char* op, const View& center) {
  Argument(op, "center", center).dims(3).contiguous();
  return {center.sizes[0], center.sizes[1], center.sizes[2]};
}

void interval_batch_norm(const View& center, const View& radius, const OptionalView& clean, const ChannelParameters& p,
                         int64_t source, bool relu, bool sound, const OptionalView& partials, const OptionalView& scale,
                         const OptionalView& shift, const View& out_center, const View& out_radius,
                         const OptionalView& out_clean, const OptionalView& sum_partials, const OptionalView& sums) {
  const char* op = "interval_batch_norm";
  if (source == 2 && !clean) fail(op, ": source 2 needs clean");
  if (clean.has_value() != out_clean.has_value()) fail(op, ": out_clean goes with clean");
  if (p.normalized() != (scale && shift && p.var)) fail(op, ": mean, var, scale and shift go together");
  if (source >= 0 && !(p.normalized() && partials)) fail(op, ": statistics need mean, var and partials");
  if (sums.has_value() != sum_partials.has_value()) fail(op, ": sums go with sum_partials");
  if (!(p.eps >= 0)) fail(op, ": eps must be at least 0, got ", p.eps);
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = center.device;
    const ChannelLayout layout = channel_layout(op, center);
    const int64_t n = layout.channels;
    ChannelScaleArgs<T> channel{};
    IntervalBatchNormArgs<T> args{};
    channel.layout = args.layout = layout;
    args.center = data<const T>(center);
    args.radius = like_center<const T>(op, "radius", radius, center);
    args.clean = like_center<const T>(op, "clean", clean, center);
    channel.mean = values<Acc>(op, "mean", p.mean, {n}, device);
    channel.var = values<Acc>(op, "var", p.var, {n}, device);
    channel.weight = values<const Acc>(op, "weight", p.weight, {n}, device);
    channel.bias = values<const Acc>(op, "bias", p.bias, {n}, device);
    channel.eps = p.eps;
    channel.scale = values<Acc>(op, "scale", scale, {n}, device);
    channel.shift = values<Acc>(op, "shift", shift, {n}, device);
    channel.partials = values<Acc>(op, "partials", partials, {source < 0 ? 0 : layout.chunks(), n, 2}, device);
    channel.source = source == 0 ? args.center : source == 2 ? args.clean : nullptr;
    args.scale = channel.scale, args.shift = channel.shift, args.mean = channel.mean, args.bias = channel.bias;
    args.relu = relu, args.sound = sound;
    args.out_center = like_center<T>(op, "out_center", out_center, center);
    args.out_radius = like_center<T>(op, "out_radius", out_radius, center);
    args.out_clean = like_center<T>(op, "out_clean", out_clean, center);
    args.partials = values<double>(op, "sum_partials", sum_partials, {kBoxSumGroups, kBoxSums}, device);
    args.sums = values<double>(op, "sums", sums, {kBoxSums}, device);
    bool negative = false;
    args.negative = &negative;
    if (channel.scale) WARPUP_RUN(channel_scale, T, device, channel);
    WARPUP_RUN(interval_batch_norm, T, device, args);
    if (negative) fail(op, ": radius must be >= 0, got one below; l > u is no box");
  });
}

void channel_scale(const View& center, const ChannelParameters& p, const OptionalView& scale,
                   const OptionalView& shift) {
  if (!p.normalized() || !scale || !shift) return;
  const char* op = "interval_batch_norm_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    ChannelScaleArgs<T> args{};
    args.layout = channel_layout(op, center);
    const int64_t n = args.layout.channels;
    args.eps = p.eps;
    args.mean = values<Acc>(op, "mean", p.mean, {n}, center.device);
    args.var = values<Acc>(op, "var", p.var, {n}, center.device);
    args.weight = values<const Acc>(op, "weight", p.weight, {n}, center.device);
    args.bias = values<const Acc>(op, "bias", p.bias, {n}, center.device);
    args.scale = values<Acc>(op, "scale", scale, {n}, center.device);
    args.shift = values<Acc>(op, "shift", shift, {n}, center.device);
    WARPUP_RUN(channel_scale, T, center.device, args);
  });
}

void interval_batch_norm_backward(const BoxGradients& grads, const View& center, const View& radius,
                                  const OptionalView& clean, bool from_outputs, const ChannelParameters& p,
                                  const OptionalView& scale, const OptionalView& shift, int64_t source, bool relu,
                                  const OptionalView& added, const OptionalView& partials, const OptionalView& totals,
                                  const View& out_center, const View& out_radius, const OptionalView& out_clean,
                                  const OptionalView& out_weight, const OptionalView& out_bias) {
  const char* op = "interval_batch_norm_backward";
  if (source == 2 && !clean) fail(op, ": source 2 needs clean");
  if (from_outputs && (source == 0 || !relu)) fail(op, ": outputs serve where a ReLU follows other statistics only");
  if (clean.has_value() != out_clean.has_value()) fail(op, ": out_clean goes with clean");
  if (p.normalized() != (scale && shift && p.var && partials && totals && out_weight && out_bias)) {
    fail(op, ": mean, var, scale, shift, partials, totals, out_weight and out_bias go together");
  }
  if (source >= 0 && !p.normalized()) fail(op, ": statistics need mean and var");
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = center.device;
    IntervalBatchNormBackwardArgs<T> args{};
    args.layout = channel_layout(op, center);
    const int64_t n = args.layout.channels;
    args.grad_center = like_center<const T>(op, "grad_center", grads.center, center);
    args.grad_radius = like_center<const T>(op, "grad_radius", grads.radius, center);
    args.grad_clean = like_center<const T>(op, "grad_clean", grads.clean, center);
    args.center = data<const T>(center);
    args.radius = like_center<const T>(op, "radius", radius, center);
    args.clean = like_center<const T>(op, "clean", clean, center);
    args.from_outputs = from_outputs;
    args.scale = values<const Acc>(op, "scale", scale, {n}, device);
    args.shift = values<const Acc>(op, "shift", shift, {n}, device);
    args.mean = values<const Acc>(op, "mean", p.mean, {n}, device);
    args.var = values<const Acc>(op, "var", p.var, {n}, device);
    args.weight = values<const Acc>(op, "weight", p.weight, {n}, device);
    args.bias = values<const Acc>(op, "bias", p.bias, {n}, device);
    args.eps = p.eps, args.relu = relu, args.source = static_cast<int>(source);
    args.added = values<const double>(op, "added", added, {6}, device);
    args.partials = values<Acc>(op, "partials", partials, {args.layout.chunks(), n, 2}, device);
    args.totals = values<Acc>(op, "totals", totals, {2, n}, device);
    args.out_center = like_center<T>(op, "out_center", out_center, center);
    args.out_radius = like_center<T>(op, "out_radius", out_radius, center);
    args.out_clean = like_center<T>(op, "out_clean", out_clean, center);
    args.out_weight = values<Acc>(op, "out_weight", out_weight, {n}, device);
    args.out_bias = values<Acc>(op, "out_bias", out_bias, {n}, device);
    WARPUP_RUN(interval_batch_norm_backward, T, device, args);
  });
}

}  // namespace warpup
