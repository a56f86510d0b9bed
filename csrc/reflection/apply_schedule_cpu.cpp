#include <algorithm>

#include "core/parallel.h"
#include "reflection/apply_schedule_math.h"

namespace warpup {

template <class T>
void reflection_state_update_cpu(const ReflectionStateUpdateArgs<T>& args) {
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(args.width, 1));
  parallel_for(0, args.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) update_row(args, r);
  });
}

template <class T>
void apply_schedule_cpu(const ApplyScheduleArgs<T>& args) {
  parallel_for(0, args.rows, 512, [&](int64_t first, int64_t last) {  // waking a thread costs more than fewer rows do
    for (int64_t r = first; r < last; ++r) {
      const int64_t slot = args.slots[r];
      args.delta[r] = 0;
      if (slot < 0 || slot >= args.tables.slots) continue;
      const double temperature = args.temperature ? args.temperature[r] : args.temperature_scalar;
      const float delta =
          delta_at(args.tables, slot, progress_of(args.tables, slot, args.back ? args.back[r] : 0), temperature);
      args.delta[r] = delta;
      if (delta == 0) continue;
      const Schedule& s = args.tables.schedules[slot];
      const int32_t* set = args.tables.sets + int64_t(s.set);
      T* z = args.logits + r * args.stride;
      for (int64_t i = 0; i < int64_t(s.set_size); ++i) {
        if (set[i] >= 0 && set[i] < args.vocab) z[set[i]] = store<T>(load(z[set[i]]) + delta);
      }
    }
  });
}

#define INSTANTIATE(T) template void apply_schedule_cpu<T>(const ApplyScheduleArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE
template void reflection_state_update_cpu<int64_t>(const ReflectionStateUpdateArgs<int64_t>& args);
template void reflection_state_update_cpu<int32_t>(const ReflectionStateUpdateArgs<int32_t>& args);

}  // namespace warpup
