#include "interval/interval_activation_check.h"

#include "core/option_check.h"
#include "interval/interval_activation.h"
#include "interval/operands.h"

namespace warpup {
namespace {

Activation activation_kind(const char* op, std::string_view name, double a, double b) {
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

// What must be there just where clean is.
template <class T>
T* beside_clean(const char* op, const char* name, const OptionalView& v, const OptionalView& clean,
                const View& center) {
  if (v.has_value() != clean.has_value()) fail(op, ": ", name, " must be given if and only if clean is");
  return like_center<T>(op, name, v, center);
}

template <class T>
IntervalActivationArgs<T> activation_args(const char* op, const View& center, const View& radius,
                                          const OptionalView& clean, std::string_view kind, double a, double b) {
  IntervalActivationArgs<T> args{};
  args.kind = activation_kind(op, kind, a, b), args.a = a, args.b = b;
  if (args.kind == Activation::leaky_relu) finite_option<acc_t<T>>(op, "negative_slope", a);
  if (args.kind == Activation::elu) finite_option<acc_t<T>>(op, "alpha", a);
  args.count = center.numel();
  args.center = like_center<const T>(op, "center", center, center);
  args.radius = like_center<const T>(op, "radius", radius, center);
  args.clean = like_center<const T>(op, "clean", clean, center);
  return args;
}

}  // namespace

void interval_activation(const View& center, const View& radius, const OptionalView& clean, std::string_view kind,
                         double a, double b, const View& out_center, const View& out_radius,
                         const OptionalView& out_clean) {
  const char* op = "interval_activation";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    auto args = activation_args<T>(op, center, radius, clean, kind, a, b);
    args.out_center = like_center<T>(op, "out_center", out_center, center);
    args.out_radius = like_center<T>(op, "out_radius", out_radius, center);
    args.out_clean = beside_clean<T>(op, "out_clean", out_clean, clean, center);
    WARPUP_RUN(interval_activation, T, center.device, args);
  });
}

void interval_activation_backward(const View& center, const View& radius, const OptionalView& clean,
                                  std::string_view kind, double a, double b, const View& grad_out_center,
                                  const View& grad_out_radius, const OptionalView& grad_out_clean,
                                  const View& grad_center, const View& grad_radius, const OptionalView& grad_clean) {
  const char* op = "interval_activation_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    IntervalActivationBackwardArgs<T> args{};
    args.forward = activation_args<T>(op, center, radius, clean, kind, a, b);
    args.grad_out_center = like_center<const T>(op, "grad_out_center", grad_out_center, center);
    args.grad_out_radius = like_center<const T>(op, "grad_out_radius", grad_out_radius, center);
    args.grad_out_clean = beside_clean<const T>(op, "grad_out_clean", grad_out_clean, clean, center);
    args.grad_center = like_center<T>(op, "grad_center", grad_center, center);
    args.grad_radius = like_center<T>(op, "grad_radius", grad_radius, center);
    args.grad_clean = beside_clean<T>(op, "grad_clean", grad_clean, clean, center);
    WARPUP_RUN(interval_activation_backward, T, center.device, args);
  });
}

}  // namespace warpup
