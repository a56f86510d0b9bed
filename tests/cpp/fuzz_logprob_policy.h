// policy_loss against plain loops.
#pragma once

#include "bind/logprob_policy.h"
#include "fuzz.h"

namespace fuzz {

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
