// A warp a role: it scans all rows, 32 at a time, and those of other roles leave its baseline as it is.
#include "advantage/role_advantage.h"
#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"

namespace warpup {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ __launch_bounds__(kThreads) void role_advantage_kernel(const RoleAdvantageArgs<T> args) {
  const int64_t role = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (role >= args.count) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const T decay = static_cast<T>(args.decay), fresh = static_cast<T>(1 - args.decay);
  T baseline = args.state[role];  // before the 32 rows
  for (int64_t begin = 0; begin < args.rows; begin += 32) {
    const int64_t i = begin + lane;
    const int64_t mine = i < args.rows ? args.roles[i] : -1;
    const T r = i < args.rows ? args.rewards[i] : T(0);
    const bool member = i < args.rows && mine == role, counts = member && r == r;
    T a = counts ? decay : T(1), b = counts ? fresh * r : T(0);  // of rows up to this one: baseline -> a baseline + b
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const T former_a = __shfl_up_sync(kFullWarp, a, distance), former_b = __shfl_up_sync(kFullWarp, b, distance);
      if (lane >= distance) b = a * former_b + b, a = a * former_a;
    }
    const T a_before = __shfl_up_sync(kFullWarp, a, 1), b_before = __shfl_up_sync(kFullWarp, b, 1);
    const T seen = lane == 0 ? baseline : a_before * baseline + b_before;
    if (member) args.advantages[i] = counts ? r - seen : T(0);
    const bool invalid = i < args.rows && (mine < 0 || mine >= args.count);
    if (role == 0 && invalid) args.advantages[i] = kInf<T> - kInf<T>;
    baseline = __shfl_sync(kFullWarp, a * baseline + b, 31);
  }
  if (lane == 0) args.new_state[role] = baseline;
}

}  // namespace

template <class T>
void role_advantage_cuda(const RoleAdvantageArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.count, kThreads / 32)));
  launch("role_advantage", role_advantage_kernel<T>, grid, dim3(kThreads), stream, args);
}

template void role_advantage_cuda<float>(const RoleAdvantageArgs<float>& args, void* stream);
template void role_advantage_cuda<double>(const RoleAdvantageArgs<double>& args, void* stream);

}  // namespace warpup
