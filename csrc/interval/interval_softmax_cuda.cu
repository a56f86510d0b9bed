// A block a row: the two largest ends, their sums, then the elements.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "interval/interval_softmax_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

struct Merge {
  template <class Acc>
  __device__ __forceinline__ Largest<Acc> operator()(const Largest<Acc>& a, const Largest<Acc>& b) const {
    return merged(a, b);
  }
};
struct Add {
  template <class Acc>
  __device__ __forceinline__ Acc operator()(Acc a, Acc b) const {
    return a + b;
  }
};

// The ends of a row's boxes: sign -1 the lower, 1 the upper.
template <class T>
struct Ends {
  const T *center, *radius;
  acc_t<T> sign;
  __device__ __forceinline__ acc_t<T> operator[](int64_t j) const { return load(center[j]) + sign * load(radius[j]); }
};

template <class T>
__device__ Competition<acc_t<T>> compete(const Ends<T>& x, int64_t n) {
  using Acc = acc_t<T>;
  Largest<Acc> found;
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    const Acc v = x[j];
    if (v > -kInf<Acc>) found = merged(found, Largest<Acc>{v, -kInf<Acc>, j});
  }
  Competition<Acc> all(block_reduce<kThreads>(found, Merge{}));
  Acc rest = 0;
  for (int64_t j = threadIdx.x; j < n; j += kThreads) rest += all.term(x[j], j);
  all.rest = block_reduce<kThreads>(rest, Add{});
  return all;
}

// Two blocks a multiprocessor are enough: left to itself, ptxas keeps to fewer registers for sm_80, and spills one.
template <class T>
__global__ __launch_bounds__(kThreads, 2) void interval_softmax_kernel(const IntervalSoftmaxArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t at = int64_t(blockIdx.x) * args.n;
  const Ends<T> l{args.center + at, args.radius + at, -1}, u{args.center + at, args.radius + at, 1};
  const Competition<Acc> high = compete(u, args.n), low = compete(l, args.n);
  for (int64_t j = threadIdx.x; j < args.n; j += kThreads) {
    const Acc below = l[j], above = u[j];
    const Acc upper = low.empty() ? low.uncontested(above) : low.share(above, low.term(below, j), j).value;
    // empty: a box's lower ends are -inf, too
    const Acc share = high.empty() ? Acc(0) : high.share(below, high.term(above, j), j).value;
    const Acc lower = in_order(below, above, share, upper);
    args.out_center[at + j] = store<T>((lower + upper) / 2);
    args.out_radius[at + j] = store<T>((upper - lower) / 2);
  }
}

// What the gradient of a row's shares in one competition needs of the whole row.
template <class T>
struct SharesGradient {
  using Acc = acc_t<T>;
  Ends<T> own, x, grad;  // grad: twice the shares' gradients
  Competition<Acc> all;
  Acc sum = 0, top = 0;

  __device__ Acc of_own(int64_t j, Acc* part) const {
    const Share<Acc> s = all.share(own[j], all.term(x[j], j), j);
    const Acc g = grad[j] / 2 * s.value * s.complement;
    *part = j == all.at ? Acc(0) : g / s.others;
    return g;
  }
  __device__ SharesGradient(const Ends<T>& own, const Ends<T>& x, const Ends<T>& grad, int64_t n)
      : own(own), x(x), grad(grad), all(compete(x, n)) {
    Acc part;
    for (int64_t j = threadIdx.x; j < n && !all.empty(); j += kThreads) of_own(j, &part), sum += part;
    sum = block_reduce<kThreads>(sum, Add{});
    if (all.at >= 0 && all.rest != 0) top = of_own(all.at, &part) / all.rest;
  }
  __device__ void add(int64_t j, Acc* d_own, Acc* d_x) const {
    if (all.empty()) return;
    Acc part;
    *d_own += of_own(j, &part);
    *d_x -= j == all.at ? sum : all.term(x[j], j) * (all.ratio * (sum - part) + top);
  }
};

template <class T>
__global__ __launch_bounds__(kThreads,
                             2) void interval_softmax_backward_kernel(const IntervalSoftmaxBackwardArgs<T> args) {
  using Acc = acc_t<T>;
  const IntervalSoftmaxArgs<T>& f = args.forward;
  const int64_t at = int64_t(blockIdx.x) * f.n;
  const Ends<T> l{f.center + at, f.radius + at, -1}, u{f.center + at, f.radius + at, 1};
  const T *gc = args.grad_out_center + at, *gr = args.grad_out_radius + at;
  const SharesGradient<T> lower(l, u, Ends<T>{gc, gr, -1}, f.n), upper(u, l, Ends<T>{gc, gr, 1}, f.n);
  for (int64_t j = threadIdx.x; j < f.n; j += kThreads) {
    Acc d_l = 0, d_u = 0;
    lower.add(j, &d_l, &d_u), upper.add(j, &d_u, &d_l);
    args.grad_center[at + j] = store<T>(d_l + d_u);
    args.grad_radius[at + j] = store<T>(d_u - d_l);
  }
}

}  // namespace

template <class T>
void interval_softmax_cuda(const IntervalSoftmaxArgs<T>& args, void* stream) {
  launch("interval_softmax", interval_softmax_kernel<T>, dim3(static_cast<unsigned>(args.rows)), dim3(kThreads), stream,
         args);
}

template <class T>
void interval_softmax_backward_cuda(const IntervalSoftmaxBackwardArgs<T>& args, void* stream) {
  launch("interval_softmax_backward", interval_softmax_backward_kernel<T>,
         dim3(static_cast<unsigned>(args.forward.rows)), dim3(kThreads), stream, args);
}

#define INSTANTIATE(T)                                                                      \
  template void interval_softmax_cuda<T>(const IntervalSoftmaxArgs<T>& args, void* stream); \
  template void interval_softmax_backward_cuda<T>(const IntervalSoftmaxBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
