// interval_linear's kernels, the exact product and the signs of a weight, against plain loops.
#include <algorithm>

#include "fuzz.h"
#include "interval/interval_linear_check.h"

namespace fuzz {
namespace {

// Of eighths, whose products are exact in float32: which of three equal or nearly equal ones is least has one answer.
double eighths(int64_t range) { return double(below(2 * range + 1) - range) / 8; }

FUZZ(interval_linear_exact) {
  const DType dtype = chance(0.5) ? DType::f32 : DType::f64;
  const int64_t rows = chance(0.05) ? 0 : 1 + below(7), columns = chance(0.05) ? 0 : 1 + below(11);
  const int64_t width = chance(0.05) ? 0 : 1 + below(chance(0.1) ? 2200 : 40);
  Array ac(dtype, {rows, width}), ar(dtype, {rows, width}), bc(dtype, {columns, width}), br(dtype, {columns, width});
  for (Array* a : {&ac, &bc}) a->fill([](int64_t) { return eighths(8); });
  for (Array* a : {&ar, &br}) a->fill([](int64_t) { return std::fabs(eighths(8)); });
  Array shift(dtype, {rows, columns}), excess(dtype, {rows, columns});
  warpup::interval_linear_exact(ac, ar, bc, br, shift, excess);

  const bool transposed = chance(0.5);
  const std::vector<int64_t> shape = transposed ? std::vector{columns, rows} : std::vector{rows, columns};
  Array gs(dtype, shape), ge(dtype, shape), dc(dtype, {rows, width}), dr(dtype, {rows, width});
  gs.fill([](int64_t) { return normal(); }), ge.fill([](int64_t) { return normal(); });
  warpup::interval_linear_exact_backward(ac, ar, bc, br, gs, ge, transposed, dc, dr);

  std::vector<double> want_s(rows * columns), want_e(rows * columns), want_c(rows * width), want_r(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t g = transposed ? j * rows + i : i * columns + j;
      for (int64_t k = 0; k < width; ++k) {
        const int64_t a = i * width + k, b = j * width + k;
        const double x = ac[a], y = bc[b], p = ar[a], q = br[b], sign = (x < 0 ? -1 : 1) * (y < 0 ? -1 : 1);
        // The least of three products; where the third is not below both, a's radius alone has a part in it.
        const double near = std::min(q, std::fabs(y)), least = std::min(p * near, std::fabs(x) * q);
        const double h = gs[g] * sign + ge[g];
        want_s[i * columns + j] += sign * least, want_e[i * columns + j] += least;
        if (std::fabs(x) * q < p * near) {
          // sign |x| is x but for y's sign, and moves with x at 0 too, where |x| stands still.
          want_c[a] += (gs[g] * (y < 0 ? -1 : 1) + ge[g] * (x > 0 ? 1 : x < 0 ? -1 : 0)) * q;
        } else {
          want_r[a] += h * near;
        }
      }
    }
  }
  const auto check = [&](const Array& got, const std::vector<double>& want, int64_t terms, const char* what) {
    expect_near(
        got, [&](int64_t i) { return want[i]; }, [&](int64_t) { return 16 * epsilon_of(dtype) * (1 + terms); }, what);
  };
  check(shift, want_s, width, "interval_linear_exact: shift"),
      check(excess, want_e, width, "interval_linear_exact: excess");
  check(dc, want_c, columns, "interval_linear_exact: grad_center");
  check(dr, want_r, columns, "interval_linear_exact: grad_radius");
  if (columns > 0) {
    const Array narrow(dtype, {columns, width + 1});
    expect_rejected([&] { warpup::interval_linear_exact(ac, ar, narrow, narrow, shift, excess); },
                    "as wide as a_center");
  }
}

FUZZ(interval_linear_sign) {
  const DType dtype = floating();
  const int64_t rows = below(9), columns = below(chance(0.1) ? 900 : 30);
  const bool with_base = chance(0.5);
  const std::vector<int64_t> strides = chance(0.5) ? std::vector<int64_t>{columns, 1} : std::vector<int64_t>{1, rows};
  const int64_t offset = below(4);  // any layout without holes, from any address
  Array g(dtype, {rows, columns}, strides, offset), w(dtype, {rows, columns}, strides, offset);
  Array base(dtype, {rows, columns}, strides, offset);
  g.fill([](int64_t) { return normal(); }), base.fill([](int64_t) { return normal(); });
  w.fill([](int64_t) { return chance(0.2) ? 0.0 : chance(0.05) ? std::nan("") : normal(); });
  std::vector<double> want(rows * columns);
  for (int64_t i = 0; i < rows * columns; ++i) {
    const double signed_g = w[i] > 0 ? g[i] : w[i] < 0 ? -g[i] : w[i] == 0 ? 0.0 : std::nan("");
    want[i] = (with_base ? base[i] : 0) + signed_g;
  }
  warpup::interval_linear_sign(g, w, with_base ? warpup::OptionalView(base.view()) : std::nullopt);
  expect_near(
      g, [&](int64_t i) { return want[i]; },
      [&](int64_t i) { return epsilon_of(dtype) * (std::fabs(want[i]) + 0x1p-14); }, "interval_linear_sign");
  if (rows > 1 && columns > 1) {
    const Array other(dtype, {rows, columns}, {strides[0] == 1 ? columns : 1, strides[0] == 1 ? 1 : rows});
    if (rows != columns) {
      expect_rejected([&] { warpup::interval_linear_sign(g, other, std::nullopt); }, "must have gradient's layout");
    }
  }
}

}  // namespace
}  // namespace fuzz
