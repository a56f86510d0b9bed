// Entries of interval_affine, interval_sign and interval_product: check every argument, choose dtype and device, call
// the twin.
#pragma once

#include "core/dispatch.h"
#include "interval/interval_affine.h"
#include "interval/interval_product.h"
#include "interval/interval_sign.h"

namespace warpup {

// What an affine pass is given for each channel, all optional.
struct ChannelParameters {
  OptionalView mean, var, weight, bias;
  double eps = 1e-5;
  bool affine() const { return mean.has_value(); }
};

namespace detail {

inline ChannelLayout channel_layout(const char* op, const View& center) {
  Argument(op, "center", center).dims(3).contiguous();
  return {center.sizes[0], center.sizes[1], center.sizes[2]};
}

// An operand in the shape of center.
template <class T>
T* operand(const char* op, const char* name, const OptionalView& v, const View& center) {
  if (!v) return nullptr;
  Argument(op, name, *v).dtype({center.dtype}).on(center.device).shape_like(center, center.dims).contiguous();
  return data<T>(*v);
}

// Values of the accumulator's type (or of float64) in a shape.
template <class V>
V* values(const char* op, const char* name, const OptionalView& v, std::initializer_list<int64_t> shape,
          const Device& device) {
  if (!v) return nullptr;
  Argument(op, name, *v).dtype({dtype_of<std::remove_const_t<V>>()}).on(device).shape(shape).contiguous();
  return data<V>(*v);
}

}  // namespace detail

// Statistics of center (source 0) or clean (2) into mean and var, or from there (-1), then scale and shift from them,
// where there are parameters; then the pass. partials [chunks, channels, 2]; sum_partials [1024, 8] and sums [8]
// float64.
inline void interval_affine(const View& center, const View& radius, const OptionalView& clean,
                            const ChannelParameters& p, int64_t source, bool relu, bool sound,
                            const OptionalView& partials, const OptionalView& scale, const OptionalView& shift,
                            const View& out_center, const View& out_radius, const OptionalView& out_clean,
                            const OptionalView& sum_partials, const OptionalView& sums) {
  const char* op = "interval_affine";
  if (source == 2 && !clean) fail(op, ": source 2 needs clean");
  if (clean.has_value() != out_clean.has_value()) fail(op, ": out_clean goes with clean");
  if (p.affine() != (scale && shift && p.var)) fail(op, ": mean, var, scale and shift go together");
  if (source >= 0 && !(p.affine() && partials)) fail(op, ": statistics need mean, var and partials");
  if (sums.has_value() != sum_partials.has_value()) fail(op, ": sums go with sum_partials");
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = center.device;
    const ChannelLayout layout = detail::channel_layout(op, center);
    const int64_t n = layout.channels;
    ChannelAffineArgs<T> channel{};
    IntervalAffineArgs<T> args{};
    channel.layout = args.layout = layout;
    args.center = data<const T>(center);
    args.radius = detail::operand<const T>(op, "radius", radius, center);
    args.clean = detail::operand<const T>(op, "clean", clean, center);
    channel.mean = detail::values<Acc>(op, "mean", p.mean, {n}, device);
    channel.var = detail::values<Acc>(op, "var", p.var, {n}, device);
    channel.weight = detail::values<const Acc>(op, "weight", p.weight, {n}, device);
    channel.bias = detail::values<const Acc>(op, "bias", p.bias, {n}, device);
    channel.eps = p.eps;
    channel.scale = detail::values<Acc>(op, "scale", scale, {n}, device);
    channel.shift = detail::values<Acc>(op, "shift", shift, {n}, device);
    channel.partials = detail::values<Acc>(op, "partials", partials, {source < 0 ? 0 : layout.chunks(), n, 2}, device);
    channel.source = source == 0 ? args.center : source == 2 ? args.clean : nullptr;
    args.scale = channel.scale, args.shift = channel.shift, args.mean = channel.mean, args.bias = channel.bias;
    args.relu = relu, args.sound = sound;
    args.out_center = detail::operand<T>(op, "out_center", out_center, center);
    args.out_radius = detail::operand<T>(op, "out_radius", out_radius, center);
    args.out_clean = detail::operand<T>(op, "out_clean", out_clean, center);
    const int64_t count = BoxSumsPart::kCount, groups = BoxSumsPart::kGroups;
    args.partials = detail::values<double>(op, "sum_partials", sum_partials, {groups, count}, device);
    args.sums = detail::values<double>(op, "sums", sums, {count}, device);
    bool negative = false;
    args.negative = &negative;
    if (channel.scale) WARPUP_RUN(channel_affine, T, device, channel);
    WARPUP_RUN(interval_affine, T, device, args);
    if (negative) fail(op, ": radius must be >= 0, got one below; l > u is no box");
  });
}

