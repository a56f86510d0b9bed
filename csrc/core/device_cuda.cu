#include "core/device.h"
#include "core/launch.cuh"

namespace warpup {

DeviceGuard::DeviceGuard(int index) {
  int current = index;
  check_cuda(cudaGetDevice(&current), "cudaGetDevice");
  if (current == index) return;
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  former_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (former_ >= 0) cudaSetDevice(former_);
}

}  // namespace warpup
