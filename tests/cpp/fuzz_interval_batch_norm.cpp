// interval_batch_norm and interval_relu, with statistics, sums, sound bounds and all gradients, against plain loops.
#include <algorithm>

#include "fuzz.h"
#include "interval/interval_batch_norm_check.h"

namespace fuzz {
namespace {

struct NormCase {
  DType dtype, acc;
  int64_t outer, channels, inner;
  int64_t source;  // of the statistics: 0 center, 2 clean, -1 given
  bool normalized, clean, weight, bias, relu, sound, sums;
  double eps = 0.1;  // so large that a channel of one element does not blow up its roundings

  int64_t size() const { return outer * channels * inner; }
  int64_t channel(int64_t i) const { return i / inner % channels; }
  double count() const { return double(outer * inner); }
};

NormCase norm_case() {
  NormCase x;
  x.dtype = floating(), x.acc = x.dtype == DType::f64 ? DType::f64 : DType::f32;
  x.inner = chance(0.4) ? 1 : 1 + below(chance(0.05) ? 5000 : 40);
  x.channels = chance(0.05) && x.inner < 50 ? 600 : 1 + below(6);
  x.outer = x.size() > 4000 ? 1 : 1 + below(x.inner == 1 && x.channels < 10 ? 80 : 4);
  x.normalized = chance(0.7), x.clean = chance(0.6);
  x.source = !x.normalized || chance(0.4) ? -1 : x.clean && chance(0.6) ? 2 : 0;
  x.weight = x.normalized && chance(0.7), x.bias = x.normalized && chance(0.7);
  x.relu = !x.normalized || chance(0.7), x.sound = x.source < 0 && chance(0.4), x.sums = chance(0.4);
  return x;
}

FUZZ(interval_batch_norm) {
  const NormCase x = norm_case();
  const int64_t n = x.size(), channels = x.channels;
  const auto optional = [](bool given, const Array& a) {
    return given ? warpup::OptionalView(a.view()) : std::nullopt;
  };
  const auto operand = [&] { return Array(x.dtype, {x.outer, channels, x.inner}); };
  Array c = operand(), r = operand(), p = operand(), out_c = operand(), out_r = operand(), out_p = operand();
  c.fill([](int64_t) { return normal(); }), p.fill([](int64_t) { return 0.5 + normal(); });
  r.fill([](int64_t) { return chance(0.1) ? 0 : 0.5 * std::fabs(normal()); });
  Array mean(x.acc, {channels}), var(x.acc, {channels}), weight(x.acc, {channels}), bias(x.acc, {channels});
  if (x.source < 0) mean.fill([](int64_t) { return normal(); }), var.fill([](int64_t) { return std::fabs(normal()); });
  weight.fill([](int64_t) { return (chance(0.5) ? 1 : -1) * (0.5 + std::fabs(normal())); });
  bias.fill([](int64_t) { return normal(); });
  Array scale(x.acc, {channels}), shift(x.acc, {channels});
  const warpup::ChannelLayout layout = warpup::channel_layout("interval_batch_norm", c);
  Array partials(x.acc, {layout.chunks(), channels, 2});
  Array sum_partials(DType::f64, {warpup::kBoxSumGroups, warpup::kBoxSums}), sums(DType::f64, {warpup::kBoxSums});
  const warpup::ChannelParameters parameters{optional(x.normalized, mean), optional(x.normalized, var),
                                             optional(x.weight, weight), optional(x.bias, bias), x.eps};
  const auto forward = [&] {
    warpup::interval_batch_norm(c, r, optional(x.clean, p), parameters, x.source, x.relu, x.sound,
                                optional(x.source >= 0, partials), optional(x.normalized, scale),
                                optional(x.normalized, shift), out_c, out_r, optional(x.clean, out_p),
                                optional(x.sums, sum_partials), optional(x.sums, sums));
  };
  if (chance(0.05)) {
    const int64_t at = below(n);
    const double former = r[at];
    r.set(at, -1);
    expect_rejected(forward, "radius must be >= 0");
    r.set(at, former);
  }
  forward();

  // Statistics, scale and shift.
  const double eps = epsilon_of(x.acc);
  std::vector<double> m(channels), v(channels), s(channels, 1), t(channels, 0);
  if (x.source >= 0) {
    const Array& from = x.source == 0 ? c : p;
    for (int64_t i = 0; i < n; ++i) m[x.channel(i)] += from[i] / x.count();
    for (int64_t i = 0; i < n; ++i)
      v[x.channel(i)] += (from[i] - m[x.channel(i)]) * (from[i] - m[x.channel(i)]) / x.count();
    const auto rounding = [&](int64_t) { return 64 * eps * (1 + std::sqrt(x.count())); };
    expect_near(mean, [&](int64_t k) { return m[k]; }, rounding, "interval_batch_norm: mean");
    expect_near(var, [&](int64_t k) { return v[k]; }, rounding, "interval_batch_norm: var");
  }
  for (int64_t k = 0; k < channels && x.normalized; ++k) {
    if (x.source < 0) m[k] = mean[k], v[k] = var[k];
    s[k] = (x.weight ? weight[k] : 1) / std::sqrt(v[k] + x.eps);
    t[k] = (x.bias ? bias[k] : 0) - m[k] * s[k];
  }

  // The results. `size` is what an element is computed from; bounds so near 0 that roundings decide on which side they
  // are make gradients and counts that differ, so `clear` says whether there are none.
  std::vector<double> yc(n), yr(n), yp(n), want_c(n), want_r(n), want_p(n), size(n);
  double want_sums[warpup::kBoxSums] = {}, largest = 1;
  bool clear = true;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = x.channel(i);
    yc[i] = s[k] * c[i] + t[k], yr[i] = std::fabs(s[k]) * r[i], yp[i] = s[k] * p[i] + t[k];
    const double l = yc[i] - yr[i], u = yc[i] + yr[i];
    size[i] = std::fabs(s[k]) * (std::fabs(c[i]) + r[i] + std::fabs(p[i]) + std::fabs(m[k])) + std::fabs(t[k]) + 1;
    const double near = (x.dtype == DType::f64 ? 1e-9 : 1e-4) * size[i];
    clear = clear && std::min({std::fabs(l), std::fabs(u), std::fabs(yp[i])}) > near;
    const double lower = x.relu ? std::max(l, 0.0) : l, upper = x.relu ? std::max(u, 0.0) : u;
    want_c[i] = (lower + upper) / 2, want_r[i] = (upper - lower) / 2;
    want_p[i] = x.relu ? std::max(yp[i], 0.0) : yp[i];
    const double a = l > 0, d = u < 0, z = yc[i];
    const double found[] = {yr[i], z, a, a * z, a * z * z, d, d * z, d * z * z};
    for (int k = 0; k < warpup::kBoxSums; ++k) want_sums[k] += found[k];
    largest = std::max(largest, size[i]);
  }
  const auto rounding = [&](int64_t i) {
    return (x.source < 0 ? 64 : 256 * (1 + std::sqrt(x.count()))) * eps * size[i] + 2 * epsilon_of(x.dtype) * size[i];
  };
  expect_near(out_c, [&](int64_t i) { return want_c[i]; }, rounding, "interval_batch_norm: center");
  expect_near(out_r, [&](int64_t i) { return want_r[i]; }, rounding, "interval_batch_norm: radius");
  if (x.clean) expect_near(out_p, [&](int64_t i) { return want_p[i]; }, rounding, "interval_batch_norm: clean");
  if (x.sums && clear) {
    expect_near(
        sums, [&](int64_t k) { return want_sums[k]; },
        [&](int64_t) { return 256 * (1 + std::sqrt(x.count())) * eps * (1 + n) * largest * largest; },
        "interval_batch_norm: sums");
  }
  if (x.sound) {  // of the very numbers that were given, in more digits than any of the types has
    bool holds = true;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = x.channel(i);
      using Long = long double;
      const Long scale = x.normalized ? (x.weight ? weight[k] : 1) / sqrtl(Long(var[k]) + x.eps) : 1;
      const Long middle = x.normalized ? scale * (c[i] - Long(mean[k])) + (x.bias ? bias[k] : 0) : Long(c[i]);
      const Long reach = fabsl(scale) * r[i];
      Long lower = middle - reach, upper = middle + reach;
      if (x.relu) lower = std::max<Long>(lower, 0), upper = std::max<Long>(upper, 0);
      holds = holds && Long(out_c[i]) - out_r[i] <= lower && Long(out_c[i]) + out_r[i] >= upper;
    }
    expect(holds, "interval_batch_norm: the sound box holds the exact one");
  }

