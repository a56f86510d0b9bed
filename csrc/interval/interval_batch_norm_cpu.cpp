// Both directions go through the operands in blocks that stay in L1, and do one thing after another to a block. Each of
// these loops is a function of its own (interval_batch_norm_loops.h), on the accumulator's type: dtypes and options are combined by calling one loop
// or another, so a loop is compiled once for an instruction set, not once for each combination (which was a quarter of
// the package's compile time). A flag is a template argument only where a choice inside would keep the loop scalar.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "interval/blocks.h"
#include "interval/interval_batch_norm.h"
#include "interval/interval_batch_norm_loops.h"
#include "interval/interval_batch_norm_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 512;  // elements at once: eight blocks of float32 are half of an L1 of 32 KB

// Elements [begin, begin + n) of one channel (or, with inner == 1, of n channels from `channel` on), n <= kBlock.
struct Segment {
  int64_t begin, n, channel;
};

// Calls body(segment, chunk) on a task's elements.
template <class Body>
void each_segment(const ChannelLayout& layout, int64_t task, const Body& body) {
  int64_t rows = 1, length, start, channel = 0, chunk = task;
  if (layout.inner == 1) {
    rows = std::min(layout.kRows + 0, layout.outer - task * layout.kRows), length = layout.channels;
    start = task * layout.kRows * length;
  } else {
    const int64_t pieces = layout.pieces(), piece = task % pieces, row = task / pieces / layout.channels;
    channel = task / pieces % layout.channels, chunk = row * pieces + piece;
    start = (row * layout.channels + channel) * layout.inner + piece * layout.kPiece;
    length = std::min(layout.kPiece + 0, layout.inner - piece * layout.kPiece);
  }
  for (int64_t row = 0; row < rows; ++row, start += length) {
    for (int64_t i = 0; i < length; i += kBlock) {
      body(Segment{start + i, std::min(kBlock, length - i), layout.inner == 1 ? i : channel}, chunk);
    }
  }
}

// n values where they belong; large results past the cache.
template <class T>
void put(const T* from, int64_t n, T* to, bool streamed) {
  streamed ? stream_store(to, from, n) : static_cast<void>(std::memcpy(to, from, n * sizeof(T)));
}

template <class T>
void put_rounded(const acc_t<T>* from, int64_t n, T* to, bool streamed) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    put(from, n, to, streamed);
  } else if (streamed) {
    T rounded[kBlock];
    narrow(from, n, rounded);
    stream_store(to, rounded, n);
  } else {
    narrow(from, n, to);
  }
}

int64_t grain_of(const ChannelLayout& layout, int64_t items) {
  return std::max<int64_t>(1, items * 32768 / std::max<int64_t>(1, layout.size()));
}

// ---- Statistics -----------------------------------------------------------------------------------------------------

