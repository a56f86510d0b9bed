#include "moe/moe_gather_check.h"

#include "core/dispatch.h"
#include "moe/moe_gather.h"

namespace warpup {

namespace {

// An array of rows, any stride between them.
template <class T>
const T* matrix(const char* op, const char* name, const View& v, const Device& device, int64_t rows, int64_t width,
                int64_t* stride) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(device).shape({rows, width}).unit_stride_last();
  *stride = v.strides[0];
  return data<const T>(v);
}

template <class T>
T* per_copy(const char* op, const char* name, const OptionalView& v, const View& inverse) {
  if (v) Argument(op, name, *v).dtype({dtype_of<T>()}).on(inverse.device).shape_like(inverse, 2).contiguous();
  return data<T>(v);
}

}  // namespace

void moe_gather(const View& x, const View& permutation, const View& inverse, const OptionalView& weights,
                const OptionalView& y, const View& out, const OptionalView& grad_weights) {
  const char* op = y ? "moe_combine_backward" : "moe_gather";
  Argument(op, "x", x).dims(2);
  Argument(op, "inverse", inverse).dtype({DType::i64}).on(x.device).dims(2).contiguous();
  Argument(op, "permutation", permutation).dtype({DType::i64}).on(x.device).dims(1).contiguous();
  if (y.has_value() != grad_weights.has_value()) fail(op, ": y and grad_weights are given together, or neither");
  dispatch_floating(op, "x", x.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    MoeGatherArgs<T> args{};
    args.tokens = inverse.sizes[0], args.k = inverse.sizes[1];
    args.rows = permutation.sizes[0], args.width = x.sizes[1];
    args.x = matrix<T>(op, "x", x, x.device, args.tokens, args.width, &args.x_stride);
    args.permutation = data<const int64_t>(permutation), args.inverse = data<const int64_t>(inverse);
    args.weights = per_copy<Acc>(op, "weights", weights, inverse);
    if (y) args.y = matrix<T>(op, "y", *y, x.device, args.rows, args.width, &args.y_stride);
    Argument(op, "out", out).dtype({x.dtype}).on(x.device).shape({args.rows, args.width}).contiguous();
    args.out = data<T>(out);
    args.grad_weights = per_copy<Acc>(op, "grad_weights", grad_weights, inverse);
    WARPUP_RUN(moe_gather, T, x.device, args);
  });
}

void moe_combine(const View& y, const OptionalView& weights, const View& inverse, const View& out) {
  const char* op = "moe_combine";
  Argument(op, "y", y).dims(2);
  Argument(op, "inverse", inverse).dtype({DType::i64}).on(y.device).dims(2).contiguous();
  dispatch_floating(op, "y", y.dtype, [&]<class T>() {
    MoeCombineArgs<T> args{};
    args.tokens = inverse.sizes[0], args.k = inverse.sizes[1], args.rows = y.sizes[0], args.width = y.sizes[1];
    args.y = matrix<T>(op, "y", y, y.device, args.rows, args.width, &args.y_stride);
    args.inverse = data<const int64_t>(inverse);
    args.weights = per_copy<acc_t<T>>(op, "weights", weights, inverse);
    Argument(op, "out", out).dtype({y.dtype}).on(y.device).shape({args.tokens, args.width}).contiguous();
    args.out = data<T>(out);
    WARPUP_RUN(moe_combine, T, y.device, args);
  });
}

}  // namespace warpup
