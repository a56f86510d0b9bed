// Entry of grouped_product: check every argument, call the kernel.
#pragma once

#include "core/dispatch.h"
#include "moe/grouped_product.h"

namespace warpup {

#ifndef WARPUP_HOST_CUDA  // has a CPU twin only
// offsets: (groups + 1,); see moe/grouped_product.h.
inline void grouped_product(const View& a, const View& b, const View& offsets, const OptionalView& a_rows,
                            const OptionalView& b_rows, bool turned, const View& out) {
  const char* op = "grouped_product";
  Argument(op, "a", a).dtype({DType::bf16}).dims(2).unit_stride_last();
  if (a.device.cuda) fail(op, ": on a GPU, use the library's grouped product");
  const bool weights = b.dims == 2;
  Argument(op, "b", b).dtype({DType::bf16}).on(a.device).dims(weights ? 2 : 3).unit_stride_last();
  Argument(op, "offsets", offsets).dtype({DType::i64}).on(a.device).dims(1).contiguous();
  const int64_t groups = offsets.sizes[0] - 1, width = a.sizes[1], columns = b.sizes[turned ? 1 : b.dims - 1];
  if (groups < 0) fail(op, ": offsets must have groups + 1 entries, got none");
  if (weights && turned) fail(op, ": turned is for b of 3 dimensions, got shape ", shape_of(b));
  if (!weights) Argument(op, "b", b).shape({groups, turned ? columns : width, turned ? width : columns});
  const int64_t rows = a_rows ? a_rows->sizes[0] : a.sizes[0];
  const int64_t* bounds = data<const int64_t>(offsets);
  if (bounds[0] != 0) fail(op, ": offsets must begin with 0, got ", bounds[0]);
  for (int64_t e = 0; e < groups; ++e) {
    if (bounds[e + 1] < bounds[e] || bounds[e + 1] > rows) {
      fail(op, ": offsets must rise from 0 to at most ", rows, ", got ", bounds[e], " and then ", bounds[e + 1]);
    }
  }
  const auto check_rows = [&](const char* name, const OptionalView& at, const View& of) {
    if (!at) {
      if (of.sizes[0] < bounds[groups]) fail(op, ": ", name, " is needed: offsets reach past ", of.sizes[0], " rows");
      return;
    }
    Argument(op, name, *at).dtype({DType::i64}).on(a.device).shape({rows}).contiguous();
    const int64_t* r = data<const int64_t>(at);
    for (int64_t s = bounds[0]; s < bounds[groups]; ++s) {
      if (r[s] < 0 || r[s] >= of.sizes[0]) fail(op, ": ", name, " must hold 0 to ", of.sizes[0] - 1, ", got ", r[s]);
    }
  };
  check_rows("a_rows", a_rows, a);
  if (weights) check_rows("b_rows", b_rows, b);
  if (!weights && b_rows) fail(op, ": b_rows is for the gradient of weights");
  if (weights) {
    Argument(op, "out", out).dtype({DType::bf16}).on(a.device).shape({groups, width, columns}).contiguous();
  } else {
    Argument(op, "out", out).dtype({DType::bf16}).on(a.device).shape({rows, columns}).contiguous();
  }
  grouped_product_cpu({weights, turned, rows, groups, width, columns, data<const bfloat16>(a), data<const bfloat16>(b),
                       a.strides[0], b.strides[b.dims - 2], weights ? 0 : b.strides[0], bounds,
                       data<const int64_t>(a_rows), data<const int64_t>(b_rows), data<bfloat16>(out)});
}
#endif

}  // namespace warpup