template <class T>
void moments_task(const ChannelScaleArgs<T>& args, int64_t task) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  Acc wide[kBlock], first[kBlock];
  each_segment(layout, task, [&](const Segment& at, int64_t chunk) {
    const Acc* v = in_block(args.source, at.begin, at.n, wide);
    Acc* sums = args.partials + (chunk * layout.channels + at.channel) * 2;
    if (layout.inner == 1) {
      add_moments<Acc, 1>(v, in_block(args.source, at.channel, at.n, first), at.n, sums);
    } else {
      add_moments<Acc, 0>(v, in_block(args.source, at.channel * layout.inner, 1, first), at.n, sums);
    }
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

// ---- Forward and backward of a segment ------------------------------------------------------------------------------

// A segment's channel; only called where there is a scale.
template <class Args>
auto channel_of(const Args& args, const Segment& at) {
  using Acc = typename Args::Acc;
  static constexpr Acc none[kBlock] = {};
  const auto from = [&](const Acc* values) { return values ? values + at.channel : none; };
  return Channel<Acc>{args.scale + at.channel, from(args.shift), from(args.mean), from(args.bias)};
}

template <class T>
void forward_segment(const IntervalBatchNormArgs<T>& args, const Segment& at, bool streamed, double* sums,
                     bool* negative) {
  using Acc = acc_t<T>;
  const bool each = args.layout.inner == 1;
  const int64_t n = at.n;
  Acc wide[2][kBlock], y[2][kBlock];
  const Acc *c = in_block(args.center, at.begin, n, wide[0]), *r = in_block(args.radius, at.begin, n, wide[1]);
  *negative |= any_negative(r, n);

  // The box: scale, sums, ReLU.
  if (args.scale) {
    const auto scale = args.sound ? (each ? scale_boxes<Acc, 1, true> : scale_boxes<Acc, 0, true>)
                                  : (each ? scale_boxes<Acc, 1, false> : scale_boxes<Acc, 0, false>);
    scale(c, r, channel_of(args, at), n, y[0], y[1]);
    c = y[0], r = y[1];
  }
  if (sums) add_box_sums(c, r, n, sums);
  if (args.relu) {
    (args.sound ? relu_boxes<Acc, true> : relu_boxes<Acc, false>)(c, r, n, y[0], y[1]);
    c = y[0], r = y[1];
  }
  if constexpr (!std::is_same_v<T, Acc>) {
    if (args.sound) {
      T rounded[kBlock];
      narrow(c, n, rounded), widen(rounded, n, wide[0]);
      sound_radii<T>(c, r, wide[0], n, wide[1]);
      put(rounded, n, args.out_center + at.begin, streamed);
      put_rounded(wide[1], n, args.out_radius + at.begin, streamed);
    }
  }
  if (std::is_same_v<T, Acc> || !args.sound) {
    put_rounded(c, n, args.out_center + at.begin, streamed);
    put_rounded(r, n, args.out_radius + at.begin, streamed);
  }

  // The clean operand.
  if (!args.clean) return;
  static constexpr Acc one = 1, zero = 0;
  const Acc* x = in_block(args.clean, at.begin, n, wide[0]);
  const bool own = each && args.scale;
  const auto scale = args.relu ? (own ? scale_points<Acc, 1, true> : scale_points<Acc, 0, true>)
                               : (own ? scale_points<Acc, 1, false> : scale_points<Acc, 0, false>);
  scale(x, args.scale ? channel_of(args, at) : Channel<Acc>{&one, &zero, &zero, &zero}, n, y[0]);
  put_rounded(y[0], n, args.out_clean + at.begin, streamed);
}

template <class T>
void backward_segment(const IntervalBatchNormBackwardArgs<T>& args, const Segment& at, const acc_t<T>* added,
                      bool streamed, acc_t<T>* sums) {
  using Acc = acc_t<T>;
  const bool each = args.layout.inner == 1;
  const int64_t n = at.n;
  Acc wide[4][kBlock], h[2][kBlock], g0[kBlock], g1[kBlock];
  const Acc *c = in_block(args.center, at.begin, n, wide[0]), *r = in_block(args.radius, at.begin, n, wide[1]);
  const Acc* gc = in_block(args.grad_center, at.begin, n, wide[2]);
  const Acc* gr = in_block(args.grad_radius, at.begin, n, wide[3]);
  const Channel<Acc> channel = args.scale ? channel_of(args, at) : Channel<Acc>{};

  // The box: back through the ReLU, of which the box before it is made again, then through the scale.
  const Acc *yc = c, *yr = r;
  if (args.scale && !args.from_outputs) {
    (each ? scale_boxes<Acc, 1, false> : scale_boxes<Acc, 0, false>)(c, r, channel, n, h[0], h[1]);
    yc = h[0], yr = h[1];
  }
  const auto back = args.relu
                        ? (added ? gradients_before_relu<Acc, true, true> : gradients_before_relu<Acc, true, false>)
                        : (added ? gradients_before_relu<Acc, false, true> : gradients_before_relu<Acc, false, false>);
  back(gc, gr, yc, yr, added, n, h[0], h[1]);
  if (args.scale) {
    const auto scale = args.from_outputs ? (each ? scale_gradients<Acc, 1, true> : scale_gradients<Acc, 0, true>)
                                         : (each ? scale_gradients<Acc, 1, false> : scale_gradients<Acc, 0, false>);
    scale(c, r, channel, n, h[0], h[1], g0, g1);
  }
  put_rounded(h[0], n, args.out_center + at.begin, streamed && args.source != 0);  // else it is read again
  put_rounded(h[1], n, args.out_radius + at.begin, streamed);

  // The clean operand.
  if (args.clean) {
    const Acc *x = in_block(args.clean, at.begin, n, wide[0]), *gx = in_block(args.grad_clean, at.begin, n, wide[1]);
    if (args.scale) {
      const auto scale = args.relu ? (each ? point_gradients<Acc, 1, true> : point_gradients<Acc, 0, true>)
                                   : (each ? point_gradients<Acc, 1, false> : point_gradients<Acc, 0, false>);
      scale(x, gx, channel, n, h[0], g0, g1);
    } else if (args.relu) {
      relu_gradients(x, gx, n, h[0]);
    }
    put_rounded(args.scale || args.relu ? h[0] : gx, n, args.out_clean + at.begin, streamed && args.source != 2);
  }
  if (args.scale) (each ? add_channel_sums<Acc, 1> : add_channel_sums<Acc, 0>)(g0, g1, n, sums);
}

}  // namespace

// ---- The kernels ----------------------------------------------------------------------------------------------------

template <class T>
void channel_scale_cpu(const ChannelScaleArgs<T>& args) {
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
void interval_batch_norm_cpu(const IntervalBatchNormArgs<T>& args) {
  const int64_t tasks = args.layout.tasks(), groups = std::min<int64_t>(tasks, kBoxSumGroups);
  const bool streamed = args.layout.size() * int64_t(sizeof(T)) >= kStreamed;
  std::atomic<bool> negative{false};
  parallel_for(0, groups, grain_of(args.layout, groups), [&](int64_t first, int64_t last) {
    bool below = false;
    for (int64_t g = first; g < last; ++g) {
      double* sums = args.sums ? args.partials + g * kBoxSums : nullptr;
      if (sums) std::fill_n(sums, kBoxSums, 0.0);
      for (int64_t task = tasks * g / groups; task < tasks * (g + 1) / groups; ++task) {
        each_segment(args.layout, task,
                     [&](const Segment& at, int64_t) { forward_segment(args, at, streamed, sums, &below); });
      }
    }
    if (below) negative.store(true, std::memory_order_relaxed);
    if (streamed) stream_fence();
  });
  *args.negative = negative.load();
  if (!args.sums) return;
  std::fill_n(args.sums, kBoxSums, 0.0);
  for (int64_t g = 0; g < groups; ++g) {
    for (int k = 0; k < kBoxSums; ++k) args.sums[k] += args.partials[g * kBoxSums + k];
  }
}

template <class T>
void interval_batch_norm_backward_cpu(const IntervalBatchNormBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  const ChannelLayout& layout = args.layout;
  const int64_t n = layout.outer * layout.inner, grain = grain_of(layout, layout.tasks());
  const bool streamed = layout.size() * int64_t(sizeof(T)) >= kStreamed;

  // One pass over all operands: their gradients, and the channels' sums of each task.
  if (args.scale) std::fill_n(args.partials, layout.chunks() * layout.channels * 2, Acc(0));
  Acc added[6] = {};
  for (int k = 0; args.added && k < 6; ++k) added[k] = static_cast<Acc>(args.added[k]);
  parallel_for(0, layout.tasks(), grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      each_segment(layout, task, [&](const Segment& at, int64_t chunk) {
        Acc* sums = args.scale ? args.partials + (chunk * layout.channels + at.channel) * 2 : nullptr;
        backward_segment(args, at, args.added ? added : nullptr, streamed, sums);
      });
    }
    if (streamed) stream_fence();
  });
  if (!args.scale) return;

  // Weight and bias.
  parallel_for(0, layout.channels, 256, [&](int64_t first, int64_t last) {
    each_total(layout, args.partials, first, last, [&](int64_t c, double g0, double g1) {
      const double over = 1 / (double(args.var[c]) + args.eps);
      args.out_bias[c] = static_cast<Acc>(g0), args.out_weight[c] = static_cast<Acc>(g1 * sqrt(over));
      args.totals[c] = static_cast<Acc>(args.scale[c] * g0 / n);
      args.totals[layout.channels + c] = static_cast<Acc>(args.scale[c] * g1 * over / n);
    });
  });
  if (args.source < 0) return;

  // The statistics' share of their source's gradient.
  const T* v = args.source == 0 ? args.center : args.clean;
  T* d = args.source == 0 ? args.out_center : args.out_clean;
  const auto take_off = layout.inner == 1 ? source_gradients<Acc, 1> : source_gradients<Acc, 0>;
  parallel_for(0, layout.tasks(), grain, [&](int64_t first, int64_t last) {
    Acc wide[2][kBlock], y[kBlock];
    for (int64_t task = first; task < last; ++task) {
      each_segment(layout, task, [&](const Segment& at, int64_t) {
        const Acc *a = args.totals + at.channel, *b = a + layout.channels;
        const Acc *x = in_block(v, at.begin, at.n, wide[0]), *g = in_block<T>(d, at.begin, at.n, wide[1]);
        take_off(x, g, a, b, args.mean + at.channel, at.n, y);
        put_rounded(y, at.n, d + at.begin, false);
      });
    }
  });
}

#define INSTANTIATE(T)                                                       \
  template void channel_scale_cpu<T>(const ChannelScaleArgs<T>&);            \
  template void interval_batch_norm_cpu<T>(const IntervalBatchNormArgs<T>&); \
  template void interval_batch_norm_backward_cpu<T>(const IntervalBatchNormBackwardArgs<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
