// A block works on one task of the layout; with inner == 1 its threads are 32 channels wide and 8 rows deep. Options
// are the same for all threads, so a branch on one costs nothing beside the memory that is waited for.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "interval/interval_batch_norm_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 256, kWide = 32, kDeep = kThreads / kWide;

struct Add {
  template <class V>
  __device__ __forceinline__ V operator()(V a, const V& b) const {
    for (int k = 0; k < V::kCount; ++k) a.x[k] += b.x[k];
    return a;
  }
};
template <class Acc, int kN>
struct Values {
  static constexpr int kCount = kN;
  Acc x[kN] = {};
};

// Calls body(element, channel, sums) on a task's elements, then, where `partials` is given, adds up what the bodies put
// into sums[2], channel by channel.
template <class Acc, class Body>
__device__ __forceinline__ void each_element(const ChannelLayout& layout, int64_t task, Acc* partials, Body body) {
  if (layout.inner == 1) {
    __shared__ Acc each[2][kDeep][kWide];
    const int x = threadIdx.x % kWide, y = threadIdx.x / kWide;
    const int64_t first = task * layout.kRows;
    const int64_t last = first + layout.kRows < layout.outer ? first + layout.kRows : layout.outer;
    for (int64_t c0 = 0; c0 < layout.channels; c0 += kWide) {
      const int64_t c = c0 + x;
      Acc sums[2] = {};
      for (int64_t row = first + y; c < layout.channels && row < last; row += kDeep) {
        body(row * layout.channels + c, c, sums);
      }
      if (!partials) continue;
      __syncthreads();
      each[0][y][x] = sums[0], each[1][y][x] = sums[1];
      __syncthreads();
      if (y > 1 || c >= layout.channels) continue;
      Acc total = 0;
      for (int k = 0; k < kDeep; ++k) total += each[y][k][x];
      partials[(task * layout.channels + c) * 2 + y] = total;
    }
    return;
  }
  const int64_t pieces = layout.pieces(), piece = task % pieces, channel = task / pieces % layout.channels;
  const int64_t row = task / pieces / layout.channels, begin = (row * layout.channels + channel) * layout.inner;
  const int64_t end = (piece + 1) * layout.kPiece < layout.inner ? (piece + 1) * layout.kPiece : layout.inner;
  Values<Acc, 2> sums;
  for (int64_t i = piece * layout.kPiece + threadIdx.x; i < end; i += kThreads) body(begin + i, channel, sums.x);
  if (!partials) return;
  sums = block_reduce<kThreads>(sums, Add{});
  if (threadIdx.x != 0) return;
  Acc* to = partials + ((row * pieces + piece) * layout.channels + channel) * 2;
  to[0] = sums.x[0], to[1] = sums.x[1];
}

// ---- Statistics -----------------------------------------------------------------------------------------------------

template <class T>
__global__ __launch_bounds__(kThreads) void moments_kernel(const ChannelScaleArgs<T> args) {
  using Acc = acc_t<T>;
  each_element<Acc>(args.layout, blockIdx.x, args.partials, [&](int64_t i, int64_t c, Acc* sums) {
    const Acc d = load(args.source[i]) - load(args.source[c * args.layout.inner]);
    sums[0] += d, sums[1] += d * d;
  });
}

