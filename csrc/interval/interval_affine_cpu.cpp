#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "core/widen.h"
#include "interval/interval_affine.h"
#include "interval/interval_affine_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 512;  // elements worked on at once: all operands of a block stay in L1

// Elements [begin, begin + n) of one channel (or, with inner == 1, of n channels from `channel` on), n <= kBlock.
struct Segment {
  int64_t begin, n, channel;
};

// Calls body(segment, chunk) on a task's elements.
template <class Body>
WARPUP_HD void each_segment(const ChannelLayout& layout, int64_t task, const Body& body) {
  if (layout.inner == 1) {
    const int64_t first = task * layout.kRows, last = std::min(layout.outer, first + layout.kRows);
    for (int64_t row = first; row < last; ++row) {
      for (int64_t c = 0; c < layout.channels; c += kBlock) {
        body(Segment{row * layout.channels + c, std::min(kBlock, layout.channels - c), c}, task);
      }
    }
    return;
  }
  const int64_t pieces = layout.pieces(), piece = task % pieces, channel = task / pieces % layout.channels;
  const int64_t row = task / pieces / layout.channels, begin = (row * layout.channels + channel) * layout.inner;
  const int64_t last = std::min(layout.inner, (piece + 1) * layout.kPiece);
  for (int64_t i = piece * layout.kPiece; i < last; i += kBlock) {
    body(Segment{begin + i, std::min(kBlock, last - i), channel}, row * pieces + piece);
  }
}

// x[begin, begin + n) in the accumulator's type; zeros where x is null.
template <class T>
WARPUP_HD const acc_t<T>* loaded(const T* x, int64_t begin, int64_t n, acc_t<T>* buffer) {
  if (x) return widened(x + begin, n, buffer);
  std::memset(buffer, 0, n * sizeof(acc_t<T>));
  return buffer;
}

template <class T>
WARPUP_HD void put(T* to, const T* from, int64_t n, bool streamed) {
  if (streamed) {
    stream_store(to, from, n);
  } else {
    std::memcpy(to, from, n * sizeof(T));
  }
}

// A block's results before they go where they belong.
template <class T>
WARPUP_HD void put_narrowed(T* to, const acc_t<T>* from, int64_t n, bool streamed) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    put(to, from, n, streamed);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) to[i] = store<T>(from[i]);
  }
}

int64_t grain_of(const ChannelLayout& layout, int64_t items) {
  return std::max<int64_t>(1, items * 32768 / std::max<int64_t>(1, layout.size()));
}

// ---- Statistics -----------------------------------------------------------------------------------------------------

// Sums of v - v0 and its square, v0 the channel's first element: little is lost to a large mean.
template <class T>
WARPUP_CLONES void moments_task(const ChannelAffineArgs<T>& args, int64_t task) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  Acc buffer[kBlock], shift[kBlock];
  each_segment(layout, task, [&](const Segment& at, int64_t chunk) __attribute__((always_inline)) {
    const Acc* x = loaded(args.source, at.begin, at.n, buffer);
    Acc* sums = args.partials + (chunk * layout.channels + at.channel) * 2;
    if (layout.inner == 1) {
      const Acc* first = loaded(args.source, at.channel, at.n, shift);
#pragma omp simd
      for (int64_t i = 0; i < at.n; ++i) {
        const Acc d = x[i] - first[i];
        sums[2 * i] += d, sums[2 * i + 1] += d * d;
      }
      return;
    }
    const Acc first = load(args.source[at.channel * layout.inner]);
    Acc sum = 0, square = 0;
#pragma omp simd reduction(+ : sum, square)
    for (int64_t i = 0; i < at.n; ++i) {
      const Acc d = x[i] - first;
      sum += d, square += d * d;
    }
    sums[0] += sum, sums[1] += square;
  });
}

// The tasks' partial sums of channels [first, last), added up in order.
template <class Acc, class Body>
void each_total(const ChannelLayout& layout, const Acc* partials, int64_t first, int64_t last, const Body& body) {
  for (int64_t c = first; c < last; ++c) {
    double a = 0, b = 0;
    for (int64_t p = 0; p < layout.chunks(); ++p) {
      const Acc* sums = partials + (p * layout.channels + c) * 2;
      a += sums[0], b += sums[1];
    }
    body(c, a, b);
  }
}

// ---- Forward --------------------------------------------------------------------------------------------------------