// scale and shift again, for the backward, from the mean and var of the forward.
inline void channel_scale(const View& center, const ChannelParameters& p, const OptionalView& scale,
                          const OptionalView& shift) {
  if (!p.affine() || !scale || !shift) return;
  const char* op = "interval_affine_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    ChannelAffineArgs<T> args{};
    args.layout = detail::channel_layout(op, center);
    const int64_t n = args.layout.channels;
    args.eps = p.eps;
    args.mean = detail::values<Acc>(op, "mean", p.mean, {n}, center.device);
    args.var = detail::values<Acc>(op, "var", p.var, {n}, center.device);
    args.weight = detail::values<const Acc>(op, "weight", p.weight, {n}, center.device);
    args.bias = detail::values<const Acc>(op, "bias", p.bias, {n}, center.device);
    args.scale = detail::values<Acc>(op, "scale", scale, {n}, center.device);
    args.shift = detail::values<Acc>(op, "shift", shift, {n}, center.device);
    WARPUP_RUN(channel_affine, T, center.device, args);
  });
}

struct BoxGradients {
  OptionalView center, radius, clean;
};

inline void interval_affine_backward(const BoxGradients& grads, const View& center, const View& radius,
                                     const OptionalView& clean, bool from_outputs, const ChannelParameters& p,
                                     const OptionalView& scale, const OptionalView& shift, int64_t source, bool relu,
                                     const OptionalView& added, const OptionalView& partials,
                                     const OptionalView& totals, const View& out_center, const View& out_radius,
                                     const OptionalView& out_clean, const OptionalView& out_weight,
                                     const OptionalView& out_bias) {
  const char* op = "interval_affine_backward";
  if (source == 2 && !clean) fail(op, ": source 2 needs clean");
  if (from_outputs && (source == 0 || !relu)) fail(op, ": outputs serve where a ReLU follows other statistics only");
  if (clean.has_value() != out_clean.has_value()) fail(op, ": out_clean goes with clean");
  if (p.affine() != (scale && shift && p.var && partials && totals && out_weight && out_bias)) {
    fail(op, ": mean, var, scale, shift, partials, totals, out_weight and out_bias go together");
  }
  if (source >= 0 && !p.affine()) fail(op, ": statistics need mean and var");
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = center.device;
    IntervalAffineBackwardArgs<T> args{};
    args.layout = detail::channel_layout(op, center);
    const int64_t n = args.layout.channels;
    args.grad_center = detail::operand<const T>(op, "grad_center", grads.center, center);
    args.grad_radius = detail::operand<const T>(op, "grad_radius", grads.radius, center);
    args.grad_clean = detail::operand<const T>(op, "grad_clean", grads.clean, center);
    args.center = data<const T>(center);
    args.radius = detail::operand<const T>(op, "radius", radius, center);
    args.clean = detail::operand<const T>(op, "clean", clean, center);
    args.from_outputs = from_outputs;
    args.scale = detail::values<const Acc>(op, "scale", scale, {n}, device);
    args.shift = detail::values<const Acc>(op, "shift", shift, {n}, device);
    args.mean = detail::values<const Acc>(op, "mean", p.mean, {n}, device);
    args.var = detail::values<const Acc>(op, "var", p.var, {n}, device);
    args.weight = detail::values<const Acc>(op, "weight", p.weight, {n}, device);
    args.bias = detail::values<const Acc>(op, "bias", p.bias, {n}, device);
    args.eps = p.eps, args.relu = relu, args.source = static_cast<int>(source);
    args.added = detail::values<const double>(op, "added", added, {6}, device);
    args.partials = detail::values<Acc>(op, "partials", partials, {args.layout.chunks(), n, 2}, device);
    args.totals = detail::values<Acc>(op, "totals", totals, {2, n}, device);
    args.out_center = detail::operand<T>(op, "out_center", out_center, center);
    args.out_radius = detail::operand<T>(op, "out_radius", out_radius, center);
    args.out_clean = detail::operand<T>(op, "out_clean", out_clean, center);
    args.out_weight = detail::values<Acc>(op, "out_weight", out_weight, {n}, device);
    args.out_bias = detail::values<Acc>(op, "out_bias", out_bias, {n}, device);
    WARPUP_RUN(interval_affine_backward, T, device, args);
  });
}