template <class Acc>
__device__ __forceinline__ void total_of(const ChannelLayout& layout, const Acc* partials, int64_t c, double* a,
                                         double* b) {
  *a = *b = 0;
  for (int64_t p = 0; p < layout.chunks(); ++p) {
    const Acc* sums = partials + (p * layout.channels + c) * 2;
    *a += sums[0], *b += sums[1];
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void channel_scale_kernel(const ChannelScaleArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= args.layout.channels) return;
  if (args.source) {
    const double n = double(args.layout.outer * args.layout.inner);
    double sum, square;
    total_of(args.layout, args.partials, c, &sum, &square);
    const double rest = sum / n, var = square / n - rest * rest;
    args.mean[c] = static_cast<Acc>((n > 0 ? load(args.source[c * args.layout.inner]) : Acc(0)) + rest);
    args.var[c] = static_cast<Acc>(var < 0 ? 0 : var);
  }
  scale_and_shift(double(args.mean[c]), double(args.var[c]), args.weight, args.bias, args.eps, c, args.scale,
                  args.shift);
}

// ---- Forward --------------------------------------------------------------------------------------------------------

template <class T>
__global__ __launch_bounds__(kThreads) void forward_kernel(const IntervalBatchNormArgs<T> args) {
  using Acc = acc_t<T>;
  Values<double, kBoxSums> total;
  for (int64_t task = blockIdx.x; task < args.layout.tasks(); task += gridDim.x) {
    each_element<Acc>(args.layout, task, nullptr, [&](int64_t i, int64_t c, Acc*) {
      const Acc s = args.scale ? args.scale[c] : Acc(1), t = args.scale ? args.shift[c] : Acc(0);
      Box<Acc> y{load(args.center[i]), load(args.radius[i])};
      if (args.scale) {
        const Acc bias = args.sound && args.bias ? magnitude(args.bias[c]) : Acc(0);
        const Acc m = args.sound ? bias + magnitude(args.mean[c] * s) : Acc(0);
        y = scaled_box(y.center, y.radius, s, t, m, args.sound);
      }
      if (args.sums) {
        const double x = y.center, a = y.center - y.radius > 0 ? 1 : 0, d = y.center + y.radius < 0 ? 1 : 0;
        const double found[] = {double(y.radius), x, a, a * x, a * x * x, d, d * x, d * x * x};
        for (int k = 0; k < kBoxSums; ++k) total.x[k] += found[k];
      }
      if (args.relu) y = relu_box(y.center, y.radius, args.sound);
      Box<T> out{store<T>(y.center), store<T>(y.radius)};
      if constexpr (sizeof(T) == 2) {
        if (args.sound) out = sound_box<T>(y.center, y.radius);
      }
      args.out_center[i] = out.center, args.out_radius[i] = out.radius;
      if (!args.clean) return;
      const Acc z = s * load(args.clean[i]) + t;
      args.out_clean[i] = store<T>(args.relu && z <= 0 ? Acc(0) : z);
    });
  }
  if (!args.sums) return;
  total = block_reduce<kThreads>(total, Add{});
  if (threadIdx.x != 0) return;
  for (int k = 0; k < kBoxSums; ++k) args.partials[int64_t(blockIdx.x) * kBoxSums + k] = total.x[k];
}

__global__ void sums_kernel(int64_t groups, const double* partials, double* sums) {
  double total = 0;
  for (int64_t g = 0; g < groups; ++g) total += partials[g * kBoxSums + threadIdx.x];
  sums[threadIdx.x] = total;
}

// ---- Backward -------------------------------------------------------------------------------------------------------

template <class T>
__global__ __launch_bounds__(kThreads) void backward_kernel(const IntervalBatchNormBackwardArgs<T> args) {
  using Acc = acc_t<T>;
  Acc added[6] = {};
  for (int k = 0; args.added && k < 6; ++k) added[k] = static_cast<Acc>(args.added[k]);
  Acc* partials = args.scale ? args.partials : nullptr;
  each_element<Acc>(args.layout, blockIdx.x, partials, [&](int64_t i, int64_t c, Acc* sums) {
    const Acc s = args.scale ? args.scale[c] : Acc(1), t = args.scale ? args.shift[c] : Acc(0);
    const Acc mean = args.scale ? args.mean[c] : Acc(0), bias = args.bias ? args.bias[c] : Acc(0);
    const Box<Acc> v{load(args.center[i]), load(args.radius[i])};
    const Box<Acc> g{args.grad_center ? load(args.grad_center[i]) : Acc(0),
                     args.grad_radius ? load(args.grad_radius[i]) : Acc(0)};
    const Box<Acc> y = args.from_outputs ? v : scaled_box(v.center, v.radius, s, t, Acc(0), false);
    const Box<Acc> h = before_relu(g.center, g.radius, y.center, y.radius, args.relu, args.added ? added : nullptr);
    args.out_center[i] = store<T>(s * h.center), args.out_radius[i] = store<T>(magnitude(s) * h.radius);
    sums[0] += h.center;
    sums[1] += scale_gradient(h.center, h.radius, v.center, v.radius, args.from_outputs, s, mean, bias);
    if (!args.clean) return;
    const Acc x = load(args.clean[i]), gx = args.grad_clean ? load(args.grad_clean[i]) : Acc(0);
    const Acc hx = args.relu && s * x + t <= 0 ? Acc(0) : gx;
    args.out_clean[i] = store<T>(s * hx);
    sums[0] += hx, sums[1] += hx * (x - mean);
  });
}

template <class T>
__global__ __launch_bounds__(kThreads) void totals_kernel(const IntervalBatchNormBackwardArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = args.layout.outer * args.layout.inner;
  if (c >= args.layout.channels) return;
  double g0, g1;
  total_of(args.layout, args.partials, c, &g0, &g1);
  const double over = 1 / (double(args.var[c]) + args.eps);
  args.out_bias[c] = static_cast<Acc>(g0), args.out_weight[c] = static_cast<Acc>(g1 * sqrt(over));
  args.totals[c] = static_cast<Acc>(args.scale[c] * g0 / n);
  args.totals[args.layout.channels + c] = static_cast<Acc>(args.scale[c] * g1 * over / n);
}

template <class T>
__global__ __launch_bounds__(kThreads) void source_kernel(const IntervalBatchNormBackwardArgs<T> args, const T* v,
                                                          T* d) {
  using Acc = acc_t<T>;
  each_element<Acc>(args.layout, blockIdx.x, nullptr, [&](int64_t i, int64_t c, Acc*) {
    const Acc a = args.totals[c], b = args.totals[args.layout.channels + c];
    d[i] = store<T>(load(d[i]) - (a + b * (load(v[i]) - args.mean[c])));
  });
}

dim3 blocks(int64_t count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace

template <class T>
void channel_scale_cuda(const ChannelScaleArgs<T>& args, void* stream) {
  if (args.source) {
    launch("channel_moments", moments_kernel<T>, blocks(args.layout.tasks()), dim3(kThreads), stream, args);
  }
  launch("channel_scale", channel_scale_kernel<T>, blocks(ceil_div(args.layout.channels, kThreads)), dim3(kThreads),
         stream, args);
}

template <class T>
void interval_batch_norm_cuda(const IntervalBatchNormArgs<T>& args, void* stream) {
  const int64_t tasks = args.layout.tasks();
  const int64_t groups = args.sums ? (tasks < kBoxSumGroups ? tasks : kBoxSumGroups) : tasks;
  launch("interval_batch_norm", forward_kernel<T>, blocks(groups), dim3(kThreads), stream, args);
  if (args.sums) {
    launch("box_sums", sums_kernel, dim3(1), dim3(kBoxSums), stream, groups, args.partials, args.sums);
  }
}

template <class T>
void interval_batch_norm_backward_cuda(const IntervalBatchNormBackwardArgs<T>& args, void* stream) {
  const dim3 grid = blocks(args.layout.tasks());
  launch("interval_batch_norm_backward", backward_kernel<T>, grid, dim3(kThreads), stream, args);
  if (!args.scale) return;
  launch("channel_totals", totals_kernel<T>, blocks(ceil_div(args.layout.channels, kThreads)), dim3(kThreads), stream,
         args);
  if (args.source < 0) return;
  launch("channel_source", source_kernel<T>, grid, dim3(kThreads), stream, args,
         args.source == 0 ? args.center : args.clean, args.source == 0 ? args.out_center : args.out_clean);
}

#define INSTANTIATE(T)                                                               \
  template void channel_scale_cuda<T>(const ChannelScaleArgs<T>&, void*);            \
  template void interval_batch_norm_cuda<T>(const IntervalBatchNormArgs<T>&, void*); \
  template void interval_batch_norm_backward_cuda<T>(const IntervalBatchNormBackwardArgs<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
