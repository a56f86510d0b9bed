// token_logprob against plain loops.
#pragma once

#include "bind/logprob.h"
#include "fuzz.h"

namespace fuzz {

inline void token_logprob() {
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t vocab = chance(0.1) ? 2040 + below(20) : 1 + below(chance(0.5) ? 20 : 300), ignore = -100;
  std::vector<int64_t> lead;
  for (int64_t d = below(4); d > 0; --d) lead.push_back(chance(0.05) ? 0 : 1 + below(4));
  std::vector<int64_t> shape = lead, stats_shape = lead;
  shape.push_back(vocab), stats_shape.push_back(2);

  const double scale = std::array{0.0, 1.0, 20.0}[below(3)], impossible = chance(0.5) ? 0 : chance(0.2) ? 1 : 0.3;
  Array z = random_layout(dtype, shape, true);
  z.fill([&](int64_t) { return chance(impossible) ? -kInf : normal(scale); });
  Array y = random_layout(DType::i64, lead, false);
  y.fill([&](int64_t) { return chance(0.2) ? ignore : below(vocab); });
  const double t_scalar = chance(0.5) ? 1 : 0.3 + below(20) / 10.0;
  const bool per_row = chance(0.3), with_entropy = chance(0.5);
  Array t = random_layout(DType::f32, lead, false);
  t.fill([](int64_t) { return 0.5 + below(10) / 8.0; });
  const auto temperature_of = [&](int64_t r) { return per_row ? t[r] : t_scalar; };
  for (int64_t r = 0; r < y.size(); ++r) {  // an ignored row may hold anything
    if (y[r] == ignore && chance(0.5)) z.set(r * vocab + below(vocab), std::nan(""));
  }

  const warpup::OptionalView temperature = per_row ? warpup::OptionalView(t.view()) : std::nullopt;
  Array logp(acc, lead), entropy(acc, lead), stats(acc, stats_shape);
  const warpup::OptionalView entropy_view = with_entropy ? warpup::OptionalView(entropy.view()) : std::nullopt;
  const auto forward = [&] { warpup::token_logprob(z, y, temperature, t_scalar, ignore, logp, entropy_view, stats); };
  if (y.size() > 0 && chance(0.05)) {
    const int64_t r = below(y.size());
    const double kept = y[r];
    y.set(r, chance(0.5) ? double(vocab) : -1.0);
    expect_rejected(forward, "is outside");
    y.set(r, kept);
  }
  forward();

  // Plain loops.
  const int64_t rows = y.size();
  std::vector<double> want_logp(rows), want_entropy(rows), want_p(rows * vocab), spread(rows);
  std::vector<bool> counts(rows);
  for (int64_t r = 0; r < rows; ++r) {
    double max = -kInf;
    long double sum = 0, plogp = 0;
    for (int64_t j = 0; j < vocab; ++j) max = std::max(max, z[r * vocab + j]);
    counts[r] = y[r] != ignore && max > -kInf;
    if (!counts[r]) continue;
    for (int64_t j = 0; j < vocab; ++j) sum += std::exp((z[r * vocab + j] - (long double)max) / temperature_of(r));
    for (int64_t j = 0; j < vocab; ++j) {
      const long double log_p = (z[r * vocab + j] - (long double)max) / temperature_of(r) - std::log(sum),
                        p = std::exp(log_p);
      want_p[r * vocab + j] = p;
      if (p > 0) plogp += p * log_p, spread[r] = std::max(spread[r], double(-log_p));
      if (j == int64_t(y[r])) want_logp[r] = log_p;
    }
    want_entropy[r] = -plogp;
  }
  const double eps = epsilon_of(acc);
  const auto near_row = [&](int64_t r) { return 32 * eps * (1 + spread[r]); };
  expect_near(logp, [&](int64_t r) { return want_logp[r]; }, near_row, "token_logprob: logp");
  if (with_entropy) {
    expect_near(entropy, [&](int64_t r) { return want_entropy[r]; }, near_row, "token_logprob: entropy");
  }

  const bool has_g = chance(0.8), has_h = with_entropy && chance(0.8), expanded = chance(0.2), inplace = chance(0.3);
  const std::vector<int64_t> flat(lead.size(), 0);
  Array g = expanded ? Array(acc, lead, flat) : random_layout(acc, lead, false);
  Array h = expanded ? Array(acc, lead, flat) : random_layout(acc, lead, false);
  g.fill([](int64_t) { return normal(); }), h.fill([](int64_t) { return normal(); });
  Array grad = random_layout(dtype, shape, true);
  std::vector<double> want(rows * vocab), tolerance(rows * vocab);
  for (int64_t i = 0; i < rows * vocab; ++i) {
    const int64_t r = i / vocab;
    const double p = want_p[i], gr = has_g ? g[r] : 0, hr = has_h ? h[r] : 0;
    const double at_target = counts[r] && i % vocab == int64_t(y[r]) ? gr : 0;
    want[i] = (at_target - p * gr - (p > 0 ? hr * p * (std::log(p) + want_entropy[r]) : 0)) / temperature_of(r);
    const double size = (std::fabs(gr) + std::fabs(hr) * (2 + std::log(vocab) + spread[r])) / temperature_of(r);
    tolerance[i] = 64 * eps * size * (1 + 0.1 * spread[r]) + epsilon_of(dtype) * std::fabs(want[i]) +
                   (dtype == DType::f16 ? 0x1p-24 : 0);
  }
  const auto backward = [&](const View& out) {
    warpup::token_logprob_backward(z, y, temperature, t_scalar, ignore, stats, entropy_view,
                                   has_g ? warpup::OptionalView(g.view()) : std::nullopt,
                                   has_h ? warpup::OptionalView(h.view()) : std::nullopt, out);
  };
  backward(inplace ? z : grad);
  expect_near(
      inplace ? z : grad, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return tolerance[i]; },
      inplace ? "token_logprob_backward in place" : "token_logprob_backward");
}

}  // namespace fuzz
