#include "interval/margin_bounds_check.h"

#include "interval/margin_bounds.h"
#include "interval/operands.h"

namespace warpup {
namespace {

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
  const Argument arg(op, "labels", labels);
  arg.dtype({DType::i64}).on(center.device).shape({args.batch}).contiguous().indices(args.classes);
  args.labels = data<const int64_t>(labels);
  return args;
}

}  // namespace

void margin_bounds(const View& center, const View& radius, const View& weight, const OptionalView& bias,
                   const View& labels, const View& bounds, const OptionalView& loss, const OptionalView& share) {
  const char* op = "margin_bounds";
  Argument(op, "center", center).dims(2);
  Argument(op, "weight", weight).dims(2);
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    auto args = margin_bounds_args<T>(op, center, radius, weight, labels);
    const Device& device = center.device;
    if (bias) args.bias = values<T>(op, "bias", *bias, {args.classes}, device);
    args.bounds = values<Acc>(op, "bounds", bounds, {args.batch, args.classes - 1}, device);
    if (loss.has_value() != share.has_value()) fail(op, ": loss and share go together");
    if (loss) {
      args.loss = values<Acc>(op, "loss", *loss, {args.batch}, device);
      args.share = values<Acc>(op, "share", *share, {args.batch, args.classes - 1}, device);
    }
    WARPUP_RUN(margin_bounds, T, device, args);
  });
}

void margin_bounds_backward(const View& center, const View& radius, const View& weight, const View& labels,
                            const OptionalView& share, const OptionalView& grad_bounds, const OptionalView& grad_loss,
                            const View& grad_center, const View& grad_radius, const View& grad_weight,
                            const View& grad_bias) {
  const char* op = "margin_bounds_backward";
  Argument(op, "center", center).dims(2);
  Argument(op, "weight", weight).dims(2);
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    MarginBoundsBackwardArgs<T> args{};
    auto& f = args.forward = margin_bounds_args<T>(op, center, radius, weight, labels);
    const Device& device = center.device;
    using Acc = acc_t<T>;
    if (grad_bounds) {
      args.grad_bounds = values<Acc>(op, "grad_bounds", *grad_bounds, {f.batch, f.classes - 1}, device);
    }
    if (grad_loss) {
      if (!share) fail(op, ": grad_loss needs the forward's share");
      f.share = values<Acc>(op, "share", *share, {f.batch, f.classes - 1}, device);
      const Argument arg(op, "grad_loss", *grad_loss);
      arg.dtype({dtype_of<Acc>()}).on(center.device).shape({f.batch});
      args.grad_loss = data<const Acc>(*grad_loss), args.grad_loss_step = grad_loss->strides[0];
    }
    args.grad_center = values<T>(op, "grad_center", grad_center, {f.batch, f.width}, device);
    args.grad_radius = values<T>(op, "grad_radius", grad_radius, {f.batch, f.width}, device);
    args.grad_weight = values<T>(op, "grad_weight", grad_weight, {f.classes, f.width}, device);
    args.grad_bias = values<T>(op, "grad_bias", grad_bias, {f.classes}, device);
    WARPUP_RUN(margin_bounds_backward, T, center.device, args);
  });
}

}  // namespace warpup