// gradient = base + sign(weight) gradient, in place; all in one layout without holes.
inline void interval_sign(const View& gradient, const View& weight, const OptionalView& base) {
  const char* op = "interval_sign_";
  int64_t extent = 1;
  for (int d = 0; d < gradient.dims; ++d) extent += (gradient.sizes[d] - 1) * gradient.strides[d];
  const bool empty = gradient.numel() == 0;
  if (!empty && extent != gradient.numel()) fail(op, ": gradient must fill its memory; call .contiguous() on it");
  const auto same = [&](const char* name, const View& v) {
    Argument(op, name, v).dtype({gradient.dtype}).on(gradient.device).shape_like(gradient, gradient.dims);
    for (int d = 0; d < v.dims && !empty; ++d) {
      if (v.sizes[d] > 1 && v.strides[d] != gradient.strides[d]) fail(op, ": ", name, " must have gradient's layout");
    }
  };
  same("weight", weight);
  if (base) same("base", *base);
  dispatch_floating(op, "gradient", gradient.dtype, [&]<class T>() {
    const IntervalSignArgs<T> args{gradient.numel(), data<const T>(weight), data<const T>(base), data<T>(gradient)};
    WARPUP_RUN(interval_sign, T, gradient.device, args);
  });
}

namespace detail {

template <class Body>
void dispatch_wide(const char* op, const View& v, const Body& body) {
  Argument(op, "a_center", v).dtype({DType::f32, DType::f64}).dims(2).contiguous();
  v.dtype == DType::f32 ? body.template operator()<float>() : body.template operator()<double>();
}

template <class T>
const T* like(const char* op, const char* name, const View& v, const View& other) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(other.device).shape_like(other, 2).contiguous();
  return data<const T>(v);
}

}  // namespace detail

inline void interval_product(const View& a_center, const View& a_radius, const View& b_center, const View& b_radius,
                             const View& shift, const View& excess) {
  const char* op = "interval_product";
  detail::dispatch_wide(op, a_center, [&]<class T>() {
    Argument(op, "b_center", b_center).dtype({a_center.dtype}).on(a_center.device).dims(2).contiguous();
    IntervalProductArgs<T> args{a_center.sizes[0], b_center.sizes[0], a_center.sizes[1]};
    if (b_center.sizes[1] != args.width) fail(op, ": b_center must be as wide as a_center, ", args.width);
    args.a_center = data<const T>(a_center), args.b_center = data<const T>(b_center);
    args.a_radius = detail::like<T>(op, "a_radius", a_radius, a_center);
    args.b_radius = detail::like<T>(op, "b_radius", b_radius, b_center);
    const auto result = [&](const char* name, const View& v) {
      Argument(op, name, v).dtype({a_center.dtype}).on(a_center.device).shape({args.rows, args.columns}).contiguous();
      return data<T>(v);
    };
    args.shift = result("shift", shift), args.excess = result("excess", excess);
    WARPUP_RUN(interval_product, T, a_center.device, args);
  });
}

// The gradient of a; that of b with the operands exchanged and `transposed` gradients.
inline void interval_product_backward(const View& a_center, const View& a_radius, const View& b_center,
                                      const View& b_radius, const View& grad_shift, const View& grad_excess,
                                      bool transposed, const View& out_center, const View& out_radius) {
  const char* op = "interval_product_backward";
  detail::dispatch_wide(op, a_center, [&]<class T>() {
    Argument(op, "b_center", b_center).dtype({a_center.dtype}).on(a_center.device).dims(2).contiguous();
    IntervalProductBackwardArgs<T> args{a_center.sizes[0], b_center.sizes[0], a_center.sizes[1]};
    if (b_center.sizes[1] != args.width) fail(op, ": b_center must be as wide as a_center, ", args.width);
    args.a_center = data<const T>(a_center), args.b_center = data<const T>(b_center);
    args.a_radius = detail::like<T>(op, "a_radius", a_radius, a_center);
    args.b_radius = detail::like<T>(op, "b_radius", b_radius, b_center);
    const auto gradient = [&](const char* name, const View& v) {
      const int64_t down = transposed ? args.columns : args.rows, across = transposed ? args.rows : args.columns;
      Argument(op, name, v).dtype({a_center.dtype}).on(a_center.device).shape({down, across}).contiguous();
      return data<const T>(v);
    };
    args.grad_shift = gradient("grad_shift", grad_shift), args.grad_excess = gradient("grad_excess", grad_excess);
    args.transposed = transposed;
    args.out_center = const_cast<T*>(detail::like<T>(op, "out_center", out_center, a_center));
    args.out_radius = const_cast<T*>(detail::like<T>(op, "out_radius", out_radius, a_center));
    WARPUP_RUN(interval_product_backward, T, a_center.device, args);
  });
}

}  // namespace warpup
