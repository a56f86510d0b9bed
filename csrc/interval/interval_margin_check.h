// Entries of margin_bounds: check every argument, choose dtype and device, call the twin.
#pragma once

#include "core/dispatch.h"
#include "interval/interval_margin.h"

namespace warpup {

namespace detail {

template <class T>
MarginBoundsArgs<T> margin_bounds_args(const char* op, const View& center, const View& radius, const View& weight,
                                       const View& labels) {
  MarginBoundsArgs<T> args{};
  args.batch = center.sizes[0], args.width = center.sizes[1], args.classes = weight.sizes[0];
  const auto operand = [&](const char* name, const View& v, int64_t rows) {
    const Argument arg(op, name, v);
    arg.dtype({dtype_of<T>()}).on(center.device).shape({rows, args.width}).unit_stride_last();
    return data<const T>(v);
  };
  args.center = operand("center", center, args.batch), args.center_stride = center.strides[0];
  args.radius = operand("radius", radius, args.batch), args.radius_stride = radius.strides[0];
  args.weight = operand("weight", weight, args.classes), args.weight_stride = weight.strides[0];
  if (args.classes < 1) fail(op, ": weight must have at least 1 row, got shape ", shape_of(weight));
  Argument(op, "labels", labels).dtype({DType::i64}).on(center.device).shape({args.batch}).contiguous();
  args.labels = data<const int64_t>(labels);
  for (int64_t i = 0; i < args.batch && !center.device.cuda; ++i) {  // there it would synchronise
    const int64_t y = args.labels[i];
    if (y < 0 || y >= args.classes) fail(op, ": labels[", i, "] = ", y, " is outside [0, ", args.classes, ")");
  }
  return args;
}

template <class T>
T* contiguous_output(const char* op, const char* name, const View& v, const Device& device,
                     std::initializer_list<int64_t> shape) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(device).shape(shape).contiguous();
  return data<T>(v);
}

}  // namespace detail

// bounds [B, K - 1] and, where given, loss [B] and share [B, K - 1] are written; see interval/interval_margin.h.
inline void margin_bounds(const View& center, const View& radius, const View& weight, const OptionalView& bias,
                          const View& labels, const View& bounds, const OptionalView& loss, const OptionalView& share) {
  const char* op = "margin_bounds";
  Argument(op, "center", center).dims(2);
  Argument(op, "weight", weight).dims(2);
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    auto args = detail::margin_bounds_args<T>(op, center, radius, weight, labels);
    const Device& device = center.device;
    if (bias) args.bias = detail::contiguous_output<T>(op, "bias", *bias, device, {args.classes});
    args.bounds = detail::contiguous_output<Acc>(op, "bounds", bounds, device, {args.batch, args.classes - 1});
    if (loss.has_value() != share.has_value()) fail(op, ": loss and share go together");
    if (loss) {
      args.loss = detail::contiguous_output<Acc>(op, "loss", *loss, device, {args.batch});
      args.share = detail::contiguous_output<Acc>(op, "share", *share, device, {args.batch, args.classes - 1});
    }
    WARPUP_RUN(margin_bounds, T, device, args);
  });
}

// Gradients of the shapes of center, radius, weight and [K] are written.
inline void margin_bounds_backward(const View& center, const View& radius, const View& weight, const View& labels,
                                   const OptionalView& share, const OptionalView& grad_bounds,
                                   const OptionalView& grad_loss, const View& grad_center, const View& grad_radius,
                                   const View& grad_weight, const View& grad_bias) {
  const char* op = "margin_bounds_backward";
  Argument(op, "center", center).dims(2);
  Argument(op, "weight", weight).dims(2);
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    MarginBoundsBackwardArgs<T> args{};
    auto& f = args.forward = detail::margin_bounds_args<T>(op, center, radius, weight, labels);
    const auto contiguous = [&]<class V>(const char* name, const View& v, std::initializer_list<int64_t> shape) {
      return detail::contiguous_output<V>(op, name, v, center.device, shape);
    };
    using Acc = acc_t<T>;
    if (grad_bounds) {
      args.grad_bounds = contiguous.template operator()<Acc>("grad_bounds", *grad_bounds, {f.batch, f.classes - 1});
    }
    if (grad_loss) {
      if (!share) fail(op, ": grad_loss needs the forward's share");
      f.share = contiguous.template operator()<Acc>("share", *share, {f.batch, f.classes - 1});
      const Argument arg(op, "grad_loss", *grad_loss);
      arg.dtype({dtype_of<Acc>()}).on(center.device).shape({f.batch});
      args.grad_loss = data<const Acc>(*grad_loss), args.grad_loss_step = grad_loss->strides[0];
    }
    args.grad_center = contiguous.template operator()<T>("grad_center", grad_center, {f.batch, f.width});
    args.grad_radius = contiguous.template operator()<T>("grad_radius", grad_radius, {f.batch, f.width});
    args.grad_weight = contiguous.template operator()<T>("grad_weight", grad_weight, {f.classes, f.width});
    args.grad_bias = contiguous.template operator()<T>("grad_bias", grad_bias, {f.classes});
    WARPUP_RUN(margin_bounds_backward, T, center.device, args);
  });
}

}  // namespace warpup
