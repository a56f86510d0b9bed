// Update: one thread a request, for a token's work is a dozen dependent loads. Apply: one warp a row.
#include "core/launch.cuh"
#include "reflection/apply_schedule_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void reflection_state_update_kernel(const ReflectionStateUpdateArgs<T> args) {
  const int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r < args.rows) update_row(args, r);
}

template <class T>
__global__ void apply_schedule_kernel(const ApplyScheduleArgs<T> args) {
  const int64_t r = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (r >= args.rows) return;
  const int64_t slot = args.slots[r];
  float delta = 0;
  if (slot >= 0 && slot < args.tables.slots) {
    const double temperature = args.temperature ? args.temperature[r] : args.temperature_scalar;
    delta = delta_at(args.tables, slot, progress_of(args.tables, slot, args.back ? args.back[r] : 0), temperature);
  }
  if (lane == 0) args.delta[r] = delta;
  if (delta == 0) return;
  const Schedule& s = args.tables.schedules[slot];
  const int32_t* set = args.tables.sets + int64_t(s.set);
  T* z = args.logits + r * args.stride;
  for (int64_t i = lane; i < int64_t(s.set_size); i += 32) {
    if (set[i] >= 0 && set[i] < args.vocab) z[set[i]] = store<T>(load(z[set[i]]) + delta);
  }
}

}  // namespace

template <class T>
void reflection_state_update_cuda(const ReflectionStateUpdateArgs<T>& args, void* stream) {
  launch("reflection_state_update", reflection_state_update_kernel<T>, dim3(unsigned(ceil_div(args.rows, 32))),
         dim3(32), stream, args);
}

template <class T>
void apply_schedule_cuda(const ApplyScheduleArgs<T>& args, void* stream) {
  launch("apply_schedule", apply_schedule_kernel<T>, dim3(unsigned(ceil_div(args.rows, kThreads / 32))), dim3(kThreads),
         stream, args);
}

#define INSTANTIATE(T) template void apply_schedule_cuda<T>(const ApplyScheduleArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE
template void reflection_state_update_cuda<int64_t>(const ReflectionStateUpdateArgs<int64_t>& args, void* stream);
template void reflection_state_update_cuda<int32_t>(const ReflectionStateUpdateArgs<int32_t>& args, void* stream);

}  // namespace warpup
