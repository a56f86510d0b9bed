#include <algorithm>

#include "core/parallel.h"
#include "interval/blocks.h"
#include "interval/interval_activation_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 512;  // six of them, widened, stay in L1

// ---- Loops over a block ---------------------------------------------------------------------------------------------

template <Activation kind>
struct Points {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* x, int64_t n, Acc a, Acc b, Acc* y) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) y[j] = activation<kind>(x[j], a, b).value;
  }
};

template <Activation kind>
struct PointGradients {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* x, const Acc* g, int64_t n, Acc a, Acc b, Acc* d) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) d[j] = g[j] * activation<kind>(x[j], a, b).slope;
  }
};

template <Activation kind>
struct Boxes {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* c, const Acc* r, int64_t n, Acc a, Acc b, Acc* yc, Acc* yr) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const auto box = activated<kind>(Box<Acc>{c[j], r[j]}, a, b);
      yc[j] = box.center, yr[j] = box.radius;
    }
  }
};

template <Activation kind>
struct BoxGradients {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* c, const Acc* r, const Acc* gc, const Acc* gr, int64_t n, Acc a, Acc b, Acc* dc,
                            Acc* dr) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const auto box = activated_gradient<kind>(Box<Acc>{c[j], r[j]}, Box<Acc>{gc[j], gr[j]}, a, b);
      dc[j] = box.center, dr[j] = box.radius;
    }
  }
};

template <class Body>
void in_blocks(int64_t count, const Body& body) {  // body(first, n)
  parallel_for(0, (count + kBlock - 1) / kBlock, 8, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) body(at * kBlock, std::min(kBlock, count - at * kBlock));
  });
}

}  // namespace

// ---- The kernels ----------------------------------------------------------------------------------------------------

template <class T>
void interval_activation_cpu(const IntervalActivationArgs<T>& args) {
  using Acc = acc_t<T>;
  const Acc a = static_cast<Acc>(args.a), b = static_cast<Acc>(args.b);
  with_activation(args.kind, [&]<Activation kind>() {
    in_blocks(args.count, [&](int64_t i, int64_t n) {
      Acc in[2][kBlock], out[2][kBlock];
      Acc *c = out_block(args.out_center + i, out[0]), *r = out_block(args.out_radius + i, out[1]);
      run_alone(Boxes<kind>{}, in_block(args.center, i, n, in[0]), in_block(args.radius, i, n, in[1]), n, a, b, c, r);
      settle(c, n, args.out_center + i), settle(r, n, args.out_radius + i);
      if (!args.clean) return;
      Acc* x = out_block(args.out_clean + i, out[0]);
      run_alone(Points<kind>{}, in_block(args.clean, i, n, in[0]), n, a, b, x);
      settle(x, n, args.out_clean + i);
    });
  });
}

template <class T>
void interval_activation_backward_cpu(const IntervalActivationBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const IntervalActivationArgs<T>& f = args.forward;
  const Acc a = static_cast<Acc>(f.a), b = static_cast<Acc>(f.b);
  with_activation(f.kind, [&]<Activation kind>() {
    in_blocks(f.count, [&](int64_t i, int64_t n) {
      Acc in[4][kBlock], out[2][kBlock];
      Acc *c = out_block(args.grad_center + i, out[0]), *r = out_block(args.grad_radius + i, out[1]);
      run_alone(BoxGradients<kind>{}, in_block(f.center, i, n, in[0]), in_block(f.radius, i, n, in[1]),
                in_block(args.grad_out_center, i, n, in[2]), in_block(args.grad_out_radius, i, n, in[3]), n, a, b, c,
                r);
      settle(c, n, args.grad_center + i), settle(r, n, args.grad_radius + i);
      if (!f.clean) return;
      Acc* x = out_block(args.grad_clean + i, out[0]);
      run_alone(PointGradients<kind>{}, in_block(f.clean, i, n, in[0]), in_block(args.grad_out_clean, i, n, in[1]), n,
                a, b, x);
      settle(x, n, args.grad_clean + i);
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
