// margin_bounds against plain loops.
#include "fuzz.h"
#include "interval/margin_bounds_check.h"

namespace fuzz {
namespace {

FUZZ(margin_bounds) {
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t batch = chance(0.05) ? 0 : 1 + below(6), classes = 1 + below(chance(0.2) ? 70 : 8);
  const int64_t width = chance(0.05) ? 0 : 1 + below(chance(0.3) ? 100 : 20), others = classes - 1;
  Array c = random_layout(dtype, {batch, width}, true), r = random_layout(dtype, {batch, width}, true);
  Array w = random_layout(dtype, {classes, width}, true), b(dtype, {classes}), y(DType::i64, {batch});
  c.fill([](int64_t) { return normal(); }), b.fill([](int64_t) { return normal(); });
  r.fill([](int64_t) { return std::fabs(normal()); });
  w.fill([](int64_t) { return chance(0.3) ? 0.5 : normal(); });  // equal ones, whose difference has no sign
  y.fill([&](int64_t) { return below(classes); });
  const bool has_bias = chance(0.5), with_loss = chance(0.5), has_bounds = !with_loss || chance(0.7);
  const auto optional = [](bool given, const Array& a) {
    return given ? warpup::OptionalView(a.view()) : std::nullopt;
  };
  Array bounds(acc, {batch, others}), loss(acc, {batch}), share(acc, {batch, others});
  const auto forward = [&] {
    warpup::margin_bounds(c, r, w, optional(has_bias, b), y, bounds, optional(with_loss, loss),
                          optional(with_loss, share));
  };
  if (batch > 0 && chance(0.05)) {
    const double former = y[0];
    y.set(0, chance(0.5) ? double(classes) : -1.0);
    expect_rejected(forward, "is outside");
    y.set(0, former);
  }
  forward();

  const auto at = [&](const Array& a, int64_t i, int64_t j) { return a[i * width + j]; };
  const auto other = [&](int64_t i, int64_t k) { return k + (k >= int64_t(y[i])); };
  std::vector<double> m(batch * others), want_loss(batch), size(batch * others);
  for (int64_t i = 0; i < batch; ++i) {
    double sum = 1;
    for (int64_t k = 0; k < others; ++k) {
      const int64_t own = y[i], o = other(i, k);
      double total = has_bias ? b[own] - b[o] : 0, all = has_bias ? std::fabs(b[own]) + std::fabs(b[o]) : 0;
      for (int64_t j = 0; j < width; ++j) {
        const double d = at(w, own, j) - at(w, o, j);
        total += d * at(c, i, j) - std::fabs(d) * at(r, i, j);
        all += (std::fabs(at(w, own, j)) + std::fabs(at(w, o, j))) * (std::fabs(at(c, i, j)) + at(r, i, j));
      }
      m[i * others + k] = total, size[i * others + k] = all;
      sum += std::exp(-total);
    }
    want_loss[i] = std::log(sum);
  }
  const double eps = epsilon_of(acc);
  double largest = 0;
  for (double s : size) largest = std::max(largest, s);
  expect_near(
      bounds, [&](int64_t i) { return m[i]; }, [&](int64_t i) { return 16 * eps * (1 + size[i]); }, "margin_bounds");
  if (with_loss) {
    expect_near(
        loss, [&](int64_t i) { return want_loss[i]; }, [&](int64_t) { return 32 * eps * (1 + largest); },
        "margin_bounds: loss");
  }

  Array g(acc, {batch, others}), gl = chance(0.3) ? Array(acc, {batch}, {0}) : random_layout(acc, {batch}, false);
  g.fill([](int64_t) { return normal(); }), gl.fill([](int64_t) { return normal(); });
  Array dc(dtype, {batch, width}), dr(dtype, {batch, width}), dw(dtype, {classes, width}), db(dtype, {classes});
  warpup::margin_bounds_backward(c, r, w, y, optional(with_loss, share), optional(has_bounds, g),
                                 optional(with_loss, gl), dc, dr, dw, db);
  std::vector<double> want_c(batch * width), want_r(batch * width), want_w(classes * width), want_b(classes);
  double slope = 0;
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t k = 0; k < others; ++k) {
      const int64_t own = y[i], o = other(i, k);
      const double p = with_loss ? gl[i] * std::exp(-m[i * others + k] - want_loss[i]) : 0;
      const double gk = (has_bounds ? g[i * others + k] : 0) - p;
      slope = std::max(slope, std::fabs(gk));
      want_b[own] += gk, want_b[o] -= gk;
      for (int64_t j = 0; j < width; ++j) {
        const double d = at(w, own, j) - at(w, o, j), sign = d > 0 ? 1 : d < 0 ? -1 : 0;
        want_c[i * width + j] += gk * d, want_r[i * width + j] -= gk * std::fabs(d);
        const double part = gk * (at(c, i, j) - sign * at(r, i, j));
        want_w[own * width + j] += part, want_w[o * width + j] -= part;
      }
    }
  }
  const auto near = [&](const Array& got, const std::vector<double>& want, const char* what) {
    expect_near(
        got, [&](int64_t i) { return want[i]; },
        [&](int64_t i) {
          return 64 * eps * (1 + slope) * (1 + largest) * (1 + batch * others / 8.0) +
                 epsilon_of(dtype) * std::fabs(want[i]) + (dtype == DType::f16 ? 0x1p-24 : 0);
        },
        what);
  };
  near(dc, want_c, "margin_bounds: grad_center"), near(dr, want_r, "margin_bounds: grad_radius");
  near(dw, want_w, "margin_bounds: grad_weight"), near(db, want_b, "margin_bounds: grad_bias");
}

}  // namespace
}  // namespace fuzz
