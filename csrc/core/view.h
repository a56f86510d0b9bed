// A strided array as any framework hands it over, and the checks that every entry makes before work begins.
// Entries (<family>/<op>_check.h) are written once on views; the torch ops and the DLPack / NumPy module both call
// them.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/types.h"

namespace warpup {

struct Device {
  bool cuda = false;
  int32_t index = 0;
  void* stream = nullptr;  // CUDA: the stream that the caller works on
  bool same(const Device& other) const { return cuda == other.cuda && index == other.index; }
};

struct View {
  static constexpr int kMaxDims = 8;
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  int dims = 0;
  std::array<int64_t, kMaxDims> sizes{}, strides{};  // strides in elements

  int64_t count(int first_dims) const {
    int64_t n = 1;
    for (int d = 0; d < first_dims; ++d) n *= sizes[d];
    return n;
  }
  int64_t numel() const { return count(dims); }
};

using OptionalView = std::optional<View>;

inline const char* name_of(DType t) {
  constexpr const char* names[] = {"float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8/bool"};
  return names[static_cast<int>(t)];
}

inline std::string shape_of(const View& v, int dims = -1) {
  std::ostringstream out;
  out << '(';
  for (int d = 0; d < (dims < 0 ? v.dims : dims); ++d) out << (d ? ", " : "") << v.sizes[d];
  out << ')';
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Names the op and the argument once, then states facts about it: Argument("token_logprob", "targets", v).dtype(...)
class Argument {
 public:
  Argument(const char* op, const char* name, const View& view) : op_(op), name_(name), v_(view) {}

  const Argument& dtype(std::initializer_list<DType> allowed) const {
    for (DType t : allowed) {
      if (v_.dtype == t) return *this;
    }
    std::ostringstream expected;
    for (DType t : allowed) expected << (expected.tellp() > 0 ? ", " : "") << name_of(t);
    fail(op_, ": ", name_, " must be ", expected.str(), ", got ", name_of(v_.dtype));
  }

  const Argument& dims(int expected) const {
    if (v_.dims == expected) return *this;
    fail(op_, ": ", name_, " must have ", expected, " dimensions, got shape ", shape_of(v_));
  }

  const Argument& on(const Device& device) const {
    if (v_.device.same(device)) return *this;
    fail(op_, ": ", name_, " is on ", device_name(v_.device), ", expected ", device_name(device),
         " like the first argument");
  }

  const Argument& shape(std::initializer_list<int64_t> expected) const {
    bool ok = v_.dims == static_cast<int>(expected.size());
    int d = 0;
    for (int64_t n : expected) ok = ok && v_.sizes[d++] == n;
    if (ok) return *this;
    std::ostringstream want;
    for (int64_t n : expected) want << (want.tellp() > 0 ? ", " : "") << n;
    fail(op_, ": ", name_, " must have shape (", want.str(), "), got ", shape_of(v_));
  }

  // The same leading dimensions as `other` has, and nothing after them.
  const Argument& shape_like(const View& other, int first_dims) const {
    bool ok = v_.dims == first_dims;
    for (int d = 0; ok && d < first_dims; ++d) ok = v_.sizes[d] == other.sizes[d];
    if (!ok) fail(op_, ": ", name_, " must have shape ", shape_of(other, first_dims), ", got ", shape_of(v_));
    return *this;
  }

  const Argument& contiguous() const {
    int64_t step = 1;
    for (int d = v_.dims - 1; d >= 0; --d) {
      if (v_.sizes[d] != 1 && v_.strides[d] != step && v_.numel() > 0) {
        fail(op_, ": ", name_, " must be contiguous; call .contiguous() on it");
      }
      step *= v_.sizes[d];
    }
    return *this;
  }

  // Every entry of a contiguous int64 array is an index in [0, limit). Not looked at on CUDA, where that would
  // synchronize: kernels cope with any contents there.
  void indices(int64_t limit) const {
    if (v_.device.cuda) return;
    const auto* index = static_cast<const int64_t*>(v_.data);
    for (int64_t i = 0, n = v_.numel(); i < n; ++i) {
      if (index[i] < 0 || index[i] >= limit) {
        fail(op_, ": ", name_, "[", i, "] = ", index[i], " is outside [0, ", limit, ")");
      }
    }
  }

  // Folds the leading dimensions into rows of at most two strided levels.
  Rows rows(int first_dims) const {
    Rows out{v_.count(first_dims), 1, 0, 0};
    bool inner_open = true, any = false;
    int64_t expected = 0;
    for (int d = first_dims - 1; d >= 0; --d) {
      const int64_t n = v_.sizes[d], stride = v_.strides[d];
      if (n == 1) continue;
      if (!any) {
        out.inner = n, out.stride_inner = stride;
        any = true;
      } else if (inner_open && stride == expected) {
        out.inner *= n;
      } else if (inner_open || stride == expected) {
        if (inner_open) out.stride_outer = stride;
        inner_open = false;
      } else {
        fail(op_, ": the leading dimensions of ", name_, " (shape ", shape_of(v_),
             ") cannot be walked with two strides; call .contiguous() on it");
      }
      expected = n * stride;
    }
    return out;
  }

  void unit_stride_last() const {
    if (v_.dims == 0) fail(op_, ": ", name_, " must have at least 1 dimension, got a scalar");
    const int last = v_.dims - 1;
    if (v_.sizes[last] > 1 && v_.strides[last] != 1 && v_.numel() > 0) {
      fail(op_, ": the last dimension of ", name_, " must have stride 1, got ", v_.strides[last],
           "; call .contiguous() on it");
    }
  }

  static std::string device_name(const Device& d) { return d.cuda ? "cuda:" + std::to_string(d.index) : "cpu"; }

 private:
  const char* op_;
  const char* name_;
  const View& v_;
};

}  // namespace warpup
