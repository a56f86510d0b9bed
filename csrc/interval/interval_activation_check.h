// Entries of interval_activation and interval_softmax: check every argument, choose dtype and device, call the twin.
#pragma once

#include <string_view>

#include "core/dispatch.h"
#include "interval/interval_activation.h"
#include "interval/interval_softmax.h"

namespace warpup {

namespace detail {

inline Activation activation_kind(const char* op, std::string_view name, double a, double b) {
  constexpr std::string_view names[] = {"sigmoid",    "tanh", "gelu",     "gelu_tanh", "silu", "hardswish",
                                        "leaky_relu", "elu",  "softplus", "exp",       "clamp"};
  for (size_t i = 0; i < std::size(names); ++i) {
    if (names[i] != name) continue;
    const auto kind = static_cast<Activation>(i);
    if (kind == Activation::leaky_relu && !(a >= 0)) fail(op, ": negative_slope must be at least 0, got ", a);
    if (kind == Activation::elu && !(a >= 0)) fail(op, ": alpha must be at least 0, got ", a);
    if (kind == Activation::clamp && !(a <= b)) fail(op, ": min must not be above max, got ", a, " and ", b);
    return kind;
  }
  fail(op, ": kind must be one of sigmoid, tanh, gelu, gelu_tanh, silu, hardswish, leaky_relu, elu, softplus, exp, ",
       "clamp, got '", name, "'");
}

// An array of center's shape, dtype and device.
template <class T>
T* like_center(const char* op, const char* name, const View& v, const View& center) {
  Argument(op, name, v).dtype({dtype_of<std::remove_const_t<T>>()}).on(center.device).shape_like(center, center.dims);
  Argument(op, name, v).contiguous();
  return data<T>(v);
}
template <class T>
T* like_center(const char* op, const char* name, const OptionalView& v, const View& center, bool wanted) {
  if (v.has_value() != wanted) fail(op, ": ", name, " must be given if and only if clean is");
  return v ? like_center<T>(op, name, *v, center) : nullptr;
}

template <class T>
IntervalActivationArgs<T> activation_args(const char* op, const View& center, const View& radius,
                                          const OptionalView& clean, std::string_view kind, double a, double b) {
  IntervalActivationArgs<T> args{};
  args.kind = activation_kind(op, kind, a, b), args.a = a, args.b = b;
  args.count = center.numel();
  args.center = like_center<const T>(op, "center", center, center);
  args.radius = like_center<const T>(op, "radius", radius, center);
  args.clean = like_center<const T>(op, "clean", clean, center, clean.has_value());
  return args;
}

template <class T>
IntervalSoftmaxArgs<T> softmax_args(const char* op, const View& center, const View& radius) {
  IntervalSoftmaxArgs<T> args{};
  if (center.dims == 0) fail(op, ": center must have at least 1 dimension, got a scalar");
  args.rows = center.count(center.dims - 1), args.n = center.sizes[center.dims - 1];
  args.center = like_center<const T>(op, "center", center, center);
  args.radius = like_center<const T>(op, "radius", radius, center);
  return args;
}

}  // namespace detail

inline void interval_activation(const View& center, const View& radius, const OptionalView& clean,
                                std::string_view kind, double a, double b, const View& out_center,
                                const View& out_radius, const OptionalView& out_clean) {
  const char* op = "interval_activation";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    auto args = detail::activation_args<T>(op, center, radius, clean, kind, a, b);
    args.out_center = detail::like_center<T>(op, "out_center", out_center, center);
    args.out_radius = detail::like_center<T>(op, "out_radius", out_radius, center);
    args.out_clean = detail::like_center<T>(op, "out_clean", out_clean, center, clean.has_value());
    WARPUP_RUN(interval_activation, T, center.device, args);
  });
}

inline void interval_activation_backward(const View& center, const View& radius, const OptionalView& clean,
                                         std::string_view kind, double a, double b, const View& grad_out_center,
                                         const View& grad_out_radius, const OptionalView& grad_out_clean,
                                         const View& grad_center, const View& grad_radius,
                                         const OptionalView& grad_clean) {
  const char* op = "interval_activation_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    IntervalActivationBackwardArgs<T> args{};
    args.forward = detail::activation_args<T>(op, center, radius, clean, kind, a, b);
    const bool has_clean = clean.has_value();
    args.grad_out_center = detail::like_center<const T>(op, "grad_out_center", grad_out_center, center);
    args.grad_out_radius = detail::like_center<const T>(op, "grad_out_radius", grad_out_radius, center);
    args.grad_out_clean = detail::like_center<const T>(op, "grad_out_clean", grad_out_clean, center, has_clean);
    args.grad_center = detail::like_center<T>(op, "grad_center", grad_center, center);
    args.grad_radius = detail::like_center<T>(op, "grad_radius", grad_radius, center);
    args.grad_clean = detail::like_center<T>(op, "grad_clean", grad_clean, center, has_clean);
    WARPUP_RUN(interval_activation_backward, T, center.device, args);
  });
}

// Over the last dimension.
inline void interval_softmax(const View& center, const View& radius, const View& out_center, const View& out_radius) {
  const char* op = "interval_softmax";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    auto args = detail::softmax_args<T>(op, center, radius);
    args.out_center = detail::like_center<T>(op, "out_center", out_center, center);
    args.out_radius = detail::like_center<T>(op, "out_radius", out_radius, center);
    WARPUP_RUN(interval_softmax, T, center.device, args);
  });
}

inline void interval_softmax_backward(const View& center, const View& radius, const View& grad_out_center,
                                      const View& grad_out_radius, const View& grad_center, const View& grad_radius) {
  const char* op = "interval_softmax_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    IntervalSoftmaxBackwardArgs<T> args{};
    args.forward = detail::softmax_args<T>(op, center, radius);
    args.grad_out_center = detail::like_center<const T>(op, "grad_out_center", grad_out_center, center);
    args.grad_out_radius = detail::like_center<const T>(op, "grad_out_radius", grad_out_radius, center);
    args.grad_center = detail::like_center<T>(op, "grad_center", grad_center, center);
    args.grad_radius = detail::like_center<T>(op, "grad_radius", grad_radius, center);
    WARPUP_RUN(interval_softmax_backward, T, center.device, args);
  });
}

}  // namespace warpup
