// The CUDA kernels of glu. A block a row: neighboring threads take neighboring columns, so every access is coalesced.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "moe/glu.h"
#include "moe/glu_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

template <bool kInterleaved, class T>
__device__ __forceinline__ int64_t gate_at(const GluArgs<T>& args, int64_t s, int64_t j) {
  return 2 * s * args.width + (kInterleaved ? 2 * j : j);
}
template <bool kInterleaved, class T>
__device__ __forceinline__ int64_t up_at(const GluArgs<T>& args, int64_t s, int64_t j) {
  return 2 * s * args.width + (kInterleaved ? 2 * j + 1 : args.width + j);
}

template <class T, GluKind kKind>
__global__ __launch_bounds__(kThreads) void glu_kernel(const GluArgs<T> args) {
  constexpr bool interleaved = kInterleaved<kKind>;
  const int64_t s = blockIdx.x, copy = copy_of(args, s);
  const acc_t<T> w = copy < 0 ? acc_t<T>(0) : weight_of(args, copy);
  for (int64_t j = threadIdx.x; j < args.width; j += kThreads) {
    T out{};
    if (copy >= 0) {
      const acc_t<T> g = load(args.h[gate_at<interleaved>(args, s, j)]),
                     u = load(args.h[up_at<interleaved>(args, s, j)]);
      out = store<T>(w * (gate_factor<kKind>(g).value * up_factor<kKind>(u).value));
    }
    args.a[s * args.width + j] = out;
  }
}

template <class T, GluKind kKind>
__global__ __launch_bounds__(kThreads) void glu_backward_kernel(const GluBackwardArgs<T> args) {
  using Acc = acc_t<T>;
  constexpr bool interleaved = kInterleaved<kKind>;
  const GluArgs<T>& f = args.forward;
  const int64_t s = blockIdx.x, copy = copy_of(f, s);
  const Acc w = copy < 0 ? Acc(0) : weight_of(f, copy);
  Acc dot = 0;
#pragma unroll 1
  for (int64_t j = threadIdx.x; j < f.width; j += kThreads) {
    const int64_t at_g = gate_at<interleaved>(f, s, j), at_u = up_at<interleaved>(f, s, j), at_a = s * f.width + j;
    T dg{}, du{}, a{};
    if (copy >= 0) {
      const Factor<Acc> gate = gate_factor<kKind>(Acc(load(f.h[at_g]))), up = up_factor<kKind>(Acc(load(f.h[at_u])));
      const Acc d = load(args.grad_a[at_a]), product = gate.value * up.value, wd = w * d;
      dot += d * product;
      dg = store<T>(wd * gate.slope * up.value), du = store<T>(wd * gate.value * up.slope), a = store<T>(w * product);
    }
    args.grad_h[at_g] = dg, args.grad_h[at_u] = du;
    if (f.a) f.a[at_a] = a;
  }
  if (!args.grad_weights || copy < 0) return;  // the whole block, or none of it
  dot = block_reduce<kThreads>(dot, [](Acc x, Acc y) { return x + y; });
  if (threadIdx.x == 0) args.grad_weights[copy] = dot;
}

}  // namespace

template <class T>
void glu_cuda(const GluArgs<T>& args, void* stream) {
  dispatch_kind(args.kind, [&]<GluKind kKind>() {
    launch("glu", glu_kernel<T, kKind>, dim3(static_cast<unsigned>(args.rows)), dim3(kThreads), stream, args);
  });
}

template <class T>
void glu_backward_cuda(const GluBackwardArgs<T>& args, void* stream) {
  dispatch_kind(args.forward.kind, [&]<GluKind kKind>() {
    launch("glu_backward", glu_backward_kernel<T, kKind>, dim3(static_cast<unsigned>(args.forward.rows)),
           dim3(kThreads), stream, args);
  });
}

#define INSTANTIATE(T)                                             \
  template void glu_cuda<T>(const GluArgs<T>& args, void* stream); \
  template void glu_backward_cuda<T>(const GluBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
