// The only place where a kernel is launched. One call form serves nvcc and the tests' host executor, so no `.cu` file
// needs to know which of the two compiles it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace warpup {

__host__ __device__ constexpr int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

// What needs no template is compiled once, in launch_cuda.cu: <string> alone costs nvcc two seconds a file.
void check_cuda(cudaError_t status, const char* what);  // throws std::runtime_error
void check_launch(cudaError_t status, const char* name, dim3 grid, dim3 block);

// Streaming multiprocessors of the current device.
int sm_count();

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
  check_launch(cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...), name, grid, block);
}

}  // namespace warpup
