#include <algorithm>
#include <vector>

#include "core/extremes.h"
#include "core/parallel.h"
#include "interval/blocks.h"
#include "interval/interval_softmax_math.h"

namespace warpup {

namespace {

// ---- Loops over a row -----------------------------------------------------------------------------------------------

struct Ends {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* center, const Acc* radius, int64_t n, Acc* lower, Acc* upper) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) lower[j] = center[j] - radius[j], upper[j] = center[j] + radius[j];
  }
};

// The way back, in place; of gradients too, where Ends gave twice theirs.
struct BoxesOfEnds {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* lower, const Acc* upper, int64_t n, Acc* center, Acc* radius) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const Acc l = lower[j], u = upper[j];
      center[j] = (l + u) / 2, radius[j] = (u - l) / 2;
    }
  }
};

struct InOrder {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* l, const Acc* u, int64_t n, Acc* lower, const Acc* upper) const {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) lower[j] = in_order(l[j], u[j], lower[j], upper[j]);
  }
};

// The first place where x is `value`, which is there. Pieces are looked at as a whole before one is searched.
template <class Acc>
WARPUP_HD int64_t place_of(Acc value, const Acc* x, int64_t n) {
  constexpr int64_t kPiece = 64;
  for (int64_t begin = 0;; begin += kPiece) {
    const int64_t end = begin + kPiece < n ? begin + kPiece : n;
    int here = 0;
#pragma omp simd reduction(| : here)
    for (int64_t j = begin; j < end; ++j) here |= x[j] == value;
    if (here || end == n) return std::find(x + begin, x + end, value) - x;
  }
}

// What the elements of x compete with, and the term of each in it.
struct Compete {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* x, int64_t n, Competition<Acc>* out, Acc* terms) const {
    Acc max = -kInf<Acc>, second = -kInf<Acc>;
#pragma omp simd reduction(largest : max)
    for (int64_t j = 0; j < n; ++j) max = x[j] > max ? x[j] : max;
    const int64_t at = max > -kInf<Acc> ? place_of(max, x, n) : -1;
#pragma omp simd reduction(largest : second)
    for (int64_t j = 0; j < n; ++j) second = j != at && x[j] > second ? x[j] : second;
    Competition<Acc> all(Largest<Acc>{max, second, at});
    Acc rest = 0;
#pragma omp simd reduction(+ : rest)
    for (int64_t j = 0; j < n; ++j) rest += terms[j] = all.term(x[j], j);
    all.rest = rest;
    *out = all;
  }
};

struct Shares {  // in the place of the terms
  template <class Acc>
  WARPUP_HD void operator()(const Acc* own, int64_t n, const Competition<Acc>* all, Acc* out) const {
    const Competition<Acc> local = *all;
    if (local.empty()) {
      for (int64_t j = 0; j < n; ++j) out[j] = local.uncontested(own[j]);
      return;
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = local.share(own[j], out[j], j).value;
  }
};

// d_own += the gradient of own, d_x += that of x, whose terms are given; `part` is scratch.
struct ShareGradients {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* own, const Acc* terms, const Acc* grad, int64_t n, const Competition<Acc>* all,
                            Acc* part, Acc* d_own, Acc* d_x) const {
    const Competition<Acc> local = *all;
    if (local.empty()) return;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) {
      const Share<Acc> s = local.share(own[j], terms[j], j);
      const Acc g = grad[j] * s.value * s.complement;
      d_own[j] += g;
      part[j] = j == local.at ? Acc(0) : g / s.others;
      sum += part[j];
    }
    Acc top = 0;
    if (local.at >= 0 && local.rest != 0) {
      const Share<Acc> s = local.share(own[local.at], Acc(0), local.at);
      top = grad[local.at] * s.value * s.complement / local.rest;
    }
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) d_x[j] -= terms[j] * (local.ratio * (sum - part[j]) + top);
    if (local.at >= 0) d_x[local.at] -= sum;
  }
};

int64_t rows_at_once(int64_t n) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(n, 1)); }

}  // namespace

// ---- The kernels ----------------------------------------------------------------------------------------------------

template <class T>
void interval_softmax_cpu(const IntervalSoftmaxArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t n = args.n;
  parallel_for(0, args.rows, rows_at_once(n), [&](int64_t first, int64_t last) {
    std::vector<Acc> buffer(4 * n);
    Acc *l = buffer.data(), *u = l + n, *lower = u + n, *upper = lower + n;
    for (int64_t at = first * n; at < last * n; at += n) {
      // The ends of the boxes, and what they compete with: a lower bound with the others' upper ends.
      Competition<Acc> high{Largest<Acc>{}}, low{Largest<Acc>{}};
      run_alone(Ends{}, in_block(args.center, at, n, lower), in_block(args.radius, at, n, upper), n, l, u);
      run_alone(Compete{}, u, n, &high, lower), run_alone(Compete{}, l, n, &low, upper);
      // The probabilities' bounds, and their boxes.
      run_alone(Shares{}, l, n, &high, lower), run_alone(Shares{}, u, n, &low, upper);
      run_alone(InOrder{}, l, u, n, lower, upper);
      Acc *c = out_block(args.out_center + at, lower), *r = out_block(args.out_radius + at, upper);
      run_alone(BoxesOfEnds{}, lower, upper, n, c, r);
      settle(c, n, args.out_center + at), settle(r, n, args.out_radius + at);
    }
  });
}

template <class T>
void interval_softmax_backward_cpu(const IntervalSoftmaxBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const IntervalSoftmaxArgs<T>& f = args.forward;
  const int64_t n = f.n;
  parallel_for(0, f.rows, rows_at_once(n), [&](int64_t first, int64_t last) {
    std::vector<Acc> buffer(8 * n);
    Acc *l = buffer.data(), *u = l + n, *g_low = u + n, *g_high = g_low + n, *part = g_high + n, *terms = part + n;
    Acc *d_l = terms + n, *d_u = d_l + n;
    for (int64_t at = first * n; at < last * n; at += n) {
      // As in the forward; the gradients of the bounds are twice those of center and radius, undone in the end.
      Competition<Acc> high{Largest<Acc>{}}, low{Largest<Acc>{}};
      run_alone(Ends{}, in_block(f.center, at, n, d_l), in_block(f.radius, at, n, d_u), n, l, u);
      run_alone(Ends{}, in_block(args.grad_out_center, at, n, d_l), in_block(args.grad_out_radius, at, n, d_u), n,
                g_low, g_high);
      std::fill(d_l, d_l + 2 * n, Acc(0));
      run_alone(Compete{}, u, n, &high, terms);
      run_alone(ShareGradients{}, l, terms, g_low, n, &high, part, d_l, d_u);
      run_alone(Compete{}, l, n, &low, terms);
      run_alone(ShareGradients{}, u, terms, g_high, n, &low, part, d_u, d_l);
      Acc *c = out_block(args.grad_center + at, d_l), *r = out_block(args.grad_radius + at, d_u);
      run_alone(BoxesOfEnds{}, d_l, d_u, n, c, r);
      settle(c, n, args.grad_center + at), settle(r, n, args.grad_radius + at);
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
