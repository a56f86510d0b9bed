// A thread an element; the kind is the same for all of them, so its branch costs nothing.
#include "core/launch.cuh"
#include "interval/interval_activation_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void interval_activation_kernel(const IntervalActivationArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.count) return;
  const Acc a = static_cast<Acc>(args.a), b = static_cast<Acc>(args.b);
  with_activation(args.kind, [&]<Activation kind>() {
    const auto box = activated<kind>(Box<Acc>{load(args.center[i]), load(args.radius[i])}, a, b);
    args.out_center[i] = store<T>(box.center);
    args.out_radius[i] = store<T>(box.radius);
    if (args.clean) args.out_clean[i] = store<T>(activation<kind>(Acc(load(args.clean[i])), a, b).value);
  });
}

template <class T>
__global__ __launch_bounds__(kThreads) void interval_activation_backward_kernel(
    const IntervalActivationBackwardArgs<T> args) {
  using Acc = acc_t<T>;
  const IntervalActivationArgs<T>& f = args.forward;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= f.count) return;
  const Acc a = static_cast<Acc>(f.a), b = static_cast<Acc>(f.b);
  with_activation(f.kind, [&]<Activation kind>() {
    const Box<Acc> in{load(f.center[i]), load(f.radius[i])};
    const Box<Acc> grad{load(args.grad_out_center[i]), load(args.grad_out_radius[i])};
    const auto box = activated_gradient<kind>(in, grad, a, b);
    args.grad_center[i] = store<T>(box.center);
    args.grad_radius[i] = store<T>(box.radius);
    if (!f.clean) return;
    const Acc slope = activation<kind>(Acc(load(f.clean[i])), a, b).slope;
    args.grad_clean[i] = store<T>(load(args.grad_out_clean[i]) * slope);
  });
}

}  // namespace

template <class T>
void interval_activation_cuda(const IntervalActivationArgs<T>& args, void* stream) {
  launch("interval_activation", interval_activation_kernel<T>,
         dim3(static_cast<unsigned>(ceil_div(args.count, kThreads))), dim3(kThreads), stream, args);
}

template <class T>
void interval_activation_backward_cuda(const IntervalActivationBackwardArgs<T>& args, void* stream) {
  launch("interval_activation_backward", interval_activation_backward_kernel<T>,
         dim3(static_cast<unsigned>(ceil_div(args.forward.count, kThreads))), dim3(kThreads), stream, args);
}

#define INSTANTIATE(T)                                                                            \
  template void interval_activation_cuda<T>(const IntervalActivationArgs<T>& args, void* stream); \
  template void interval_activation_backward_cuda<T>(const IntervalActivationBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
