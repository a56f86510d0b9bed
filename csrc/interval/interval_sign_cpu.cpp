#include "core/parallel.h"
#include "interval/interval_sign.h"

namespace warpup {

template <class T>
WARPUP_CLONES void sign_range(const IntervalSignArgs<T>& args, int64_t first, int64_t last) {
  if (args.base) {
#pragma omp simd
    for (int64_t i = first; i < last; ++i)
      args.gradient[i] = signed_sum(args.weight[i], args.gradient[i], args.base[i]);
  } else {
#pragma omp simd
    for (int64_t i = first; i < last; ++i) args.gradient[i] = signed_sum(args.weight[i], args.gradient[i], T{});
  }
}

template <class T>
void interval_sign_cpu(const IntervalSignArgs<T>& args) {
  parallel_for(0, args.count, 1 << 15, [&](int64_t first, int64_t last) { sign_range(args, first, last); });
}

template void interval_sign_cpu<float>(const IntervalSignArgs<float>&);
template void interval_sign_cpu<double>(const IntervalSignArgs<double>&);
template void interval_sign_cpu<bfloat16>(const IntervalSignArgs<bfloat16>&);
template void interval_sign_cpu<float16>(const IntervalSignArgs<float16>&);

}  // namespace warpup
