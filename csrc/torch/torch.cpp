#include "torch/torch.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <array>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/parallel.h"

// Null on a CPU build of torch, bound by the loader on a CUDA build. Apple's linker takes no weak symbol that is nowhere
// defined, and there is no CUDA.
#ifdef __APPLE__
constexpr AOTITorchError (*aoti_torch_get_current_cuda_stream)(int32_t, void**) = nullptr;
#else
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace warpup {

namespace {

namespace headeronly = torch::headeronly;
using headeronly::ScalarType;

DType dtype_from(ScalarType t) {
  switch (t) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Long:
      return DType::i64;
    case ScalarType::Int:
      return DType::i32;
    case ScalarType::Byte:
    case ScalarType::Bool:
      return DType::u8;
    default:
      fail("warpup ops take float64, float32, bfloat16, float16, int64, int32, uint8 or bool tensors");
  }
}

// The C interface's number for a dtype.
int32_t dtype_to(DType t) {
  static const int32_t types[] = {aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16(), aoti_torch_dtype_int64(),   aoti_torch_dtype_int32(),
                                  aoti_torch_dtype_uint8()};
  return types[static_cast<int>(t)];
}

constexpr int64_t kBytes[] = {8, 4, 2, 2, 8, 4, 1};  // of a number of each DType

void ask_for_huge_pages(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may fail
#endif
}

// Kernels share torch's threads from the moment that this library is loaded.
constexpr ThreadPool kTorch{
    "torch",
    [](int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
      torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { body(context, first, last); });
    }};
[[maybe_unused]] const auto kFormer = thread_pool.exchange(&kTorch);

}  // namespace

View view(const Tensor& tensor) {
  View v;
  v.data = const_cast<void*>(tensor.const_data_ptr());
  v.dtype = dtype_from(tensor.scalar_type());
  v.device.cuda = tensor.is_cuda();
  if (v.device.cuda) {
    v.device.index = tensor.get_device_index();
    const auto current_stream = aoti_torch_get_current_cuda_stream;
    if (current_stream == nullptr) fail("this torch has no CUDA, yet the tensor is on a GPU");
    current_stream(v.device.index, &v.device.stream);
  } else if (!tensor.is_cpu()) {
    fail("warpup has kernels for CPU and CUDA tensors only");
  }
  v.dims = static_cast<int>(tensor.dim());
  if (v.dims > View::kMaxDims) fail("warpup ops take at most ", View::kMaxDims, " dimensions, got ", v.dims);
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (int d = 0; d < v.dims; ++d) v.sizes[d] = sizes[d], v.strides[d] = strides[d];
  return v;
}

Tensor empty(const std::vector<int64_t>& sizes, DType dtype, const Tensor& like) {
  // Not torch::stable::empty: that looks the op up by its name, which is most of what a call on a few numbers costs.
  std::array<int64_t, View::kMaxDims> strides;
  const int dims = static_cast<int>(sizes.size());
  if (dims > View::kMaxDims) fail("warpup ops make at most ", View::kMaxDims, " dimensions, got ", dims);
  int64_t step = 1, bytes = kBytes[static_cast<int>(dtype)];
  for (int d = dims - 1; d >= 0; --d) strides[d] = step, step *= std::max<int64_t>(sizes[d], 1), bytes *= sizes[d];
  int32_t device = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype_to(dtype), device,
                                                         like.get_device_index(), &made));
  Tensor out(made);
  if (bytes >= (4 << 20) && like.is_cpu()) ask_for_huge_pages(out.mutable_data_ptr(), bytes);
  return out;
}

std::vector<int64_t> sizes_of(const Tensor& like, int64_t dropped, std::initializer_list<int64_t> extra) {
  const auto sizes = like.sizes();
  std::vector<int64_t> out(sizes.begin(), sizes.end() - std::min<int64_t>(dropped, like.dim()));
  out.insert(out.end(), extra);
  return out;
}

DType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? DType::f64 : DType::f32;
}

}  // namespace warpup
