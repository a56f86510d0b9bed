// glu and grouped_mm against plain loops.
#include <algorithm>

#include "fuzz.h"
#include "moe/glu_check.h"
#include "moe/grouped_mm_check.h"

namespace fuzz {

FUZZ(glu) {
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int kind = static_cast<int>(below(5));
  const std::string name = std::array{"silu", "gelu", "gelu_tanh", "relu", "swiglu_oai"}[kind];
  const int64_t rows = below(5), width = chance(0.05) ? 1020 + below(10) : below(40), copies = rows + below(4);
  const bool weighted = copies > 0 && chance(0.5), with_a = chance(0.7), with_sums = weighted && chance(0.7);
  const double scale = std::array{0.0, 1.0, 8.0, 60.0}[below(4)];
  Array h(dtype, {rows, 2 * width}), d(dtype, {rows, width}), a(dtype, {rows, width}), again(dtype, {rows, width});
  Array grad(dtype, {rows, 2 * width}), weights(acc, {copies}), permutation(DType::i64, {rows}), sums(acc, {copies});
  h.fill([&](int64_t) { return normal(scale); }), d.fill([](int64_t) { return normal(); });
  weights.fill([](int64_t) { return normal(); }), sums.fill([](int64_t) { return -7; });
  permutation.fill([&](int64_t s) { return chance(0.2) ? -1 : (s + 1) % std::max<int64_t>(copies, 1); });
  const auto given = [](bool is, const Array& x) { return is ? warpup::OptionalView(x.view()) : std::nullopt; };
  const auto w = given(weighted, weights), p = given(weighted, permutation);
  warpup::glu(h, w, p, name, a);
  warpup::glu_backward(h, w, p, name, d, grad, given(with_sums, sums), given(with_a, again));

  const auto sigma = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto f = [&](double g) {
    const double inner = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g), x = std::min(g, 7.0);
    return std::array{g * sigma(g), g * 0.5 * std::erfc(-g / std::sqrt(2.0)), g * 0.5 * (1 + std::tanh(inner)),
                      std::max(g, 0.0), x * sigma(1.702 * x)}[kind];
  };
  const auto slope = [&](double g) {  // of f
    const double s = sigma(g), inner = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g), t = std::tanh(inner);
    const double sharp = sigma(1.702 * g), cubic = std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * g * g);
    return std::array{s + g * s * (1 - s),
                      0.5 * std::erfc(-g / std::sqrt(2.0)) + g * std::exp(-g * g / 2) / std::sqrt(2 * M_PI),
                      0.5 * (1 + t) + (std::fabs(t) == 1 ? 0 : 0.5 * g * (1 - t * t) * cubic), g > 0 ? 1.0 : 0.0,
                      g > 7 ? 0.0 : sharp + 1.702 * g * sharp * (1 - sharp)}[kind];
  };
  const bool interleaved = kind == 4;
  std::vector<double> want_a(rows * width), want(2 * rows * width), want_sums(copies, -7), size(copies, 1);
  for (int64_t s = 0; s < rows; ++s) {
    const int64_t copy = weighted ? int64_t(permutation[s]) : 0;
    if (copy < 0) continue;
    const double factor = weighted ? weights[copy] : 1;
    double dot = 0;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t at_g = 2 * s * width + (interleaved ? 2 * j : j), at_u = interleaved ? at_g + 1 : at_g + width;
      const double g = h[at_g], u = h[at_u], up = interleaved ? 1 + std::clamp(u, -7.0, 7.0) : u;
      const double slope_up = interleaved && std::fabs(u) > 7 ? 0 : 1, da = d[s * width + j];
      want_a[s * width + j] = factor * f(g) * up;
      want[at_g] = factor * da * slope(g) * up, want[at_u] = factor * da * f(g) * slope_up;
      dot += da * f(g) * up, size[copy] += std::fabs(da * f(g) * up);
    }
    want_sums[copy] = with_sums ? dot : -7;
  }
  // What f and its slope lose: digits of g, and in float32 1e-7 of the gates beside 1.
  const double e = epsilon_of(dtype), lost = acc == DType::f64 ? 1e-14 : 2e-6, large = 1 + scale * scale * 16;
  const auto tolerance = [&](const std::vector<double>& x) {
    return [&, e, lost, large](int64_t i) { return e * std::fabs(x[i]) + lost * large * 4 + (e > 1e-4 ? 1e-7 : 0); };
  };
  expect_near(a, [&](int64_t i) { return want_a[i]; }, tolerance(want_a), "glu " + name);
  expect_near(grad, [&](int64_t i) { return want[i]; }, tolerance(want), "glu_backward " + name);
  if (with_a) expect_near(again, [&](int64_t i) { return want_a[i]; }, tolerance(want_a), "glu_backward: a");
  if (with_sums) {
    expect_near(
        sums, [&](int64_t i) { return want_sums[i]; }, [&](int64_t i) { return lost * large * size[i]; },
        "glu_backward: weights");
  }
}

