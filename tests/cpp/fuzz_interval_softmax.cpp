// interval_softmax against plain loops.
#include "fuzz.h"
#include "interval/interval_softmax_check.h"

namespace fuzz {
namespace {

FUZZ(interval_softmax) {
  const DType dtype = floating();
  const int64_t rows = below(4), n = chance(0.05) ? 0 : 1 + below(chance(0.1) ? 300 : 12);
  const double scale = std::array{0.0, 1.0, 30.0}[below(3)], masked = chance(0.5) ? 0 : chance(0.2) ? 1 : 0.3;
  Array c(dtype, {rows, n}), r(dtype, {rows, n}), out_c(dtype, {rows, n}), out_r(dtype, {rows, n});
  c.fill([&](int64_t) { return chance(masked) ? -kInf : normal(scale); });
  r.fill([](int64_t) { return chance(0.3) ? 0 : std::fabs(normal()); });
  warpup::interval_softmax(c, r, out_c, out_r);
  std::vector<double> want_c(rows * n), want_r(rows * n);
  for (int64_t i = 0; i < rows * n; ++i) {
    const int64_t row = i / n * n;
    double lower = 0, upper = 0;
    if (c[i] > -kInf) {  // 1 / (1 + sum of the others over it), sums of quotients
      double above = 1, below_it = 1;
      for (int64_t j = row; j < row + n; ++j) {
        if (j == i) continue;
        above += std::exp(c[j] + r[j] - (c[i] - r[i])), below_it += std::exp(c[j] - r[j] - (c[i] + r[i]));
      }
      lower = 1 / above, upper = 1 / below_it;
    }
    want_c[i] = (lower + upper) / 2, want_r[i] = (upper - lower) / 2;
  }
  const double eps = epsilon_of(dtype == DType::f64 ? dtype : DType::f32);
  const auto near = [&](const std::vector<double>& want) {
    return [&](int64_t i) {
      return 128 * eps * (1 + scale) + epsilon_of(dtype) * want[i] + (dtype == DType::f16 ? 0x1p-24 : 0);
    };
  };
  expect_near(out_c, [&](int64_t i) { return want_c[i]; }, near(want_c), "interval_softmax: center");
  expect_near(out_r, [&](int64_t i) { return want_r[i]; }, near(want_r), "interval_softmax: radius");
  Array gc(dtype, {rows, n}), gr(dtype, {rows, n}), dc(dtype, {rows, n}), dr(dtype, {rows, n});
  gc.fill([](int64_t) { return normal(); }), gr.fill([](int64_t) { return normal(); });
  warpup::interval_softmax_backward(c, r, gc, gr, dc, dr);
  for (int64_t i = 0; i < rows * n; ++i) {
    expect(std::isfinite(dc[i]) && std::isfinite(dr[i]), "interval_softmax_backward is finite");
    if (c[i] == -kInf) expect(dc[i] == 0 && dr[i] == 0, "interval_softmax_backward of a mask");
  }
}

}  // namespace
}  // namespace fuzz
