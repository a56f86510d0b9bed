#include "interval/interval_softmax_check.h"

#include "interval/interval_softmax.h"
#include "interval/operands.h"

namespace warpup {
namespace {

template <class T>
IntervalSoftmaxArgs<T> softmax_args(const char* op, const View& center, const View& radius) {
  IntervalSoftmaxArgs<T> args{};
  if (center.dims == 0) fail(op, ": center must have at least 1 dimension, got a scalar");
  args.rows = center.count(center.dims - 1), args.n = center.sizes[center.dims - 1];
  args.center = like_center<const T>(op, "center", center, center);
  args.radius = like_center<const T>(op, "radius", radius, center);
  return args;
}

}  // namespace

void interval_softmax(const View& center, const View& radius, const View& out_center, const View& out_radius) {
  const char* op = "interval_softmax";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    auto args = softmax_args<T>(op, center, radius);
    args.out_center = like_center<T>(op, "out_center", out_center, center);
    args.out_radius = like_center<T>(op, "out_radius", out_radius, center);
    WARPUP_RUN(interval_softmax, T, center.device, args);
  });
}

void interval_softmax_backward(const View& center, const View& radius, const View& grad_out_center,
                               const View& grad_out_radius, const View& grad_center, const View& grad_radius) {
  const char* op = "interval_softmax_backward";
  dispatch_floating(op, "center", center.dtype, [&]<class T>() {
    IntervalSoftmaxBackwardArgs<T> args{};
    args.forward = softmax_args<T>(op, center, radius);
    args.grad_out_center = like_center<const T>(op, "grad_out_center", grad_out_center, center);
    args.grad_out_radius = like_center<const T>(op, "grad_out_radius", grad_out_radius, center);
    args.grad_center = like_center<T>(op, "grad_center", grad_center, center);
    args.grad_radius = like_center<T>(op, "grad_radius", grad_radius, center);
    WARPUP_RUN(interval_softmax_backward, T, center.device, args);
  });
}

}  // namespace warpup
