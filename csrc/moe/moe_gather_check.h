// Entries of moe_plan, moe_gather and moe_combine: check every argument, choose dtype and device, call the twin.
#pragma once

#include <algorithm>

#include "core/dispatch.h"
#include "moe/moe_gather.h"
#include "moe/moe_plan.h"

namespace warpup {

inline constexpr int64_t kLargestBlock = int64_t(1) << 20;  // no tile has more rows; and nothing overflows

// Rows that moe_plan sorts copies into, in the worst case.
inline int64_t moe_plan_rows(int64_t copies, int64_t experts, int64_t block) {
  if (block < 1 || block > kLargestBlock) fail("moe_plan: block must be 1 to ", kLargestBlock, ", got ", block);
  return (copies + experts * (block - 1)) / block * block;
}

// counts (E,), offsets (E + 1,), permutation (moe_plan_rows,), inverse (T, k) int64 are written; chunks
// (MoePlanChunks::count, E) int64 is scratch.
inline void moe_plan(const View& indices, int64_t block, const View& counts, const View& offsets,
                     const View& permutation, const View& inverse, const View& chunks) {
  const char* op = "moe_plan";
  Argument(op, "indices", indices).dtype({DType::i64, DType::i32}).dims(2).contiguous();
  const Device& device = indices.device;
  const auto run = [&]<class Id>() {
    MoePlanArgs<Id> args{};
    const auto output = [&](const char* name, const View& v, std::initializer_list<int64_t> shape) {
      Argument(op, name, v).dtype({DType::i64}).on(device).shape(shape).contiguous();
      return data<int64_t>(v);
    };
    Argument(op, "counts", counts).dims(1);
    args.copies = indices.numel(), args.experts = counts.sizes[0], args.block = block;
    if (args.experts < 1) fail(op, ": num_experts must be at least 1, got ", args.experts);
    args.rows = moe_plan_rows(args.copies, args.experts, block);
    args.experts_of = data<const Id>(indices);
    args.counts = output("counts", counts, {args.experts});
    args.offsets = output("offsets", offsets, {args.experts + 1});
    args.permutation = output("permutation", permutation, {args.rows});
    args.inverse = output("inverse", inverse, {indices.sizes[0], indices.sizes[1]});
    args.chunks = output("chunks", chunks, {MoePlanChunks::count(args.copies), args.experts});
    for (int64_t i = 0; !device.cuda && i < args.copies; ++i) {  // on a GPU this would synchronise
      const int64_t e = args.experts_of[i];
      if (e < -1 || e >= args.experts) {
        fail(op, ": indices[", i / indices.sizes[1], ", ", i % indices.sizes[1], "] = ", e, " is outside [-1, ",
             args.experts, ")");
      }
    }
    WARPUP_RUN(moe_plan, Id, device, args);
  };
  indices.dtype == DType::i64 ? run.template operator()<int64_t>() : run.template operator()<int32_t>();
}

namespace detail {

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

}  // namespace detail

// out (rows, H) is written, beside y (rows, H) also grad_weights (T, k) in float32 (float64); see moe/moe_gather.h.
inline void moe_gather(const View& x, const View& permutation, const View& inverse, const OptionalView& weights,
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
    args.x = detail::matrix<T>(op, "x", x, x.device, args.tokens, args.width, &args.x_stride);
    args.permutation = data<const int64_t>(permutation), args.inverse = data<const int64_t>(inverse);
    args.weights = detail::per_copy<Acc>(op, "weights", weights, inverse);
    if (y) args.y = detail::matrix<T>(op, "y", *y, x.device, args.rows, args.width, &args.y_stride);
    Argument(op, "out", out).dtype({x.dtype}).on(x.device).shape({args.rows, args.width}).contiguous();
    args.out = data<T>(out);
    args.grad_weights = detail::per_copy<Acc>(op, "grad_weights", grad_weights, inverse);
    WARPUP_RUN(moe_gather, T, x.device, args);
  });
}

// out (T, H) is written.
inline void moe_combine(const View& y, const OptionalView& weights, const View& inverse, const View& out) {
  const char* op = "moe_combine";
  Argument(op, "y", y).dims(2);
  Argument(op, "inverse", inverse).dtype({DType::i64}).on(y.device).dims(2).contiguous();
  dispatch_floating(op, "y", y.dtype, [&]<class T>() {
    MoeCombineArgs<T> args{};
    args.tokens = inverse.sizes[0], args.k = inverse.sizes[1], args.rows = y.sizes[0], args.width = y.sizes[1];
    args.y = detail::matrix<T>(op, "y", y, y.device, args.rows, args.width, &args.y_stride);
    args.inverse = data<const int64_t>(inverse);
    args.weights = detail::per_copy<acc_t<T>>(op, "weights", weights, inverse);
    Argument(op, "out", out).dtype({y.dtype}).on(y.device).shape({args.tokens, args.width}).contiguous();
    args.out = data<T>(out);
    WARPUP_RUN(moe_combine, T, y.device, args);
  });
}

}  // namespace warpup
