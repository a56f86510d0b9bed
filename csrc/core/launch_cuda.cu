#include <atomic>
#include <stdexcept>
#include <string>

#include "core/launch.cuh"

namespace warpup {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the caller's next, unrelated check would report this error again
  throw std::runtime_error(std::string("warpup: ") + what + ": CUDA error " + std::to_string(status) + ", " +
                           cudaGetErrorString(status));
}

void check_launch(cudaError_t status, const char* name, dim3 grid, dim3 block) {
  if (status == cudaSuccess) return;
  const auto extent = [](dim3 d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  check_cuda(status, (std::string(name) + ", grid " + extent(grid) + ", block " + extent(block)).c_str());
}

// Asked once per device: the query costs more than a small launch.
int sm_count() {
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

}  // namespace warpup
