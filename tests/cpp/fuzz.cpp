// Sanitizer driver: the CPU kernels through their entries (csrc/<family>/<op>_check.h) on random shapes, strides and
// dtypes, under AddressSanitizer and UBSan, against plain loops in double. No Python, no torch.
//
//   fuzz [--seed N] [--count N]      prints `N passed, N failed` last
//
// A family adds a fuzz_<family>.h with one function for each op, and a line in kOps.
#include "fuzz.h"

#include "core/parallel.h"
#include "fuzz_advantage_tokens.h"
#include "fuzz_interval_activation.h"
#include "fuzz_interval_margin.h"
#include "fuzz_logprob.h"
#include "fuzz_logprob_divergence.h"
#include "fuzz_logprob_policy.h"
#include "fuzz_moe.h"
#include "fuzz_moe_experts.h"
#include "fuzz_reflection.h"

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

namespace fuzz {

constexpr void (*kOps[])() = {
    token_logprob,
    divergence,
    topk_divergence,
    logarithms,
    policy_loss,
    group_plan,
    group_advantage,
    gae,
    role_advantage,
    masked_whiten,
    tree_advantage,
    apply_schedule,
    sample_step,
    moe_glu,
    grouped_product,
    moe,
    route,
    margin_bounds,
    interval_activation,
    interval_softmax,
};

}  // namespace fuzz

int main(int argc, char** argv) {
  uint64_t seed = 0, count = 2000;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if ((option != "--seed" && option != "--count") || i + 1 == argc) {
      std::fprintf(stderr, "usage: %s [--seed N] [--count N]\n", argv[0]);
      return 2;
    }
    (option == "--seed" ? seed : count) = std::stoull(argv[++i]);
  }
  warpup::thread_pool = &kThreads;
  for (fuzz::seed = seed; fuzz::seed < seed + count; ++fuzz::seed) {
    fuzz::engine.seed(fuzz::seed);
    fuzz::threads = 1 + static_cast<int>(fuzz::below(4));
    for (const auto op : fuzz::kOps) op();
  }
  std::printf("%d passed, %d failed\n", fuzz::passed, fuzz::failed);
  return fuzz::failed != 0;
}
