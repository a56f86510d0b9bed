#include "interval/interval_linear_check.h"

#include "interval/interval_linear.h"
#include "interval/operands.h"

namespace warpup {
namespace {

// b_center, of which a_center gives the width.
template <class T>
const T* other_center(const char* op, const View& b_center, const View& a_center) {
  Argument(op, "b_center", b_center).dtype({a_center.dtype}).on(a_center.device).dims(2).contiguous();
  if (b_center.sizes[1] == a_center.sizes[1]) return data<const T>(b_center);
  fail(op, ": b_center must be as wide as a_center, ", a_center.sizes[1]);
}

}  // namespace

void interval_linear_exact(const View& a_center, const View& a_radius, const View& b_center, const View& b_radius,
                           const View& shift, const View& excess) {
  const char* op = "interval_linear_exact";
  Argument(op, "a_center", a_center).dims(2).contiguous();
  dispatch_wide(op, "a_center", a_center.dtype, [&]<class T>() {
    const Device& device = a_center.device;
    const T* center = other_center<T>(op, b_center, a_center);
    const int64_t rows = a_center.sizes[0], columns = b_center.sizes[0];
    const IntervalLinearExactArgs<T> args{
        .rows = rows,
        .columns = columns,
        .width = a_center.sizes[1],
        .a_center = data<const T>(a_center),
        .a_radius = like_center<const T>(op, "a_radius", a_radius, a_center),
        .b_center = center,
        .b_radius = like_center<const T>(op, "b_radius", b_radius, b_center),
        .shift = values<T>(op, "shift", shift, {rows, columns}, device),
        .excess = values<T>(op, "excess", excess, {rows, columns}, device),
    };
    WARPUP_RUN(interval_linear_exact, T, device, args);
  });
}

void interval_linear_exact_backward(const View& a_center, const View& a_radius, const View& b_center,
                                    const View& b_radius, const View& grad_shift, const View& grad_excess,
                                    bool transposed, const View& out_center, const View& out_radius) {
  const char* op = "interval_linear_exact_backward";
  Argument(op, "a_center", a_center).dims(2).contiguous();
  dispatch_wide(op, "a_center", a_center.dtype, [&]<class T>() {
    const Device& device = a_center.device;
    const T* center = other_center<T>(op, b_center, a_center);
    const int64_t rows = a_center.sizes[0], columns = b_center.sizes[0];
    const int64_t down = transposed ? columns : rows, across = transposed ? rows : columns;
    const IntervalLinearExactBackwardArgs<T> args{
        .rows = rows,
        .columns = columns,
        .width = a_center.sizes[1],
        .a_center = data<const T>(a_center),
        .a_radius = like_center<const T>(op, "a_radius", a_radius, a_center),
        .b_center = center,
        .b_radius = like_center<const T>(op, "b_radius", b_radius, b_center),
        .grad_shift = values<const T>(op, "grad_shift", grad_shift, {down, across}, device),
        .grad_excess = values<const T>(op, "grad_excess", grad_excess, {down, across}, device),
        .transposed = transposed,
        .out_center = like_center<T>(op, "out_center", out_center, a_center),
        .out_radius = like_center<T>(op, "out_radius", out_radius, a_center),
    };
    WARPUP_RUN(interval_linear_exact_backward, T, device, args);
  });
}

void interval_linear_sign(const View& gradient, const View& weight, const OptionalView& base) {
  const char* op = "interval_linear_sign_";
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
    const IntervalLinearSignArgs<T> args{gradient.numel(), data<const T>(weight), data<const T>(base),
                                         data<T>(gradient)};
    WARPUP_RUN(interval_linear_sign, T, gradient.device, args);
  });
}

}  // namespace warpup
