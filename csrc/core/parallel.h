// Loops over threads. The pool is the process's: the ops library hands torch's over when it is loaded, so that
// torch.set_num_threads holds and one process has one pool; without torch it is OpenMP's, or plain threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace warpup {

// Calls body(context, first, last) on disjoint ranges that cover [begin, end), each of at least `grain` items but the
// last. Not called for an empty range.
struct ThreadPool {
  const char* name;
  void (*run)(int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t),
              const void* context);
};

extern std::atomic<const ThreadPool*> thread_pool;  // what it points to lives as long as the process

// Calls body(first, last) on such ranges. A body never throws, and never lets a result depend on where they are cut.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  thread_pool.load(std::memory_order_relaxed)
      ->run(
          begin, end, grain,
          [](const void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); },
          &body);
}

}  // namespace warpup