template <class Acc>
WARPUP_HD void add_sums(const Acc* c, const Acc* r, int64_t n, double* total) {
  double radius = 0, center = 0, active = 0, ac = 0, ac2 = 0, inactive = 0, ic = 0, ic2 = 0;
#pragma omp simd reduction(+ : radius, center, active, ac, ac2, inactive, ic, ic2)
  for (int64_t i = 0; i < n; ++i) {
    const Acc l = c[i] - r[i], u = c[i] + r[i];
    const double x = c[i], a = l > 0 ? 1.0 : 0.0, d = u < 0 ? 1.0 : 0.0;
    radius += r[i], center += x;
    active += a, ac += a * x, ac2 += a * x * x;
    inactive += d, ic += d * x, ic2 += d * x * x;
  }
  const double found[] = {radius, center, active, ac, ac2, inactive, ic, ic2};
  for (int k = 0; k < BoxSumsPart::kCount; ++k) total[k] += found[k];
}

// kStep 1: a scale for each element of a segment, 0: one for all. Flags are template arguments: a choice by a flag that
// the loop does not change is not vectorised.
template <class T, bool kSound, bool kRelu, int kStep>
WARPUP_HD void affine_segment(const IntervalAffineArgs<T>& args, const Segment& at, bool streamed, double* sums,
                              bool* negative) {
  using Acc = acc_t<T>;
  Acc wide[2][kBlock], y[2][kBlock];
  T out[2][kBlock];
  const Acc one = 1, zero = 0;
  const Acc* s = args.scale ? args.scale + at.channel : &one;
  const Acc* t = args.scale ? args.shift + at.channel : &zero;
  const Acc* c = loaded(args.center, at.begin, at.n, wide[0]);
  const Acc* r = loaded(args.radius, at.begin, at.n, wide[1]);
  int below = 0;
  if (args.scale) {
    const Acc* mean = kSound ? args.mean + at.channel : &zero;
    const Acc* bias = kSound && args.bias ? args.bias + at.channel : &zero;
    const int64_t bias_step = kSound && args.bias ? kStep : 0, mean_step = kSound ? kStep : 0;
#pragma omp simd reduction(| : below)
    for (int64_t i = 0; i < at.n; ++i) {
      const Acc scale = s[i * kStep];
      const Acc m = kSound ? magnitude(bias[i * bias_step]) + magnitude(mean[i * mean_step] * scale) : Acc(0);
      const auto box = affine_box<Acc, kSound>(c[i], r[i], scale, t[i * kStep], m);
      below |= r[i] < 0;
      y[0][i] = box.c, y[1][i] = box.r;
    }
    c = y[0], r = y[1];
  } else {
#pragma omp simd reduction(| : below)
    for (int64_t i = 0; i < at.n; ++i) below |= r[i] < 0;
  }
  *negative |= below != 0;
  if (sums) add_sums(c, r, at.n, sums);
#pragma omp simd
  for (int64_t i = 0; i < at.n; ++i) {
    const auto stored = stored_box<T, kSound>(kRelu ? relu_box<T, kSound>({c[i], r[i]}) : BoxOf<Acc>{c[i], r[i]});
    out[0][i] = stored.c, out[1][i] = stored.r;
  }
  put(args.out_center + at.begin, out[0], at.n, streamed);
  put(args.out_radius + at.begin, out[1], at.n, streamed);
  if (!args.clean) return;
  const Acc* x = loaded(args.clean, at.begin, at.n, wide[0]);
#pragma omp simd
  for (int64_t i = 0; i < at.n; ++i) {
    const Acc z = s[i * kStep] * x[i] + t[i * kStep];
    y[0][i] = kRelu && z <= 0 ? Acc(0) : z;
  }
  put_narrowed(args.out_clean + at.begin, y[0], at.n, streamed);
}

template <class T, bool kSound, bool kRelu>
WARPUP_CLONES void affine_tasks(const IntervalAffineArgs<T>& args, int64_t first, int64_t last, double* sums,
                                bool* negative) {
  const bool streamed = args.layout.size() * int64_t(sizeof(T)) >= kStreamed;
  for (int64_t task = first; task < last; ++task) {
    each_segment(args.layout, task, [&](const Segment& at, int64_t) __attribute__((always_inline)) {
      if (args.layout.inner == 1 && args.scale) {
        affine_segment<T, kSound, kRelu, 1>(args, at, streamed, sums, negative);
      } else {
        affine_segment<T, kSound, kRelu, 0>(args, at, streamed, sums, negative);
      }
    });
  }
  if (streamed) stream_fence();
}

// ---- Backward -------------------------------------------------------------------------------------------------------

