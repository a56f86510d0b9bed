// The loops of interval_batch_norm's CPU kernels over one block, on the accumulator's type: each is compiled once,
// whatever dtypes and options call it.
//
// What belongs to a channel is read at i * kStep: kStep 1 where each element has a channel of its own, 0 where one
// channel has them all. Outputs may be the inputs at the same place.
#pragma once

#include "interval/interval_batch_norm.h"
#include "interval/interval_batch_norm_math.h"

namespace warpup {
namespace {

template <class Acc>
struct Channel {
  const Acc *scale, *shift, *mean, *bias;
};

template <class Acc>
WARPUP_LOOP bool any_negative(const Acc* r, int64_t n) {
  int found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < n; ++i) found |= r[i] < 0;
  return found != 0;
}

// Sums of v - v0 and its square, v0 the channel's first element: little is lost to a large mean.
template <class Acc, int kStep>
WARPUP_LOOP void add_moments(const Acc* v, const Acc* v0, int64_t n, Acc* sums) {
  if constexpr (kStep == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const Acc d = v[i] - v0[i];
      sums[2 * i] += d, sums[2 * i + 1] += d * d;
    }
  } else {
    const Acc first = *v0;
    Acc sum = 0, square = 0;
#pragma omp simd reduction(+ : sum, square)
    for (int64_t i = 0; i < n; ++i) {
      const Acc d = v[i] - first;
      sum += d, square += d * d;
    }
    sums[0] += sum, sums[1] += square;
  }
}

template <class Acc, int kStep, bool kSound>
WARPUP_LOOP void scale_boxes(const Acc* c, const Acc* r, const Channel<Acc>& at, int64_t n, Acc* yc, Acc* yr) {
  const Acc *s = at.scale, *t = at.shift, *mean = at.mean, *bias = at.bias;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Acc scale = s[i * kStep];
    const Acc m = kSound ? magnitude(bias[i * kStep]) + magnitude(mean[i * kStep] * scale) : Acc(0);
    const auto y = scaled_box(c[i], r[i], scale, t[i * kStep], m, kSound);
    yc[i] = y.center, yr[i] = y.radius;
  }
}

template <class Acc, bool kSound>
WARPUP_LOOP void relu_boxes(const Acc* c, const Acc* r, int64_t n, Acc* yc, Acc* yr) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const auto y = relu_box(c[i], r[i], kSound);
    yc[i] = y.center, yr[i] = y.radius;
  }
}

template <class T>
WARPUP_LOOP void sound_radii(const acc_t<T>* c, const acc_t<T>* r, const acc_t<T>* rounded, int64_t n, acc_t<T>* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = sound_radius<T>(c[i], r[i], rounded[i]);
}

template <class Acc, int kStep, bool kRelu>
WARPUP_LOOP void scale_points(const Acc* x, const Channel<Acc>& at, int64_t n, Acc* y) {
  const Acc *s = at.scale, *t = at.shift;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Acc z = s[i * kStep] * x[i] + t[i * kStep];
    y[i] = kRelu && z <= 0 ? Acc(0) : z;
  }
}

template <class Acc>
WARPUP_LOOP void add_box_sums(const Acc* c, const Acc* r, int64_t n, double* total) {
  double radius = 0, center = 0, active = 0, ac = 0, ac2 = 0, inactive = 0, ic = 0, ic2 = 0;
#pragma omp simd reduction(+ : radius, center, active, ac, ac2, inactive, ic, ic2)
  for (int64_t i = 0; i < n; ++i) {
    const Acc l = c[i] - r[i], u = c[i] + r[i];
    const double x = c[i], a = l > 0 ? 1.0 : 0.0, d = u < 0 ? 1.0 : 0.0;
    radius += r[i], center += x;
    active += a, ac += a * x, ac2 += a * x * x;
    inactive += d, ic += d * x, ic2 += d * x * x;
  }
  const double found[kBoxSums] = {radius, center, active, ac, ac2, inactive, ic, ic2};
  for (int k = 0; k < kBoxSums; ++k) total[k] += found[k];
}

template <class Acc, bool kRelu, bool kAdded>
WARPUP_LOOP void gradients_before_relu(const Acc* gc, const Acc* gr, const Acc* yc, const Acc* yr, const Acc* added,
                                       int64_t n, Acc* hc, Acc* hr) {
  Acc more[6] = {};
  for (int k = 0; kAdded && k < 6; ++k) more[k] = added[k];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const auto h = before_relu(gc[i], gr[i], yc[i], yr[i], kRelu, kAdded ? more : nullptr);
    hc[i] = h.center, hr[i] = h.radius;
  }
}

// h becomes the gradient before the scale; g0 and g1 are what each element adds to the channel's sums.
template <class Acc, int kStep, bool kOutputs>
WARPUP_LOOP void scale_gradients(const Acc* c, const Acc* r, const Channel<Acc>& at, int64_t n, Acc* hc, Acc* hr,
                                 Acc* g0, Acc* g1) {
  const Acc *s = at.scale, *mean = at.mean, *bias = at.bias;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Acc scale = s[i * kStep], own_c = hc[i], own_r = hr[i];
    g0[i] = own_c;
    g1[i] = scale_gradient(own_c, own_r, c[i], r[i], kOutputs, scale, mean[i * kStep], bias[i * kStep]);
    hc[i] = scale * own_c, hr[i] = magnitude(scale) * own_r;
  }
}

template <class Acc, int kStep, bool kRelu>
WARPUP_LOOP void point_gradients(const Acc* x, const Acc* gx, const Channel<Acc>& at, int64_t n, Acc* dx, Acc* g0,
                                 Acc* g1) {
  const Acc *s = at.scale, *t = at.shift, *mean = at.mean;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Acc scale = s[i * kStep], z = scale * x[i] + t[i * kStep], h = kRelu && z <= 0 ? Acc(0) : gx[i];
    dx[i] = scale * h;
    g0[i] += h, g1[i] += h * (x[i] - mean[i * kStep]);
  }
}

template <class Acc>
WARPUP_LOOP void relu_gradients(const Acc* x, const Acc* gx, int64_t n, Acc* dx) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) dx[i] = x[i] <= 0 ? Acc(0) : gx[i];
}

template <class Acc, int kStep>
WARPUP_LOOP void add_channel_sums(const Acc* g0, const Acc* g1, int64_t n, Acc* sums) {
  if constexpr (kStep == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) sums[2 * i] += g0[i], sums[2 * i + 1] += g1[i];
  } else {
    Acc a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
    for (int64_t i = 0; i < n; ++i) a += g0[i], b += g1[i];
    sums[0] += a, sums[1] += b;
  }
}

// What the statistics' own gradient takes off that of their source v.
template <class Acc, int kStep>
WARPUP_LOOP void source_gradients(const Acc* v, const Acc* g, const Acc* a, const Acc* b, const Acc* mean, int64_t n,
                                  Acc* d) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = g[i] - (a[i * kStep] + b[i * kStep] * (v[i] - mean[i * kStep]));
}

}  // namespace
}  // namespace warpup
