// From views of arrays to `core/per_row.h`: the checks that every argument with one value a row goes through.
#pragma once

#include "core/dispatch.h"
#include "core/option_check.h"
#include "core/per_row.h"

namespace warpup {

// What a caller gives where a number may differ from row to row.
struct PerRowOrScalarView {
  OptionalView each;  // float32
  double scalar = 0;  // where `each` is not given
};

// `v` must have the dimensions of `like` but its last, its device, and the dtype of T; the rows may be strided.
template <class T>
PerRow<T> per_row(const char* op, const char* name, const OptionalView& v, const View& like) {
  if (!v) return {};
  const Argument argument(op, name, *v);
  argument.dtype({dtype_of<T>()}).on(like.device).shape_like(like, like.dims - 1);
  return {data<const T>(*v), argument.rows(like.dims - 1)};
}

// The same, or of one dimension more: several values a row.
template <class T>
PerRowList<T> per_row_list(const char* op, const char* name, const OptionalView& v, const View& like) {
  if (!v) return {};
  const int lead = like.dims - 1;
  bool fits = v->dims == lead || v->dims == lead + 1;
  for (int d = 0; fits && d < lead; ++d) fits = v->sizes[d] == like.sizes[d];
  if (!fits) {
    std::string several = shape_of(like, lead);
    several.replace(several.size() - 1, 1, lead ? ", K)" : "K)");
    fail(op, ": ", name, " must have shape ", shape_of(like, lead), ", or ", several, " for K values a row, got ",
         shape_of(*v));
  }
  View rows = *v;  // its leading dimensions
  rows.dims = lead;
  const PerRow<T> first = per_row<T>(op, name, rows, like);
  if (v->dims == lead) return {first.data, first.rows};
  return {first.data, first.rows, v->sizes[lead], v->strides[lead]};
}

inline PerRowOrScalar per_row(const char* op, const char* name, const PerRowOrScalarView& v, const View& like) {
  return {per_row<float>(op, name, v.each, like), v.scalar};
}

// Temperatures are above 0, and so are their inverses in Acc, the type that is computed in. Those in the memory of a GPU
// are not looked at, which would synchronize: there a row whose temperature is not gives NaN.
template <class Acc>
PerRowOrScalar temperature_of(const char* op, const PerRowOrScalarView& v, const View& like) {
  const PerRowOrScalar temperature = per_row(op, "temperature", v, like);
  if (!temperature.each) divisor_option<Acc>(op, "temperature", v.scalar);
  for (int64_t r = 0; temperature.each && !like.device.cuda && r < temperature.each.rows.count; ++r) {
    divisor_option<Acc>(op, "temperature", temperature.each[r], " in row ", r);
  }
  return temperature;
}

// A contiguous output with one value a row; null where it is not asked for.
template <class T>
T* row_output(const char* op, const char* name, const OptionalView& v, const View& like) {
  if (!v) return nullptr;
  Argument(op, name, *v).dtype({dtype_of<T>()}).on(like.device).shape_like(like, like.dims - 1).contiguous();
  return data<T>(*v);
}

// A contiguous array that holds `count` values for each row, in whatever shape.
template <class T>
T* row_state(const char* op, const char* name, const View& v, const View& like, int64_t count) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(like.device).contiguous();
  if (v.numel() != count * like.count(like.dims - 1)) {
    fail(op, ": ", name, " must hold ", count, " values a row, got shape ", shape_of(v));
  }
  return data<T>(v);
}

}  // namespace warpup