template <class T, bool kRelu, bool kOutputs, bool kAdded, int kStep>
WARPUP_HD void backward_segment(const IntervalAffineBackwardArgs<T>& args, const Segment& at, const acc_t<T>* added,
                                bool streamed, acc_t<T>* sums) {
  using Acc = acc_t<T>;
  Acc wide[4][kBlock], y[2][kBlock], g0[kBlock], g1[kBlock];
  const Acc one = 1, zero = 0;
  const bool affine = args.scale;
  const Acc* s = affine ? args.scale + at.channel : &one;
  const Acc* t = affine ? args.shift + at.channel : &zero;
  const Acc* mean = affine ? args.mean + at.channel : &zero;
  static constexpr Acc none[kBlock] = {};
  const Acc* bias = args.bias ? args.bias + at.channel : none;
  const Acc *c = loaded(args.center, at.begin, at.n, wide[0]), *r = loaded(args.radius, at.begin, at.n, wide[1]);
  const Acc *gc = loaded(args.grad_center, at.begin, at.n, wide[2]),
            *gr = loaded(args.grad_radius, at.begin, at.n, wide[3]);
#pragma omp simd
  for (int64_t i = 0; i < at.n; ++i) {
    const Acc center = c[i], radius = r[i], scale = s[i * kStep];
    const auto box = affine_box<Acc, false>(center, radius, scale, t[i * kStep], Acc(0));
    const Acc yc = kOutputs ? center : box.c, yr = kOutputs ? radius : box.r;
    const auto h = before_relu<Acc, kRelu, kAdded>({gc[i], gr[i]}, {yc, yr}, added);
    const Acc hc = h.c, hr = h.r;  // a struct that is handed on as a whole lies in memory, and the loop stays scalar
    y[0][i] = scale * hc, y[1][i] = magnitude(scale) * hr;
    g0[i] = hc, g1[i] = scale_gradient({hc, hr}, center, radius, kOutputs, scale, mean[i * kStep], bias[i * kStep]);
  }
  put_narrowed(args.out_center + at.begin, y[0], at.n, streamed && args.source != 0);
  put_narrowed(args.out_radius + at.begin, y[1], at.n, streamed);
  if (args.clean) {
    const Acc *x = loaded(args.clean, at.begin, at.n, wide[0]), *gx = loaded(args.grad_clean, at.begin, at.n, wide[1]);
#pragma omp simd
    for (int64_t i = 0; i < at.n; ++i) {
      const Acc scale = s[i * kStep], z = scale * x[i] + t[i * kStep], h = kRelu && z <= 0 ? Acc(0) : gx[i];
      y[0][i] = scale * h;
      g0[i] += h, g1[i] += h * (x[i] - mean[i * kStep]);
    }
    put_narrowed(args.out_clean + at.begin, y[0], at.n, streamed && args.source != 2);
  }
  if (!affine) return;
  if (kStep == 1) {
#pragma omp simd
    for (int64_t i = 0; i < at.n; ++i) sums[2 * i] += g0[i], sums[2 * i + 1] += g1[i];
    return;
  }
  Acc a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
  for (int64_t i = 0; i < at.n; ++i) a += g0[i], b += g1[i];
  sums[0] += a, sums[1] += b;
}

template <class T, bool kRelu, bool kOutputs, bool kAdded>
WARPUP_CLONES void backward_tasks(const IntervalAffineBackwardArgs<T>& args, int64_t first, int64_t last) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  const bool streamed = layout.size() * int64_t(sizeof(T)) >= kStreamed;
  Acc added[6] = {};
  for (int k = 0; kAdded && k < 6; ++k) added[k] = static_cast<Acc>(args.added[k]);
  for (int64_t task = first; task < last; ++task) {
    each_segment(layout, task, [&](const Segment& at, int64_t chunk) __attribute__((always_inline)) {
      Acc* sums = args.scale ? args.partials + (chunk * layout.channels + at.channel) * 2 : nullptr;
      if (layout.inner == 1 && args.scale) {
        backward_segment<T, kRelu, kOutputs, kAdded, 1>(args, at, added, streamed, sums);
      } else {
        backward_segment<T, kRelu, kOutputs, kAdded, 0>(args, at, added, streamed, sums);
      }
    });
  }
  if (streamed) stream_fence();
}

// What the statistics' own gradient adds to their source: d += a + b v, channel by channel.
template <class T>
WARPUP_CLONES void source_tasks(const IntervalAffineBackwardArgs<T>& args, const T* v, T* d, int64_t first,
                                int64_t last) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  Acc wide[2][kBlock], y[kBlock];
  const Acc *a = args.totals, *b = args.totals + layout.channels;
  const int64_t step = layout.inner == 1;
  for (int64_t task = first; task < last; ++task) {
    each_segment(layout, task, [&](const Segment& at, int64_t) __attribute__((always_inline)) {
      const Acc *x = loaded(v, at.begin, at.n, wide[0]), *g = loaded<T>(d, at.begin, at.n, wide[1]);
      const Acc *mean = args.mean + at.channel, *as = a + at.channel, *bs = b + at.channel;
#pragma omp simd
      for (int64_t i = 0; i < at.n; ++i) y[i] = g[i] - (as[i * step] + bs[i * step] * (x[i] - mean[i * step]));
      put_narrowed(d + at.begin, y, at.n, false);
    });
  }
}

}  // namespace