  // The gradients: from the ReLU's results, where nothing else is needed and no division loses digits, or its inputs.
  const bool from_outputs = x.relu && x.source != 0 && x.dtype == x.acc && !x.sound && chance(0.5);
  const bool has_added = x.sums && !from_outputs;
  Array gc = operand(), gr = operand(), gp = operand(), dc = operand(), dr = operand(), dp = operand();
  for (Array* g : {&gc, &gr, &gp}) g->fill([](int64_t) { return normal(); });
  const bool no_gc = chance(0.1), no_gr = chance(0.1), no_gp = !x.clean || chance(0.1);
  Array added(DType::f64, {6}), totals(x.acc, {2, channels}), dw(x.acc, {channels}), db(x.acc, {channels});
  added.fill([](int64_t) { return normal(); });
  warpup::channel_scale(c, parameters, optional(x.normalized, scale), optional(x.normalized, shift));
  warpup::interval_batch_norm_backward({optional(!no_gc, gc), optional(!no_gr, gr), optional(!no_gp, gp)},
                                       from_outputs ? out_c : c, from_outputs ? out_r : r, optional(x.clean, p),
                                       from_outputs, parameters, optional(x.normalized, scale),
                                       optional(x.normalized, shift), x.source, x.relu, optional(has_added, added),
                                       optional(x.normalized, partials), optional(x.normalized, totals), dc, dr,
                                       optional(x.clean, dp), optional(x.normalized, dw), optional(x.normalized, db));
  if (!clear) return;
  std::vector<double> hc(n), hr(n), hp(n), g0(channels), g1(channels), all(channels, 1.0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = x.channel(i);
    const double l = yc[i] - yr[i], u = yc[i] + yr[i], a = no_gc ? 0 : gc[i], b = no_gr ? 0 : gr[i];
    const bool active = !x.relu || l > 0;
    hc[i] = active ? a : u <= 0 ? 0 : (a + b) / 2, hr[i] = active ? b : u <= 0 ? 0 : (a + b) / 2;
    if (has_added) {
      hc[i] += added[0] + (l > 0 ? added[1] + added[2] * yc[i] : 0) + (u < 0 ? added[3] + added[4] * yc[i] : 0);
      hr[i] += added[5];
    }
    hp[i] = no_gp || (x.relu && yp[i] <= 0) ? 0 : gp[i];
    const double at_p = x.clean ? hp[i] * (p[i] - m[k]) : 0;
    g0[k] += hc[i] + (x.clean ? hp[i] : 0);
    g1[k] += hc[i] * (c[i] - m[k]) + at_p + (s[k] > 0 ? 1 : -1) * hr[i] * r[i];
    all[k] += (std::fabs(hc[i]) + std::fabs(hr[i]) + std::fabs(hp[i])) * size[i] *
              (1 + std::fabs(s[k]) + 1 / std::fabs(s[k]));
  }
  const auto close = [&](int64_t k) {
    return 512 * (1 + std::sqrt(x.count())) * eps * all[k] * (1 + 1 / std::fabs(s[k]));
  };
  const auto over = [&](int64_t k) { return 1 / (v[k] + x.eps); };
  const auto element = [&](const Array& got, const std::vector<double>& h, bool absolute, const Array* from,
                           const char* what) {
    expect_near(
        got,
        [&](int64_t i) {
          const int64_t k = x.channel(i);
          const double own = (absolute ? std::fabs(s[k]) : s[k]) * h[i];
          return from ? own - s[k] * (g0[k] + ((*from)[i] - m[k]) * g1[k] * over(k)) / x.count() : own;
        },
        [&](int64_t i) {
          return close(x.channel(i)) * (1 + size[i]) +
                 4 * epsilon_of(x.dtype) * (std::fabs(got[i]) + size[i] * std::fabs(h[i]));
        },
        what);
  };
  element(dc, hc, false, x.source == 0 ? &c : nullptr, "interval_batch_norm: grad_center");
  element(dr, hr, true, nullptr, "interval_batch_norm: grad_radius");
  if (x.clean) element(dp, hp, false, x.source == 2 ? &p : nullptr, "interval_batch_norm: grad_clean");
  if (!x.normalized) return;
  expect_near(db, [&](int64_t k) { return g0[k]; }, close, "interval_batch_norm: grad_bias");
  expect_near(dw, [&](int64_t k) { return g1[k] * std::sqrt(over(k)); }, close, "interval_batch_norm: grad_weight");
}

}  // namespace
}  // namespace fuzz
