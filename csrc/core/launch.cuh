// The only place where a kernel is launched. One call form serves nvcc and the tests' host executor, so no `.cu` file
// needs to know which of the two compiles it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace warpup {

__host__ __device__ constexpr int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the caller's next, unrelated check would report this error again
  throw std::runtime_error(std::string("warpup: ") + what + ": CUDA error " + std::to_string(status) + ", " +
                           cudaGetErrorString(status));
}

// Streaming multiprocessors of the current device, asked once per device: the query costs more than a small launch.
inline int sm_count() {
  constexpr int kCached = 64;
  static std::atomic<int> cache[kCached];
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  int count = device < kCached ? cache[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    if (device < kCached) cache[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// Launches `kernel` on `stream` (a cudaStream_t, null for the default one). `name` stands in the error message only.
// A grid with a zero extent launches nothing: an empty tensor is no error. Throws std::runtime_error.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, void* stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument for each parameter of the kernel");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
  if (status == cudaSuccess) return;
  const auto extent = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  check_cuda(status, (std::string(name) + ", grid " + extent(grid) + ", block " + extent(block)).c_str());
}

}  // namespace warpup
