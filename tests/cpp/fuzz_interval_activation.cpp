// interval_activation against what sampling the box shows.
#include <algorithm>

#include "fuzz.h"
#include "interval/interval_activation_check.h"

namespace fuzz {
namespace {

double plain_activation(int kind, double x, double a, double b) {
  const double s = 1 / (1 + std::exp(-x));
  switch (kind) {
    case 0:
      return s;
    case 1:
      return std::tanh(x);
    case 2:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case 3:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case 4:
      return x * s;
    case 5:
      return x * std::min(std::max(x + 3, 0.0), 6.0) / 6;
    case 6:
      return x > 0 ? x : a * x;
    case 7:
      return x > 0 ? x : a * std::expm1(x);
    case 8:
      return x > 30 ? x : std::log1p(std::exp(x));
    case 9:
      return std::exp(x);
    default:
      return std::min(std::max(x, a), b);
  }
}

FUZZ(interval_activation) {
  constexpr const char* names[] = {"sigmoid",    "tanh", "gelu",     "gelu_tanh", "silu", "hardswish",
                                   "leaky_relu", "elu",  "softplus", "exp",       "clamp"};
  const int kind = static_cast<int>(below(11));
  const DType dtype = floating();
  const int64_t n = chance(0.1) ? 500 + below(600) : below(40);
  const bool with_clean = chance(0.5);
  const double a = chance(0.5) ? 0.1 : 0, b = 0.7;
  Array c(dtype, {n}), r(dtype, {n}), x(dtype, {n}), out_c(dtype, {n}), out_r(dtype, {n}), out_x(dtype, {n});
  c.fill([](int64_t) { return normal(3); }), x.fill([](int64_t) { return normal(3); });
  r.fill([](int64_t) { return chance(0.3) ? 0 : std::fabs(normal()); });
  const auto optional = [&](const Array& v) { return with_clean ? warpup::OptionalView(v.view()) : std::nullopt; };
  warpup::interval_activation(c, r, optional(x), names[kind], a, b, out_c, out_r, optional(out_x));
  const double eps = std::max(epsilon_of(dtype), dtype == DType::f64 ? 1e-14 : 0x1p-20);
  const auto tolerance = [&](double value) { return 2 * eps * (1 + std::fabs(value)); };
  for (int64_t i = 0; i < n; ++i) {
    const double lower = out_c[i] - out_r[i], upper = out_c[i] + out_r[i];
    double low = kInf, high = -kInf;
    constexpr int kGrid = 200;
    for (int k = -kGrid; k <= kGrid; ++k) {
      const double f = plain_activation(kind, c[i] + r[i] * k / kGrid, a, b);
      low = std::min(low, f), high = std::max(high, f);
    }
    const double slack = tolerance(std::fabs(low) + std::fabs(high)), grid = slack + r[i] * r[i] / (kGrid * kGrid);
    if (high > 6e4 && dtype == DType::f16) continue;
    expect(lower <= low + slack && lower >= low - grid && upper >= high - slack && upper <= high + grid,
           std::string("interval_activation: ") + names[kind]);
  }
  if (with_clean) {
    const auto want = [&](int64_t i) { return plain_activation(kind, x[i], a, b); };
    if (dtype != DType::f16 || kind != 9) {
      expect_near(out_x, want, [&](int64_t i) { return tolerance(want(i)); }, "interval_activation: clean");
    }
  }
  Array dc(dtype, {n}), dr(dtype, {n}), dx(dtype, {n});
  warpup::interval_activation_backward(c, r, optional(x), names[kind], a, b, c, r, optional(x), dc, dr, optional(dx));
  for (int64_t i = 0; i < n; ++i) {  // its values are the tests' business; here, that all are written
    expect(std::isfinite(dc[i]) || dtype == DType::f16, std::string("interval_activation_backward: ") + names[kind]);
    expect(std::isfinite(dr[i]) || dtype == DType::f16, std::string("interval_activation_backward: ") + names[kind]);
    if (with_clean) {
      expect(std::isfinite(dx[i]) || dtype == DType::f16, std::string("interval_activation_backward: ") + names[kind]);
    }
  }
}

}  // namespace
}  // namespace fuzz
