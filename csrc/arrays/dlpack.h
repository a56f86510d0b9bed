// Python arrays to views, for the pybind11 module: anything that speaks DLPack (torch, CuPy, JAX, NumPy ...).
// Fast path: the exchange API that a type may carry (torch >= 2.10: two tensors and the stream in about .2 us).
#pragma once

#include <dlpack/dlpack.h>
#include <pybind11/pybind11.h>

#include <string>

#include "core/view.h"

namespace warpup {

inline DType dtype_from(const DLDataType& t) {
  if (t.lanes == 1) {
    switch (t.code) {
      case kDLFloat:
        if (t.bits == 64) return DType::f64;
        if (t.bits == 32) return DType::f32;
        if (t.bits == 16) return DType::f16;
        break;
      case kDLBfloat:
        if (t.bits == 16) return DType::bf16;
        break;
      case kDLInt:
        if (t.bits == 64) return DType::i64;
        if (t.bits == 32) return DType::i32;
        break;
      case kDLUInt:
      case kDLBool:
        if (t.bits == 8) return DType::u8;
        break;
    }
  }
  fail("arrays must be float64, float32, float16, bfloat16, int64, int32, uint8 or bool; got DLPack type code ",
       int(t.code), " with ", int(t.bits), " bits");
}

inline View view_of(const DLTensor& t) {
  View v;
  v.dtype = dtype_from(t.dtype);
  v.dims = t.ndim;
  if (v.dims > View::kMaxDims) fail("arrays may have at most ", View::kMaxDims, " dimensions, got ", v.dims);
  switch (t.device.device_type) {
    case kDLCPU:
    case kDLCUDAHost:
      break;
    case kDLCUDA:
    case kDLCUDAManaged:
      v.device.cuda = true;
      v.device.index = t.device.device_id;
      break;
    default:
      fail("warpup has kernels for CPU and CUDA arrays only, got DLPack device type ", int(t.device.device_type));
  }
  int64_t step = 1;
  for (int d = v.dims - 1; d >= 0; --d) {
    v.sizes[d] = t.shape[d];
    v.strides[d] = t.strides ? t.strides[d] : step;
    step *= t.shape[d];
  }
  if (t.data) {
    v.data = static_cast<char*>(t.data) + t.byte_offset;
  } else if (v.numel() > 0) {
    fail("an array of shape ", shape_of(v), " has no memory (a fake or meta tensor?)");
  }
  return v;
}

// A view, whether its memory may only be read, and what keeps it alive during the call.
struct __attribute__((visibility("hidden"))) Borrowed {
  View view;
  bool read_only = false;
  pybind11::object owner;  // a consumed capsule, where the producer has no exchange API
};

inline const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static PyTypeObject* cached_type = nullptr;  // one entry is enough: a caller uses one framework (the GIL guards it)
  static const DLPackExchangeAPI* cached_api = nullptr;
  if (type == cached_type) return cached_api;
  const DLPackExchangeAPI* api = nullptr;
  const auto attribute =
      pybind11::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", pybind11::none());
  if (PyCapsule_CheckExact(attribute.ptr())) {
    api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(attribute.ptr(), "dlpack_exchange_api"));
    while (api && api->header.version.major > DLPACK_MAJOR_VERSION) {
      api = reinterpret_cast<const DLPackExchangeAPI*>(api->header.prev_api);
    }
    if (!api) PyErr_Clear();
  }
  Py_INCREF(type);  // so that the cached address cannot come to mean another type
  Py_XDECREF(cached_type);
  cached_type = type;
  return cached_api = api;
}

inline Borrowed borrow(pybind11::handle array) {
  namespace py = pybind11;
  Borrowed out;
  const DLPackExchangeAPI* api = exchange_api(Py_TYPE(array.ptr()));
  if (api && api->dltensor_from_py_object_no_sync) {
    DLTensor tensor;
    if (api->dltensor_from_py_object_no_sync(array.ptr(), &tensor) != 0) throw py::error_already_set();
    out.view = view_of(tensor);
    if (out.view.device.cuda && api->current_work_stream &&
        api->current_work_stream(kDLCUDA, out.view.device.index, &out.view.device.stream) != 0) {
      throw py::error_already_set();
    }
    return out;
  }
  if (!py::hasattr(array, "__dlpack__")) {
    fail("expected an array that speaks DLPack (torch, NumPy, CuPy, JAX), got ",
         py::str(py::type::of(array)).cast<std::string>());
  }
  // Stream -1: the producer does not synchronise; the caller orders its stream against `stream=`.
  const bool cuda = array.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>() == kDLCUDA;
  py::dict asked;
  if (cuda) asked["stream"] = -1;
  // Since 1.0 a producer can say that its memory may only be read; asked for less, NumPy refuses such arrays.
  asked["max_version"] = py::make_tuple(1, 0);
  py::object capsule;
  try {
    capsule = array.attr("__dlpack__")(**asked);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    PyDict_DelItemString(asked.ptr(), "max_version");  // a producer of before 1.0
    capsule = array.attr("__dlpack__")(**asked);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    out.view = view_of(managed->dl_tensor);
    out.read_only = managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY;
  } else {
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    out.view = view_of(managed->dl_tensor);
  }
  out.owner = std::move(capsule);  // not renamed to "used_...": its own destructor gives the memory back
  return out;
}

}  // namespace warpup

namespace pybind11::detail {

template <>
struct type_caster<warpup::View> {
  PYBIND11_TYPE_CASTER(warpup::View, const_name("Array"));
  bool load(handle src, bool converts) {
    if (src.is_none()) return false;
    borrowed_ = warpup::borrow(src);
    if (!converts && borrowed_.read_only) {  // "name"_w
      warpup::fail("an array that is written, ", warpup::name_of(borrowed_.view.dtype), " ",
                   warpup::shape_of(borrowed_.view), ", is read-only; give a copy of it, or one that can be written");
    }
    value = borrowed_.view;
    return true;
  }

 private:
  warpup::Borrowed borrowed_;
};

}  // namespace pybind11::detail
