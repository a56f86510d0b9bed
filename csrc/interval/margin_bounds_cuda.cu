// Forward: a block a sample, its warps share out the classes. Backward: a thread an element of the box's gradients,
// then a thread an element of the weight's, samples one after another.
#include <algorithm>

#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"
#include "interval/margin_bounds.h"

namespace warpup {
namespace {

constexpr int kThreads = 128;

struct Add {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Max {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

template <class T>
__device__ __forceinline__ bool is_label(const MarginBoundsArgs<T>& args, int64_t y) {
  return y >= 0 && y < args.classes;
}

template <class T>
__global__ __launch_bounds__(kThreads) void margin_bounds_kernel(const MarginBoundsArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t i = blockIdx.x, y = args.labels[i], others = args.classes - 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool valid = is_label(args, y);
  const T *c = args.center + i * args.center_stride, *r = args.radius + i * args.radius_stride;
  const T* own = args.weight + (valid ? y : 0) * args.weight_stride;
  Acc* bounds = args.bounds + i * others;

  // The bounds: a class a warp.
  for (int64_t at = warp; at < others; at += kThreads / 32) {
    const int64_t k = at + (at >= y);
    const T* w = args.weight + (valid ? k : 0) * args.weight_stride;
    Acc sum = 0;
    for (int64_t j = lane; j < args.width; j += 32) {
      const Acc d = load(own[j]) - load(w[j]);
      sum += d * load(c[j]) - (d < 0 ? -d : d) * load(r[j]);
    }
    sum = warp_reduce(sum, Add{});
    if (lane != 0) continue;
    const Acc bias = args.bias && valid ? load(args.bias[y]) - load(args.bias[k]) : Acc(0);
    bounds[at] = valid ? sum + bias : kInf<Acc> - kInf<Acc>;
  }
  if (!args.loss) return;

  // The loss over them, as a stable log-sum-exp with a term of 1 for the label, and each class's share in it.
  __syncthreads();
  Acc high = 0, sum = 0;
  for (int64_t k = threadIdx.x; k < others; k += kThreads) high = Max{}(high, -bounds[k]);
  high = block_reduce<kThreads>(high, Max{});
  for (int64_t k = threadIdx.x; k < others; k += kThreads) sum += exp_neg(-bounds[k] - high);
  sum = block_reduce<kThreads>(sum, Add{}) + exp_neg(-high);
  for (int64_t k = threadIdx.x; k < others; k += kThreads) {
    args.share[i * others + k] = exp_neg(-bounds[k] - high) / sum;
  }
  if (threadIdx.x != 0) return;
  const Acc loss = high == kInf<Acc> ? high : high + log_pos(sum);
  args.loss[i] = valid ? loss : kInf<Acc> - kInf<Acc>;
}

template <class T>
__global__ __launch_bounds__(kThreads) void margin_box_gradient_kernel(const MarginBoundsBackwardArgs<T> args,
                                                                       int64_t tiles) {
  using Acc = acc_t<T>;
  const MarginBoundsArgs<T>& f = args.forward;
  const int64_t i = blockIdx.x / tiles, j = blockIdx.x % tiles * kThreads + threadIdx.x, y = f.labels[i];
  if (j >= f.width) return;
  const bool valid = is_label(f, y);
  const Acc own = valid ? load(f.weight[y * f.weight_stride + j]) : kInf<Acc> - kInf<Acc>;
  Acc center = 0, radius = 0;
  for (int64_t at = 0; at < f.classes - 1; ++at) {
    const Acc d = own - load(f.weight[(at + (at >= y && valid)) * f.weight_stride + j]);
    const Acc g = margin_gradient(args, i, at);
    center += g * d;
    radius -= g * (d < 0 ? -d : d);
  }
  args.grad_center[i * f.width + j] = store<T>(center);
  args.grad_radius[i * f.width + j] = store<T>(radius);
}

// Class k as the label and as one of the others.
template <class T>
__global__ __launch_bounds__(kThreads) void margin_weight_gradient_kernel(const MarginBoundsBackwardArgs<T> args,
                                                                          int64_t tiles) {
  using Acc = acc_t<T>;
  const MarginBoundsArgs<T>& f = args.forward;
  const int64_t k = blockIdx.x / tiles, j = blockIdx.x % tiles * kThreads + threadIdx.x;
  const bool inside = j < f.width;
  const Acc own = inside ? load(f.weight[k * f.weight_stride + j]) : Acc(0);
  Acc weight = 0;
  double bias = 0;
  for (int64_t i = 0; i < f.batch; ++i) {
    const int64_t y = f.labels[i];
    if (!is_label(f, y)) continue;
    const Acc c = inside ? load(f.center[i * f.center_stride + j]) : Acc(0);
    const Acc r = inside ? load(f.radius[i * f.radius_stride + j]) : Acc(0);
    Acc from_radius = 0;
    double from_center = 0;
    // Seen from a class that is not the label, D has the other sign, and so has its whole part.
    const auto add = [&](int64_t other, Acc gradient, Acc sign) {
      const Acc d = sign * (inside ? own - load(f.weight[other * f.weight_stride + j]) : Acc(0));
      from_radius -= sign * gradient * (d > 0 ? r : d < 0 ? -r : Acc(0));
      from_center += sign * gradient;
    };
    if (k != y) {
      add(y, margin_gradient(args, i, k - (k > y)), -1);
    } else {
      for (int64_t at = 0; at < f.classes - 1; ++at) add(at + (at >= y), margin_gradient(args, i, at), 1);
    }
    weight += from_radius + static_cast<Acc>(from_center) * c;
    bias += from_center;
  }
  if (inside) args.grad_weight[k * f.width + j] = store<T>(weight);
  if (j == 0) args.grad_bias[k] = store<T>(static_cast<Acc>(bias));
}

}  // namespace

template <class T>
void margin_bounds_cuda(const MarginBoundsArgs<T>& args, void* stream) {
  launch("margin_bounds", margin_bounds_kernel<T>, dim3(static_cast<unsigned>(args.batch)), dim3(kThreads), stream,
         args);
}

template <class T>
void margin_bounds_backward_cuda(const MarginBoundsBackwardArgs<T>& args, void* stream) {
  const MarginBoundsArgs<T>& f = args.forward;
  const int64_t tiles = std::max<int64_t>(ceil_div(f.width, kThreads), 1);  // one for the bias's gradient alone
  launch("margin_box_gradient", margin_box_gradient_kernel<T>, dim3(static_cast<unsigned>(f.batch * tiles)),
         dim3(kThreads), stream, args, tiles);
  launch("margin_weight_gradient", margin_weight_gradient_kernel<T>, dim3(static_cast<unsigned>(f.classes * tiles)),
         dim3(kThreads), stream, args, tiles);
}

#define INSTANTIATE(T)                                                                \
  template void margin_bounds_cuda<T>(const MarginBoundsArgs<T>& args, void* stream); \
  template void margin_bounds_backward_cuda<T>(const MarginBoundsBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
