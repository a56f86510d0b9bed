// Checks that the entries of the family share; only <op>_check.cpp includes this.
#pragma once

#include "core/dispatch.h"

namespace warpup {

// An array of center's shape, dtype and device, which are already known to be allowed.
template <class T>
T* like_center(const char* op, const char* name, const View& v, const View& center) {
  Argument(op, name, v).dtype({center.dtype}).on(center.device).shape_like(center, center.dims).contiguous();
  return data<T>(v);
}
template <class T>
T* like_center(const char* op, const char* name, const OptionalView& v, const View& center) {
  return v ? like_center<T>(op, name, *v, center) : nullptr;
}

// An array of V in a shape.
template <class V>
V* values(const char* op, const char* name, const View& v, std::initializer_list<int64_t> shape, const Device& device) {
  Argument(op, name, v).dtype({dtype_of<std::remove_const_t<V>>()}).on(device).shape(shape).contiguous();
  return data<V>(v);
}
template <class V>
V* values(const char* op, const char* name, const OptionalView& v, std::initializer_list<int64_t> shape,
          const Device& device) {
  return v ? values<V>(op, name, *v, shape, device) : nullptr;
}

}  // namespace warpup