template <class T>
void channel_affine_cpu(const ChannelAffineArgs<T>& args) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  const int64_t n = layout.outer * layout.inner;
  if (args.source) {
    std::fill_n(args.partials, layout.chunks() * layout.channels * 2, Acc(0));
    parallel_for(0, layout.tasks(), grain_of(layout, layout.tasks()), [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) moments_task(args, task);
    });
  }
  parallel_for(0, layout.channels, 256, [&](int64_t first, int64_t last) {
    each_total(layout, args.partials, first, args.source ? last : first, [&](int64_t c, double sum, double square) {
      const double rest = sum / double(n), v0 = n > 0 ? load(args.source[c * layout.inner]) : Acc(0);
      args.mean[c] = static_cast<Acc>(v0 + rest);
      const double var = square / double(n) - rest * rest;
      args.var[c] = static_cast<Acc>(var < 0 ? 0 : var);
    });
    for (int64_t c = first; c < last; ++c) {
      scale_and_shift(double(args.mean[c]), double(args.var[c]), args.weight, args.bias, args.eps, c, args.scale,
                      args.shift);
    }
  });
}

template <class T>
void interval_affine_cpu(const IntervalAffineArgs<T>& args) {
  constexpr int kCount = BoxSumsPart::kCount;
  const int64_t tasks = args.layout.tasks(), groups = std::min<int64_t>(tasks, BoxSumsPart::kGroups);
  std::atomic<bool> negative{false};
  parallel_for(0, groups, grain_of(args.layout, groups), [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g) {
      double* sums = args.sums ? args.partials + g * kCount : nullptr;
      if (sums) std::fill_n(sums, kCount, 0.0);
      bool below = false;
      const auto run = args.sound ? (args.relu ? affine_tasks<T, true, true> : affine_tasks<T, true, false>)
                                  : (args.relu ? affine_tasks<T, false, true> : affine_tasks<T, false, false>);
      run(args, tasks * g / groups, tasks * (g + 1) / groups, sums, &below);
      if (below) negative.store(true, std::memory_order_relaxed);
    }
  });
  *args.negative = negative.load();
  if (!args.sums) return;
  std::fill_n(args.sums, kCount, 0.0);
  for (int64_t g = 0; g < groups; ++g) {
    for (int k = 0; k < kCount; ++k) args.sums[k] += args.partials[g * kCount + k];
  }
}

template <class T>
void interval_affine_backward_cpu(const IntervalAffineBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  const int64_t n = layout.outer * layout.inner, grain = grain_of(layout, layout.tasks());
  if (args.scale) std::fill_n(args.partials, layout.chunks() * layout.channels * 2, Acc(0));
  parallel_for(0, layout.tasks(), grain, [&](int64_t first, int64_t last) {
    const bool relu = args.relu, added = args.added != nullptr;
    const auto run = !relu ? (added ? backward_tasks<T, false, false, true> : backward_tasks<T, false, false, false>)
                     : args.from_outputs
                         ? (added ? backward_tasks<T, true, true, true> : backward_tasks<T, true, true, false>)
                         : (added ? backward_tasks<T, true, false, true> : backward_tasks<T, true, false, false>);
    run(args, first, last);
  });
  if (!args.scale) return;
  parallel_for(0, layout.channels, 256, [&](int64_t first, int64_t last) {
    each_total(layout, args.partials, first, last, [&](int64_t c, double g0, double g1) {
      const double over = 1 / (double(args.var[c]) + args.eps);
      args.out_bias[c] = static_cast<Acc>(g0), args.out_weight[c] = static_cast<Acc>(g1 * sqrt(over));
      args.totals[c] = static_cast<Acc>(args.scale[c] * g0 / n);
      args.totals[layout.channels + c] = static_cast<Acc>(args.scale[c] * g1 * over / n);
    });
  });
  if (args.source < 0) return;
  const T* v = args.source == 0 ? args.center : args.clean;
  T* d = args.source == 0 ? args.out_center : args.out_clean;
  parallel_for(0, layout.tasks(), grain, [&](int64_t first, int64_t last) { source_tasks(args, v, d, first, last); });
}

#define INSTANTIATE(T)                                                \
  template void channel_affine_cpu<T>(const ChannelAffineArgs<T>&);   \
  template void interval_affine_cpu<T>(const IntervalAffineArgs<T>&); \
  template void interval_affine_backward_cpu<T>(const IntervalAffineBackwardArgs<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
