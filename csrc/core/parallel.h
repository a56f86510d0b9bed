// Threads are the caller's: every binary that links the kernels defines `parallel_for_impl` once (the ops library with
// torch's pool, so that torch.set_num_threads holds; _core with OpenMP; the sanitizer driver with std::thread).
#pragma once

#include <cstdint>
#include <type_traits>

namespace warpup {

void parallel_for_impl(int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t),
                       const void* context);

// Calls body(first, last) on disjoint ranges that cover [begin, end), each of at least `grain` items but the last.
// A body never throws, and never lets a result depend on where the ranges are cut.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  parallel_for_impl(
      begin, end, grain,
      [](const void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); },
      &body);
}

}  // namespace warpup
