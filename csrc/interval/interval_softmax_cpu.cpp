#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "interval/interval_softmax_math.h"

namespace warpup {

template <class T>
WARPUP_CLONES void box_ends(const T* __restrict center, const T* __restrict radius, int64_t n,
                            acc_t<T>* __restrict lower, acc_t<T>* __restrict upper) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const acc_t<T> c = load(center[j]), r = load(radius[j]);
    lower[j] = c - r, upper[j] = c + r;
  }
}

// The way back; of gradients too, where box_ends gave twice theirs.
template <class T>
WARPUP_CLONES void box_of_ends(const acc_t<T>* __restrict lower, const acc_t<T>* __restrict upper, int64_t n,
                               T* __restrict center, T* __restrict radius) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    center[j] = store<T>((lower[j] + upper[j]) / 2), radius[j] = store<T>((upper[j] - lower[j]) / 2);
  }
}

template <class Acc>
WARPUP_CLONES void put_in_order(const Acc* __restrict l, const Acc* __restrict u, int64_t n, Acc* __restrict lower,
                                const Acc* __restrict upper) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) lower[j] = in_order(l[j], u[j], lower[j], upper[j]);
}

template <class Acc>
WARPUP_CLONES void compete(const Acc* x, int64_t n, Competition<Acc>* out) {
  Acc max = -kInf<Acc>, second = -kInf<Acc>;
#pragma omp simd reduction(max : max)
  for (int64_t j = 0; j < n; ++j) max = x[j] > max ? x[j] : max;
  const int64_t at = max > -kInf<Acc> ? std::find(x, x + n, max) - x : -1;
#pragma omp simd reduction(max : second)
  for (int64_t j = 0; j < n; ++j) second = j != at && x[j] > second ? x[j] : second;
  Competition<Acc> all(Largest<Acc>{max, second, at});
  Acc rest = 0;
#pragma omp simd reduction(+ : rest)
  for (int64_t j = 0; j < n; ++j) rest += all.term(x[j], j);
  all.rest = rest;
  *out = all;
}

template <class Acc>
WARPUP_CLONES void shares(const Competition<Acc>& all, const Acc* __restrict own, const Acc* __restrict x, int64_t n,
                          Acc* __restrict out) {
  if (all.empty()) {
    for (int64_t j = 0; j < n; ++j) out[j] = all.uncontested(own[j]);
    return;
  }
  const Competition<Acc> local = all;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = local.share(own[j], x[j], j).value;
}

// d_own += the gradient of own, d_x += that of x; `part` is scratch.
template <class Acc>
WARPUP_CLONES void shares_gradient(const Competition<Acc>& all, const Acc* __restrict own, const Acc* __restrict x,
                                   const Acc* __restrict grad, int64_t n, Acc* __restrict part, Acc* __restrict d_own,
                                   Acc* __restrict d_x) {
  if (all.empty()) return;
  const Competition<Acc> local = all;
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const Share<Acc> s = local.share(own[j], x[j], j);
    const Acc g = grad[j] * s.value * s.complement;
    d_own[j] += g;
    part[j] = j == local.at ? Acc(0) : g / s.others;
    sum += part[j];
  }
  Acc top = 0;
  if (local.at >= 0 && local.rest != 0) {
    const Share<Acc> s = local.share(own[local.at], x[local.at], local.at);
    top = grad[local.at] * s.value * s.complement / local.rest;
  }
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) d_x[j] -= local.term(x[j], j) * (local.ratio * (sum - part[j]) + top);
  if (local.at >= 0) d_x[local.at] -= sum;
}

namespace {

int64_t rows_at_once(int64_t n) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(n, 1)); }

}  // namespace

template <class T>
void interval_softmax_cpu(const IntervalSoftmaxArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t n = args.n;
  parallel_for(0, args.rows, rows_at_once(n), [&](int64_t first, int64_t last) {
    std::vector<Acc> buffer(4 * n);
    Acc *l = buffer.data(), *u = l + n, *lower = u + n, *upper = lower + n;
    for (int64_t at = first * n; at < last * n; at += n) {
      Competition<Acc> high{Largest<Acc>{}}, low{Largest<Acc>{}};
      box_ends(args.center + at, args.radius + at, n, l, u);
      compete(u, n, &high), compete(l, n, &low);
      shares(high, l, u, n, lower), shares(low, u, l, n, upper);
      put_in_order(l, u, n, lower, upper);
      box_of_ends(lower, upper, n, args.out_center + at, args.out_radius + at);
    }
  });
}

template <class T>
void interval_softmax_backward_cpu(const IntervalSoftmaxBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const IntervalSoftmaxArgs<T>& f = args.forward;
  const int64_t n = f.n;
  parallel_for(0, f.rows, rows_at_once(n), [&](int64_t first, int64_t last) {
    std::vector<Acc> buffer(7 * n);
    Acc *l = buffer.data(), *u = l + n, *g_low = u + n, *g_high = g_low + n, *part = g_high + n, *d_l = part + n;
    Acc* d_u = d_l + n;
    for (int64_t at = first * n; at < last * n; at += n) {
      Competition<Acc> high{Largest<Acc>{}}, low{Largest<Acc>{}};
      box_ends(f.center + at, f.radius + at, n, l, u);
      box_ends(args.grad_out_center + at, args.grad_out_radius + at, n, g_low, g_high);  // twice the gradients
      compete(u, n, &high), compete(l, n, &low);
      std::fill(d_l, d_l + 2 * n, Acc(0));
      shares_gradient(high, l, u, g_low, n, part, d_l, d_u), shares_gradient(low, u, l, g_high, n, part, d_u, d_l);
      box_of_ends(d_l, d_u, n, args.grad_center + at, args.grad_radius + at);
    }
  });
}

#define INSTANTIATE(T)                                                       \
  template void interval_softmax_cpu<T>(const IntervalSoftmaxArgs<T>& args); \
  template void interval_softmax_backward_cpu<T>(const IntervalSoftmaxBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
