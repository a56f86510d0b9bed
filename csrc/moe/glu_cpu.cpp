// The CPU kernels of glu: blocks of a row, widened and parted into g and u, stay in L1.
#include <algorithm>

#include "core/parallel.h"
#include "core/widen.h"
#include "moe/glu.h"
#include "moe/glu_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 1024;              // elements of each of g, u and d: 12 KB of an L1 in float32
constexpr int64_t kGrain = int64_t(1) << 15;  // elements that are worth waking a thread for

}  // namespace

// 16-bit values are widened, and g and u parted, in loops of their own.
template <class T, bool kInterleaved>
WARPUP_LOOP void split(const T* __restrict h, int64_t width, int64_t n, acc_t<T>* __restrict g,
                       acc_t<T>* __restrict u) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) g[j] = load(h[kInterleaved ? 2 * j : j]);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) u[j] = load(h[kInterleaved ? 2 * j + 1 : width + j]);
}

template <class T, bool kInterleaved>
WARPUP_LOOP void join(const acc_t<T>* __restrict g, const acc_t<T>* __restrict u, int64_t width, int64_t n,
                      T* __restrict h) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) h[kInterleaved ? 2 * j : j] = store<T>(g[j]);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) h[kInterleaved ? 2 * j + 1 : width + j] = store<T>(u[j]);
}

template <class Acc, GluKind kKind>
WARPUP_LOOP void glu_block(const Acc* __restrict g, const Acc* __restrict u, int64_t n, Acc w, Acc* __restrict a) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) a[j] = w * (gate_factor<kKind>(g[j]).value * up_factor<kKind>(u[j]).value);
}

// g and u become their gradients, d becomes w f U; what is added to *dot is sum d f U.
template <class Acc, GluKind kKind>
WARPUP_LOOP void glu_backward_block(Acc* __restrict g, Acc* __restrict u, int64_t n, Acc w, Acc* __restrict d,
                                    Acc* __restrict dot) {
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const Factor<Acc> f = gate_factor<kKind>(g[j]), up = up_factor<kKind>(u[j]);
    const Acc product = f.value * up.value, wd = w * d[j];
    sum += d[j] * product;
    g[j] = wd * f.slope * up.value;
    u[j] = wd * f.value * up.slope;
    d[j] = w * product;
  }
  *dot += sum;
}

template <class T>
void glu_cpu(const GluArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t width = args.width;
  dispatch_kind(args.kind, [&]<GluKind kKind>() {
    constexpr bool interleaved = kInterleaved<kKind>;
    parallel_for(0, args.rows, kGrain / (width + 1) + 1, [&](int64_t first, int64_t last) {
      alignas(64) Acc g[kBlock], u[kBlock], a[kBlock];
      for (int64_t s = first; s < last; ++s) {
        const int64_t copy = copy_of(args, s);
        T* to = args.a + s * width;
        if (copy < 0) {
          std::fill_n(to, width, T{});
          continue;
        }
        for (int64_t j = 0; j < width; j += kBlock) {
          const int64_t n = std::min(kBlock, width - j);
          split<T, interleaved>(args.h + 2 * s * width + (interleaved ? 2 * j : j), width, n, g, u);
          glu_block<Acc, kKind>(g, u, n, weight_of(args, copy), a);
          narrow(a, n, to + j);
        }
      }
    });
  });
}

template <class T>
void glu_backward_cpu(const GluBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const GluArgs<T>& f = args.forward;
  const int64_t width = f.width;
  dispatch_kind(f.kind, [&]<GluKind kKind>() {
    constexpr bool interleaved = kInterleaved<kKind>;
    parallel_for(0, f.rows, kGrain / (width + 1) + 1, [&](int64_t first, int64_t last) {
      alignas(64) Acc g[kBlock], u[kBlock], d[kBlock];
      for (int64_t s = first; s < last; ++s) {
        const int64_t copy = copy_of(f, s);
        T* dh = args.grad_h + 2 * s * width;
        T* a = f.a ? f.a + s * width : nullptr;
        if (copy < 0) {
          std::fill_n(dh, 2 * width, T{});
          if (a) std::fill_n(a, width, T{});
          continue;
        }
        double dot = 0;
        for (int64_t j = 0; j < width; j += kBlock) {
          const int64_t n = std::min(kBlock, width - j), at = interleaved ? 2 * j : j;
          Acc part = 0;
          split<T, interleaved>(f.h + 2 * s * width + at, width, n, g, u);
          widen(args.grad_a + s * width + j, n, d);
          glu_backward_block<Acc, kKind>(g, u, n, weight_of(f, copy), d, &part);
          dot += part;
          join<T, interleaved>(g, u, width, n, dh + at);
          if (a) narrow(d, n, a + j);
        }
        if (args.grad_weights) args.grad_weights[copy] = static_cast<Acc>(dot);
      }
    });
  });
}

#define INSTANTIATE(T)                              \
  template void glu_cpu<T>(const GluArgs<T>& args); \
  template void glu_backward_cpu<T>(const GluBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
