#include <algorithm>

#include "advantage/gae.h"
#include "core/parallel.h"

namespace warpup {

template <class T>
void gae_cpu(const GaeArgs<T>& args) {
  // At least 8192 tokens a task: fewer take less time than waking a thread.
  const int64_t grain = std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(args.length, 1));
  parallel_for(0, args.rows, grain, [&args](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const T* r = args.rewards + row * args.rewards_stride;
      const T* v = args.values ? args.values + row * args.values_stride : nullptr;
      const uint8_t* mask = args.mask + row * args.mask_stride;
      T* out = args.advantages + row * args.length;
      T* returns = args.returns ? args.returns + row * args.length : nullptr;
      const double end = args.bootstrap ? args.bootstrap[row] : 0;
      double next_value = end, x = v ? 0 : end;
      for (int64_t t = args.length - 1; t >= 0; --t) {
        if (mask[t] == 0) {
          if (args.cut) x = 0;
          out[t] = 0;
          if (returns) returns[t] = 0;
          continue;
        }
        double delta = r[t];
        if (v) {
          delta += args.gamma * next_value - double(v[t]);
          next_value = v[t];
        }
        x = args.decay == 0 ? delta : delta + args.decay * x;
        out[t] = static_cast<T>(x);
        if (returns) returns[t] = static_cast<T>(x + next_value);
      }
    }
  });
}

template void gae_cpu<float>(const GaeArgs<float>& args);
template void gae_cpu<double>(const GaeArgs<double>& args);

}  // namespace warpup
