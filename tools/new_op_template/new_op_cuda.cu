#include "core/launch.cuh"
#include "new_family/new_op.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void new_op_kernel(const NewOpArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < args.count) args.out[i] = store<T>(static_cast<Acc>(args.scale) * load(args.x[i]));
}

}  // namespace

template <class T>
void new_op_cuda(const NewOpArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.count, kThreads)));
  launch("new_op", new_op_kernel<T>, grid, dim3(kThreads), stream, args);
}

template void new_op_cuda<float>(const NewOpArgs<float>& args, void* stream);
template void new_op_cuda<double>(const NewOpArgs<double>& args, void* stream);
template void new_op_cuda<bfloat16>(const NewOpArgs<bfloat16>& args, void* stream);
template void new_op_cuda<float16>(const NewOpArgs<float16>& args, void* stream);

}  // namespace warpup
