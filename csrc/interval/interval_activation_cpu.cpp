#include <algorithm>

#include "core/parallel.h"
#include "core/widen.h"
#include "interval/interval_activation_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 512;  // six of them, widened, stay in L1

// Where a loop writes T from: T's own memory, or a buffer that `settle` then rounds.
template <class T>
inline acc_t<T>* target(T* to, acc_t<T>* buffer) {
  if constexpr (sizeof(T) > 2) {
    return to;
  } else {
    return buffer;
  }
}
template <class T>
inline void settle(const acc_t<T>* from, int64_t n, T* to) {
  if constexpr (sizeof(T) == 2) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = store<T>(from[j]);
  }
}

}  // namespace

template <class T, Activation kind>
WARPUP_CLONES void activate(const T* x, int64_t n, acc_t<T> a, acc_t<T> b, T* to) {
  acc_t<T> in[kBlock], out[kBlock];
  const acc_t<T>* v = widened(x, n, in);
  acc_t<T>* y = target(to, out);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] = activation<kind>(v[j], a, b).value;
  settle(y, n, to);
}

template <class T, Activation kind>
WARPUP_CLONES void activate_gradient(const T* x, const T* grad, int64_t n, acc_t<T> a, acc_t<T> b, T* to) {
  acc_t<T> in[kBlock], grad_in[kBlock], out[kBlock];
  const acc_t<T>*v = widened(x, n, in), *g = widened(grad, n, grad_in);
  acc_t<T>* y = target(to, out);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] = g[j] * activation<kind>(v[j], a, b).slope;
  settle(y, n, to);
}

template <class T, Activation kind>
WARPUP_CLONES void activate_box(const T* center, const T* radius, int64_t n, acc_t<T> a, acc_t<T> b, T* to_center,
                                T* to_radius) {
  acc_t<T> in[2][kBlock], out[2][kBlock];
  const acc_t<T>*c = widened(center, n, in[0]), *r = widened(radius, n, in[1]);
  acc_t<T>*y = target(to_center, out[0]), *s = target(to_radius, out[1]);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const auto box = activated<kind>(Box<acc_t<T>>{c[j], r[j]}, a, b);
    y[j] = box.center, s[j] = box.radius;
  }
  settle(y, n, to_center), settle(s, n, to_radius);
}

template <class T, Activation kind>
WARPUP_CLONES void activate_box_gradient(const T* center, const T* radius, const T* grad_center, const T* grad_radius,
                                         int64_t n, acc_t<T> a, acc_t<T> b, T* to_center, T* to_radius) {
  acc_t<T> in[4][kBlock], out[2][kBlock];
  const acc_t<T>*c = widened(center, n, in[0]), *r = widened(radius, n, in[1]);
  const acc_t<T>*gc = widened(grad_center, n, in[2]), *gr = widened(grad_radius, n, in[3]);
  acc_t<T>*y = target(to_center, out[0]), *s = target(to_radius, out[1]);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const auto box = activated_gradient<kind>(Box<acc_t<T>>{c[j], r[j]}, Box<acc_t<T>>{gc[j], gr[j]}, a, b);
    y[j] = box.center, s[j] = box.radius;
  }
  settle(y, n, to_center), settle(s, n, to_radius);
}

namespace {

template <class Body>
void in_blocks(int64_t count, const Body& body) {  // body(first, n)
  parallel_for(0, (count + kBlock - 1) / kBlock, 8, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) body(at * kBlock, std::min(kBlock, count - at * kBlock));
  });
}

}  // namespace

template <class T>
void interval_activation_cpu(const IntervalActivationArgs<T>& args) {
  const acc_t<T> a = static_cast<acc_t<T>>(args.a), b = static_cast<acc_t<T>>(args.b);
  with_activation(args.kind, [&]<Activation kind>() {
    in_blocks(args.count, [&](int64_t i, int64_t n) {
      activate_box<T, kind>(args.center + i, args.radius + i, n, a, b, args.out_center + i, args.out_radius + i);
      if (args.clean) activate<T, kind>(args.clean + i, n, a, b, args.out_clean + i);
    });
  });
}

template <class T>
void interval_activation_backward_cpu(const IntervalActivationBackwardArgs<T>& args) {
  const IntervalActivationArgs<T>& f = args.forward;
  const acc_t<T> a = static_cast<acc_t<T>>(f.a), b = static_cast<acc_t<T>>(f.b);
  with_activation(f.kind, [&]<Activation kind>() {
    in_blocks(f.count, [&](int64_t i, int64_t n) {
      activate_box_gradient<T, kind>(f.center + i, f.radius + i, args.grad_out_center + i, args.grad_out_radius + i, n,
                                     a, b, args.grad_center + i, args.grad_radius + i);
      if (f.clean) activate_gradient<T, kind>(f.clean + i, args.grad_out_clean + i, n, a, b, args.grad_clean + i);
    });
  });
}

#define INSTANTIATE(T)                                                             \
  template void interval_activation_cpu<T>(const IntervalActivationArgs<T>& args); \
  template void interval_activation_backward_cpu<T>(const IntervalActivationBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
