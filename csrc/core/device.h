// Makes a GPU current for the rest of the full expression or scope, then the former one again.
#pragma once

namespace warpup {

class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = -1;  // -1: nothing to restore
};

}  // namespace warpup
