// The pool of a process without torch: OpenMP where the compiler has it, else threads that live for one call (cheap
// beside a loop that is worth sharing out, and nothing to lose in a fork).
#include <algorithm>

#include "core/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#else
#include <thread>
#include <vector>
#endif

namespace warpup {
namespace {

void run(int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int64_t n = end - begin, enough = (n + grain - 1) / grain;
#ifdef _OPENMP
  const int64_t ranges = omp_in_parallel() ? 1 : std::min<int64_t>(omp_get_max_threads(), enough);
#else
  static thread_local bool inside = false;
  const int64_t ranges = inside ? 1 : std::min<int64_t>(std::thread::hardware_concurrency(), enough);
#endif
  if (ranges <= 1) return body(context, begin, end);
  const auto range = [&](int64_t c) { body(context, begin + n * c / ranges, begin + n * (c + 1) / ranges); };
#ifdef _OPENMP
#pragma omp parallel for num_threads(ranges) schedule(static)
  for (int64_t c = 0; c < ranges; ++c) range(c);
#else
  const auto work = [&](int64_t c) {
    inside = true;
    range(c);
    inside = false;
  };
  std::vector<std::thread> others;
  for (int64_t c = 1; c < ranges; ++c) others.emplace_back(work, c);
  work(0);
  for (std::thread& other : others) other.join();
#endif
}

#ifdef _OPENMP
constexpr ThreadPool kDefault{"OpenMP", run};
#else
constexpr ThreadPool kDefault{"std::thread", run};
#endif

}  // namespace

std::atomic<const ThreadPool*> thread_pool{&kDefault};

}  // namespace warpup