FUZZ(grouped_mm) {
  const DType dtype = std::array{DType::f32, DType::bf16, DType::f16}[below(3)];
  const std::string layout = std::array{"nt", "nn", "tn"}[below(3)];
  const bool nt = layout == "nt", tn = layout == "tn";
  const int64_t groups = below(5), width = below(chance(0.3) ? 140 : 20), columns = below(chance(0.3) ? 200 : 70);
  const int64_t beyond = below(3), sources = 1 + below(6);
  std::vector<int64_t> bounds{0};
  for (int64_t e = 0; e < groups; ++e) {
    bounds.push_back(bounds.back() + (chance(0.3) ? 0 : below(chance(0.2) ? 110 : 20)));
  }
  const int64_t rows = bounds.back() + beyond;
  const bool a_moved = chance(0.5), b_moved = tn && chance(0.5);
  Array offsets(DType::i64, {groups + 1}), a_rows(DType::i64, {rows}), b_rows(DType::i64, {rows});
  offsets.fill([&](int64_t e) { return bounds[e]; });
  const auto source = [&](int64_t s) { return s < bounds.back() ? below(sources) : -1; };  // none where no group is
  a_rows.fill(source), b_rows.fill(source);
  Array a = random_layout(dtype, {a_moved ? sources : rows, width}, true);
  Array b = tn ? random_layout(dtype, {b_moved ? sources : rows, columns}, true)
               : random_layout(dtype, {groups, nt ? columns : width, nt ? width : columns}, true);
  const auto small = [](int64_t) { return double(below(17) - 8) / 4; };  // their products and sums are exact
  a.fill(small), b.fill(small);
  Array out = tn ? Array(dtype, {groups, width, columns}) : Array(dtype, {rows, columns});
  const auto given = [](bool is, const Array& x) { return is ? warpup::OptionalView(x.view()) : std::nullopt; };
  const auto call = [&] {
    warpup::grouped_mm(a, b, offsets, given(a_moved, a_rows), given(b_moved, b_rows), layout, out);
  };
  if (groups > 0 && chance(0.1)) {
    offsets.set(groups, rows + 1);
    expect_rejected(call, "at most " + std::to_string(rows));
    offsets.set(groups, bounds.back());
  }
  call();

  std::vector<double> want(out.size());
  for (int64_t e = 0; e < groups; ++e) {
    for (int64_t s = bounds[e]; s < bounds[e + 1]; ++s) {
      const int64_t at_a = a_moved ? int64_t(a_rows[s]) : s, at_b = b_moved ? int64_t(b_rows[s]) : s;
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          if (tn) {
            want[(e * width + i) * columns + j] += a[at_a * width + i] * b[at_b * columns + j];
          } else {
            const int64_t at = nt ? (e * columns + j) * width + i : (e * width + i) * columns + j;
            want[s * columns + j] += a[at_a * width + i] * b[at];
          }
        }
      }
    }
  }
  expect_near(
      out, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return epsilon_of(dtype) * std::fabs(want[i]); },
      "grouped_mm " + layout);
}

}  // namespace fuzz
