// The CPU kernel of moe_plan.
#include <algorithm>
#include <utility>

#include "core/parallel.h"
#include "moe/moe_plan.h"

namespace warpup {

template <class Id>
void moe_plan_cpu(const MoePlanArgs<Id>& args) {
  const int64_t experts = args.experts, size = MoePlanChunks::size(args.copies);
  const int64_t chunks = MoePlanChunks::count(args.copies);
  const auto valid = [experts](Id e) { return e >= 0 && e < experts; };

  // Each chunk counts its copies by expert.
  std::fill(args.permutation, args.permutation + args.rows, -1);
  parallel_for(0, chunks, 8, [&](int64_t first, int64_t last) {
    std::fill(args.chunks + first * experts, args.chunks + last * experts, 0);
    for (int64_t c = first; c < last; ++c) {
      for (int64_t i = c * size; i < std::min(args.copies, (c + 1) * size); ++i) {
        if (valid(args.experts_of[i])) ++args.chunks[c * experts + args.experts_of[i]];
      }
    }
  });

  // What an expert has in the chunks before each, in all, and where its rows begin.
  std::fill(args.counts, args.counts + experts, 0);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t before = args.counts[e];
      args.counts[e] += std::exchange(args.chunks[c * experts + e], before);
    }
  }
  args.offsets[0] = 0;
  for (int64_t e = 0; e < experts; ++e) {
    args.offsets[e + 1] = args.offsets[e] + (args.counts[e] + args.block - 1) / args.block * args.block;
  }

  // Each chunk puts its copies in their places, in their order.
  parallel_for(0, chunks, 8, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      int64_t* at = args.chunks + c * experts;
      for (int64_t i = c * size; i < std::min(args.copies, (c + 1) * size); ++i) {
        const Id e = args.experts_of[i];
        if (valid(e)) {
          const int64_t row = args.offsets[e] + at[e]++;
          args.inverse[i] = row, args.permutation[row] = i;
        } else {
          args.inverse[i] = -1;
        }
      }
    }
  });
}

template void moe_plan_cpu<int64_t>(const MoePlanArgs<int64_t>& args);
template void moe_plan_cpu<int32_t>(const MoePlanArgs<int32_t>& args);

}  // namespace warpup
