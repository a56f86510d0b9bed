// A warp a row, which it walks from the right in chunks of 128 tokens: four to a lane, then a scan over the lanes.
#include "advantage/gae.h"
#include "core/launch.cuh"
#include "core/reduce.cuh"

namespace warpup {
namespace {

constexpr int kThreads = 128;  // four rows a block
constexpr int kTokens = 4;     // of a lane: its serial steps between two scans of five shuffles
constexpr int kChunk = 32 * kTokens;

template <class T>
struct Step {  // y -> a y + b; a = 0 forgets y, also where it is NaN
  T a, b;
  __device__ __forceinline__ T operator()(T y) const { return a == 0 ? b : a * y + b; }
  __device__ __forceinline__ Step after(Step first) const { return {a * first.a, (*this)(first.b)}; }
};

template <class T>
__global__ __launch_bounds__(kThreads) void gae_kernel(const GaeArgs<T> args) {
  const int64_t row = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= args.rows) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const T* r = args.rewards + row * args.rewards_stride;
  const T* v = args.values ? args.values + row * args.values_stride : nullptr;
  const uint8_t* mask = args.mask + row * args.mask_stride;
  const T gamma = static_cast<T>(args.gamma), decay = static_cast<T>(args.decay);
  const T end = args.bootstrap ? args.bootstrap[row] : T(0);
  T next_value = end, x = v ? T(0) : end;  // of the token right of the chunk, the same in all lanes

  for (int64_t chunk_end = args.length; chunk_end > 0; chunk_end -= kChunk) {
    // Load this lane's tokens.
    const int64_t begin = chunk_end - kChunk + lane * kTokens;  // may be negative in the last chunk
    T reward[kTokens], value[kTokens];
    bool live[kTokens];
    T leftmost = 0;  // value of this lane's first live token
    bool any = false;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      const int64_t t = begin + i;
      live[i] = t >= 0 && mask[t] != 0;
      reward[i] = live[i] ? r[t] : T(0);
      value[i] = live[i] && v ? v[t] : T(0);
      leftmost = live[i] ? value[i] : leftmost;
      any |= live[i];
    }
    // The next live token's value: in this lane, else in the nearest lane to the right that has one, else in the last
    // chunk.
    const unsigned lanes = __ballot_sync(kFullWarp, any), right = lane == 31 ? 0 : lanes & (kFullWarp << (lane + 1));
    const T from_right = __shfl_sync(kFullWarp, leftmost, right ? __ffs(right) - 1 : lane);
    T following = right ? from_right : next_value;
    // Each token as a step A -> a A + b, and all of this lane's as one.
    Step<T> step[kTokens], all{1, 0};
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      step[i] = {args.cut ? T(0) : T(1), 0};
      if (live[i]) {
        step[i] = {decay, v ? reward[i] + gamma * following - value[i] : reward[i]};
        following = value[i];
      }
      all = step[i].after(all);
    }
#pragma unroll
    for (int distance = 1; distance < 32;
         distance *= 2) {  // the scan: `all` becomes the steps of the lanes from here on
      const Step<T> other{__shfl_down_sync(kFullWarp, all.a, distance), __shfl_down_sync(kFullWarp, all.b, distance)};
      if (lane + distance < 32) all = all.after(other);
    }
    // Apply them: first what the lanes to the right make of the last chunk's result, then this lane's tokens in turn.
    const Step<T> before{__shfl_down_sync(kFullWarp, all.a, 1), __shfl_down_sync(kFullWarp, all.b, 1)};
    T here = lane == 31 ? x : before(x);
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      here = step[i](here);
      const int64_t at = row * args.length + begin + i;
      if (begin + i < 0) continue;
      args.advantages[at] = live[i] ? here : T(0);
      if (args.returns) args.returns[at] = live[i] ? here + value[i] : T(0);
    }
    // What the next chunk, to the left, starts from.
    x = __shfl_sync(kFullWarp, all(x), 0);
    const T first_value = __shfl_sync(kFullWarp, leftmost, lanes ? __ffs(lanes) - 1 : 0);
    next_value = lanes ? first_value : next_value;
  }
}

}  // namespace

template <class T>
void gae_cuda(const GaeArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, kThreads / 32)));
  launch("gae", gae_kernel<T>, grid, dim3(kThreads), stream, args);
}

template void gae_cuda<float>(const GaeArgs<float>& args, void* stream);
template void gae_cuda<double>(const GaeArgs<double>& args, void* stream);

}  // namespace warpup
