// dtype x device, chosen once per call.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace warpup {

// Calls body.template operator()<T>() with the C++ type of a floating dtype.
template <class Body>
void dispatch_floating(const char* op, const char* name, DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::f64:
      return body.template operator()<double>();
    case DType::bf16:
      return body.template operator()<bfloat16>();
    case DType::f16:
      return body.template operator()<float16>();
    default:
      fail(op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", name_of(dtype));
  }
}

// The same for kernels that compute in the type they read; their callers widen 16-bit arrays first.
template <class Body>
void dispatch_wide(const char* op, const char* name, DType dtype, const Body& body) {
  if (dtype == DType::f32) return body.template operator()<float>();
  if (dtype == DType::f64) return body.template operator()<double>();
  fail(op, ": ", name, " must be float32 or float64, got ", name_of(dtype));
}

// Whether WARPUP_RUN takes the CUDA kernel for arrays of this device: on the host executor it always does.
inline bool runs_cuda([[maybe_unused]] const Device& device) {
#if defined(WARPUP_HOST_CUDA)
  return true;
#else
  return device.cuda;
#endif
}

// Runs the kernel that belongs to the device. WARPUP_RUN(token_logprob, T, device, args)
#if defined(WARPUP_HOST_CUDA)  // tests: the CUDA kernel on the host executor, on CPU memory
#define WARPUP_RUN(op, T, device, args) op##_cuda<T>(args, (device).stream)
#elif defined(WARPUP_WITH_CUDA)
#define WARPUP_RUN(op, T, device, args) \
  ((device).cuda ? (DeviceGuard((device).index), op##_cuda<T>(args, (device).stream)) : op##_cpu<T>(args))
#else
#define WARPUP_RUN(op, T, device, args)                                                                            \
  ((device).cuda ? fail(#op ": this build of warpup has no CUDA kernels; put nvcc on PATH and reinstall, `warpup " \
                            "info` shows what is built")                                                           \
                 : op##_cpu<T>(args))
#endif

template <class T>
T* data(const View& v) {
  return static_cast<T*>(v.data);
}
template <class T>
T* data(const OptionalView& v) {
  return v ? static_cast<T*>(v->data) : nullptr;
}

}  // namespace warpup
