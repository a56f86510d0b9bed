#include "core/parallel.h"
#include "moe/expert_bias.h"

namespace warpup {

template <class T>
WARPUP_LOOP void add_row(const T* __restrict bias, acc_t<T> w, int64_t n, T* __restrict y) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] = store<T>(load(y[j]) + w * load(bias[j]));
}

template <class T>
void add_expert_bias(const ExpertBiasArgs<T>& args) {
  for (int64_t e = 0; e < args.experts; ++e) {
    parallel_for(args.offsets[e], args.offsets[e + 1], (1 << 15) / (args.width + 1) + 1, [&](int64_t s, int64_t last) {
      for (; s < last; ++s) {
        const acc_t<T> w = args.weights ? args.weights[args.permutation[s]] : 1;
        add_row(args.bias + e * args.width, w, args.width, args.y + s * args.width);
      }
    });
  }
}

#define INSTANTIATE(T) template void add_expert_bias<T>(const ExpertBiasArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
