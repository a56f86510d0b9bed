#include "core/launch.cuh"
#include "interval/interval_sign.h"

namespace warpup {
namespace {

constexpr int kThreads = 256, kEach = 4;

template <class T>
__global__ __launch_bounds__(kThreads) void sign_kernel(const IntervalSignArgs<T> args) {
  const int64_t begin = int64_t(blockIdx.x) * kThreads * kEach + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    if (i < args.count) args.gradient[i] = signed_sum(args.weight[i], args.gradient[i], args.base ? args.base[i] : T{});
  }
}

}  // namespace

template <class T>
void interval_sign_cuda(const IntervalSignArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.count, kThreads * kEach)));
  launch("interval_sign", sign_kernel<T>, grid, dim3(kThreads), stream, args);
}

template void interval_sign_cuda<float>(const IntervalSignArgs<float>&, void*);
template void interval_sign_cuda<double>(const IntervalSignArgs<double>&, void*);
template void interval_sign_cuda<bfloat16>(const IntervalSignArgs<bfloat16>&, void*);
template void interval_sign_cuda<float16>(const IntervalSignArgs<float16>&, void*);

}  // namespace warpup
