// Sanitizer driver: the CPU kernels through their entries (csrc/<family>/<op>_check.h) on random shapes, strides and
// dtypes, under AddressSanitizer and UBSan, against plain loops in double. No Python, no torch.
//
//   fuzz [--seed N] [--count N] [--only NAME]      prints `N passed, N failed` last
//   fuzz --list                                    prints what is fuzzed
//
// A family adds a fuzz_<op>.cpp with FUZZ(op) { ... }; tests/test_binary.py sees to it that no entry is left out.
#include "fuzz.h"

#include <algorithm>

#include "core/parallel.h"

namespace {

// As many threads as the example drew, whatever the machine has.
constexpr warpup::ThreadPool kThreads{
    "fuzz",
    [](int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
      const int64_t step = std::max(grain, (end - begin + fuzz::threads - 1) / fuzz::threads);
      std::vector<std::thread> workers;
      for (int64_t first = begin; first < end; first += step) {
        workers.emplace_back(body, context, first, std::min(end, first + step));
      }
      for (std::thread& worker : workers) worker.join();
    }};

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 0, count = 2000;
  std::string only;
  std::sort(fuzz::examples().begin(), fuzz::examples().end(),
            [](const auto& a, const auto& b) { return std::string(a.name) < b.name; });
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--list") {
      for (const auto& example : fuzz::examples()) std::puts(example.name);
      return 0;
    }
    if ((option != "--seed" && option != "--count" && option != "--only") || i + 1 == argc) {
      std::fprintf(stderr, "usage: %s [--list] [--seed N] [--count N] [--only NAME]\n", argv[0]);
      return 2;
    }
    const std::string value = argv[++i];
    if (option == "--only") {
      only = value;
    } else {
      (option == "--seed" ? seed : count) = std::stoull(value);
    }
  }
  warpup::thread_pool = &kThreads;
  for (fuzz::seed = seed; fuzz::seed < seed + count; ++fuzz::seed) {
    for (const auto& example : fuzz::examples()) {
      if (!only.empty() && only != example.name) continue;
      fuzz::engine.seed(fuzz::seed);  // for each: an example is the same whatever runs beside it
      fuzz::threads = 1 + static_cast<int>(fuzz::below(4));
      example.run();
    }
  }
  std::printf("%d passed, %d failed\n", fuzz::passed, fuzz::failed);
  return fuzz::failed != 0;
}
