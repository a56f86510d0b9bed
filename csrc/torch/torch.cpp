#include "torch/torch.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

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

// The DType of the C interface's number; -1 for those that no kernel reads.
int dtype_from(int32_t type) {
  static const auto known = [] {
    std::array<int8_t, 64> table;
    table.fill(-1);
    for (int t = 0; t <= int(DType::u8); ++t) table[torch_dtype(DType(t))] = int8_t(t);
    table[aoti_torch_dtype_bool()] = int8_t(DType::u8);
    return table;
  }();
  return type >= 0 && type < int32_t(known.size()) ? known[type] : -1;
}

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

int32_t torch_dtype(DType t) {
  static const int32_t types[] = {aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16(), aoti_torch_dtype_int64(),   aoti_torch_dtype_int32(),
                                  aoti_torch_dtype_uint8()};
  return types[static_cast<int>(t)];
}

int64_t bytes_of(DType t) {
  constexpr int64_t bytes[] = {8, 4, 2, 2, 8, 4, 1};
  return bytes[static_cast<int>(t)];
}

DType Tensor::dtype() const {
  const int type = dtype_from(asked<int32_t>(aoti_torch_get_dtype));
  if (type < 0) fail("warpup ops take float64, float32, bfloat16, float16, int64, int32, uint8 or bool tensors");
  return DType(type);
}

Device Tensor::device() const {
  Device device;
  const auto type = asked<int32_t>(aoti_torch_get_device_type);
  if (type == aoti_torch_device_type_cpu()) return device;
  if (type != aoti_torch_device_type_cuda()) fail("warpup has kernels for CPU and CUDA tensors only");
  device.cuda = true, device.index = asked<int32_t>(aoti_torch_get_device_index);
  const auto current_stream = aoti_torch_get_current_cuda_stream;
  if (current_stream == nullptr) fail("this torch has no CUDA, yet the tensor is on a GPU");
  current_stream(device.index, &device.stream);
  return device;
}

View view(const Tensor& tensor) {
  View v;
  const void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor.get(), &data));
  v.data = const_cast<void*>(data);
  v.dtype = tensor.dtype();
  v.device = tensor.device();
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  v.dims = static_cast<int>(sizes.size());
  if (v.dims > View::kMaxDims) fail("warpup ops take at most ", View::kMaxDims, " dimensions, got ", v.dims);
  for (int d = 0; d < v.dims; ++d) v.sizes[d] = sizes[d], v.strides[d] = strides[d];
  return v;
}

Tensor empty(const Sizes& sizes, DType dtype, const Tensor& like) {
  // Not torch::stable::empty: that looks the op up by its name, which is most of what a call on a few numbers costs.
  std::array<int64_t, View::kMaxDims> strides;
  int64_t step = 1, bytes = bytes_of(dtype);
  for (int d = sizes.dims - 1; d >= 0; --d) {
    strides[d] = step, step *= std::max<int64_t>(sizes.at[d], 1), bytes *= sizes.at[d];
  }
  const Device device = like.device();
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      sizes.dims, sizes.at.data(), strides.data(), torch_dtype(dtype),
      device.cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(), device.index, &made));
  Tensor out(made);
  if (bytes >= (4 << 20) && !device.cuda) ask_for_huge_pages(view(out).data, bytes);
  return out;
}

Sizes sizes_of(const Tensor& like, int64_t dropped, std::initializer_list<int64_t> extra) {
  const auto sizes = like.sizes();
  Sizes out;
  for (size_t d = 0; d + dropped < sizes.size(); ++d) out.add(sizes[d]);
  for (int64_t n : extra) out.add(n);
  return out;
}

DType accumulator_of(const Tensor& tensor) { return tensor.dtype() == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace warpup
