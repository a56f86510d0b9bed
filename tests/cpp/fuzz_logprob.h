// token_logprob and policy_loss against plain loops.
#pragma once

#include "bind/logprob.h"
#include "fuzz.h"

namespace fuzz {

// ---- token_logprob --------------------------------------------------------------------------------------------------

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

// ---- policy_loss ----------------------------------------------------------------------------------------------------

inline void policy_loss() {
  const DType dtype = chance(0.5) ? DType::f32 : DType::f64;
  const int64_t batch = below(6), length = chance(0.03) ? 8185 + below(20) : below(50), n = batch * length;
  const bool per_token = chance(0.5), with_ref = chance(0.5), given_tensor = chance(0.5);
  const std::vector<int64_t> shape{batch, length};
  Array lp = random_layout(dtype, shape, true), old = random_layout(dtype, shape, true);
  Array ref = random_layout(dtype, shape, true), mask = random_layout(DType::u8, shape, true);
  Array adv = per_token ? random_layout(dtype, shape, true) : random_layout(dtype, {batch}, false);
  const double kept = std::array{0.0, 0.5, 1.0}[below(3)], apart = std::array{0.0, 0.3, 5.0}[below(3)];
  const auto masked = [&](int64_t i) { return mask[i] == 0; };
  const auto unread = [&](int64_t i, double x) { return masked(i) && chance(0.5) ? std::nan("") : x; };
  mask.fill([&](int64_t) { return chance(kept) ? 1 + below(255) : 0; });
  lp.fill([&](int64_t i) { return unread(i, normal() - 1); });
  old.fill([&](int64_t i) { return unread(i, masked(i) ? 0 : lp[i] + normal(apart)); });
  ref.fill([&](int64_t i) { return unread(i, masked(i) ? 0 : lp[i] + normal(apart)); });
  adv.fill([&](int64_t i) { return per_token ? unread(i, normal()) : normal(); });

  warpup::PolicyOptions o{0, below(4) / 10.0, below(4) / 10.0, 0, 0, 0, chance(0.5), below(4), 0.5 + below(9)};
  if (with_ref) std::array{&o.kl_k1, &o.kl_k2, &o.kl_k3}[below(3)][0] = 0.1;
  Array divisor(DType::f32, {});
  divisor.set(0, o.denominator_value);
  Array loss(dtype, {}), metrics(dtype, {warpup::kPolicyMetrics}), weight(dtype, {batch});
  Array partials(dtype, {batch * warpup::policy_pieces(length), warpup::kPolicySums}), grad(dtype, shape);
  const auto optional = [](bool given, const Array& a) {
    return given ? warpup::OptionalView(a.view()) : std::nullopt;
  };
  warpup::policy_loss(lp, old, adv, mask, optional(with_ref, ref),
                      optional(o.denominator == 3 && given_tensor, divisor), o, loss, metrics, weight, partials);

  // Plain loops. `size`: what a term is made of, `unclear`: tokens whose ratio is that near to a bound of the clip.
  const double eps = epsilon_of(dtype);
  std::vector<double> count(batch), value(n), size(n), slope(n), slope_tolerance(n);
  double tokens = 0, sequences = 0, low = 0, high = 0, unclear = 0, ratio = 0, ratio_max = 0, kl = 0, kl_size = 0;
  double ref_kl = 0, ref_size = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (masked(i)) continue;
    const double x = lp[i] - old[i], r = std::exp(x), a = adv[per_token ? i : i / length];
    const double held = std::min(std::max(r, 1 - o.clip_low), 1 + o.clip_high), pg = -std::min(r * a, held * a);
    const bool below_low = r < 1 - o.clip_low && a < 0, above_high = r > 1 + o.clip_high && a > 0;
    const double edge = std::min(std::fabs(r - 1 + o.clip_low), std::fabs(r - 1 - o.clip_high));
    const bool on_edge = edge <= 64 * eps * (1 + r);
    const double d = with_ref ? ref[i] - lp[i] : 0, e = std::exp(d);
    const double term = -o.kl_k1 * d + o.kl_k2 * d * d / 2 + o.kl_k3 * (e - d - 1);
    const double term_size = o.kl_k1 * std::fabs(d) + o.kl_k2 * d * d + o.kl_k3 * (e + std::fabs(d) + 1);
    const double error = 8 + 2 * std::fabs(x);  // of r, in roundings; differences of log-probs round, too
    value[i] = pg + term, size[i] = error * (r + 1) * std::fabs(a) + (8 + std::fabs(d)) * term_size;
    slope[i] = (below_low || above_high ? 0 : -r * a) + o.kl_k1 - o.kl_k2 * d + o.kl_k3 * (1 - e);
    slope_tolerance[i] = 8 * eps *
                             (error * r * std::fabs(a) + o.kl_k1 + o.kl_k2 * (2 + std::fabs(d)) +
                              (8 + std::fabs(d)) * o.kl_k3 * (1 + e)) +
                         (on_edge ? r * std::fabs(a) : 0);
    count[i / length] += 1, tokens += 1, low += below_low, high += above_high, unclear += on_edge;
    ratio += r, ratio_max = std::max(ratio_max, r), kl += r - 1 - x, kl_size += error * (r + 1 + std::fabs(x));
    ref_kl += term, ref_size += (8 + std::fabs(d)) * term_size;
  }
  for (const double c : count) sequences += c > 0;
  const double divided = std::array{tokens, sequences, double(n), o.denominator_value}[o.denominator];
  double total = 0, total_size = 0;
  std::vector<double> w(batch);
  for (int64_t b = 0; b < batch; ++b) {
    w[b] = count[b] > 0 ? 1 / (o.per_sequence ? divided * count[b] : divided) : 0;
  }
  for (int64_t i = 0; i < n; ++i) {
    if (!masked(i)) total += w[i / length] * value[i], total_size += w[i / length] * size[i];
  }
  const double sum = 8 * eps * (1 + double(length) / 64), m = tokens > 0 ? tokens : 1;  // of a piece, in its own type
  const double want_metrics[] = {tokens, low / m, high / m, ratio / m, ratio_max, kl / m, ref_kl / m};
  const double near = 8 * eps * ratio_max * (8 + std::fabs(std::log(ratio_max + eps)));
  const double near_metrics[] = {0,
                                 (unclear + 8 * eps * tokens) / m,
                                 (unclear + 8 * eps * tokens) / m,
                                 sum * (near / eps + ratio) / m,
                                 near,
                                 sum * kl_size / m,
                                 sum * ref_size / m};
  expect_near(loss, [&](int64_t) { return total; }, [&](int64_t) { return sum * total_size; }, "policy_loss: loss");
  expect_near(
      metrics, [&](int64_t i) { return want_metrics[i]; }, [&](int64_t i) { return near_metrics[i]; },
      "policy_loss: metrics");
  expect_near(
      weight, [&](int64_t b) { return w[b]; }, [&](int64_t b) { return 4 * eps * w[b]; }, "policy_loss: row_weight");

  Array g(dtype, {});
  g.set(0, normal());
  warpup::policy_loss_backward(lp, old, adv, mask, optional(with_ref, ref), o, weight, g, grad);
  expect_near(
      grad, [&](int64_t i) { return masked(i) ? 0 : g[0] * w[i / length] * slope[i]; },
      [&](int64_t i) {
        return masked(i) ? 0 : std::fabs(g[0]) * w[i / length] * (slope_tolerance[i] + 8 * eps * std::fabs(slope[i]));
      },
      "policy_loss_backward");
}

}  // namespace fuzz
