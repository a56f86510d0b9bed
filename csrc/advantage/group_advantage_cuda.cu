// One launch whatever the sizes: a team of lanes takes a small group; the groups of a block that are too large for its
// teams are then taken by the whole block, one after another.
#include <algorithm>

#include "advantage/group_advantage_math.h"
#include "core/launch.cuh"
#include "core/reduce.cuh"

namespace warpup {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;            // a small group's team: eight responses a question are usual
constexpr int64_t kSmallRows = 128;  // 16 rows a lane; a group with more goes to the block

template <int kSize>
struct Lanes {
  template <class T>
  using Sum = T;
  static constexpr int size = kSize;
  int rank;
  template <class V, class Op>
  __device__ __forceinline__ V reduce(V value, Op op) const {
    if constexpr (kSize > 32) {
      return block_reduce<kSize>(value, op);
    } else {
#pragma unroll
      for (int lane_mask = kSize / 2; lane_mask > 0; lane_mask /= 2) value = op(value, shuffle_xor(value, lane_mask));
      return value;
    }
  }
};

struct Range {
  int64_t begin, end;
  __device__ int64_t size() const { return end - begin; }
};

// Offsets are clamped so that any contents are safe, and that the groups together cover all rows.
template <class T>
__device__ __forceinline__ Range range_of(const GroupAdvantageArgs<T>& args, int64_t g) {
  if (g >= args.groups) return {0, 0};
  if (args.group_size > 0) return {g * args.group_size, (g + 1) * args.group_size};
  const auto bounded = [&](int64_t at) { return at < 0 ? 0 : at > args.rows ? args.rows : at; };
  return {g == 0 ? 0 : bounded(args.offsets[g]), g == args.groups - 1 ? args.rows : bounded(args.offsets[g + 1])};
}

template <class T, int kTeam>
__global__ __launch_bounds__(kThreads, 2) void group_advantage_kernel(const GroupAdvantageArgs<T> args) {
  constexpr int kTeams = kThreads / kTeam;
  const int64_t first = int64_t(blockIdx.x) * kTeams;
  const auto large = [](Range range) { return kTeams == 1 || range.size() > kSmallRows; };
  if constexpr (kTeams > 1) {
    const int64_t g = first + threadIdx.x / kTeam;
    Range mine = range_of(args, g);
    const bool skipped = large(mine) || g >= args.groups;
    if (skipped) mine = {0, 0};  // still takes part in the shuffles of its warp
    group_advantage_of(args, g, mine.begin, mine.end, !skipped, Lanes<kTeam>{int(threadIdx.x % kTeam)});
  }
  for (int t = 0; t < kTeams; ++t) {
    const Range range = range_of(args, first + t);  // the same for the whole block
    if (first + t >= args.groups || !large(range)) continue;
    group_advantage_of(args, first + t, range.begin, range.end, true, Lanes<kThreads>{int(threadIdx.x)});
  }
}

template <class T, int kTeam>
void run(const GroupAdvantageArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.groups, kThreads / kTeam)));
  launch("group_advantage", group_advantage_kernel<T, kTeam>, grid, dim3(kThreads), stream, args);
}

}  // namespace

template <class T>
void group_advantage_cuda(const GroupAdvantageArgs<T>& args, void* stream) {
  // Of ragged groups only the mean size is known here; the kernel copes with the others.
  const int64_t size = args.group_size > 0 ? args.group_size : args.rows / std::max<int64_t>(args.groups, 1);
  size <= kSmallRows ? run<T, kLanes>(args, stream) : run<T, kThreads>(args, stream);
}

#define INSTANTIATE(T) template void group_advantage_cuda<T>(const GroupAdvantageArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
