// token_logprob against plain loops, of one target a row or of several.
#include <algorithm>
#include <array>
#include <cmath>

#include "fuzz.h"
#include "logprob/token_logprob_check.h"

namespace fuzz {
namespace {

// Columns [begin, end) of an array whose last dimension has unit stride.
View columns(const View& whole, int64_t begin, int64_t end) {
  View v = whole;
  v.data = static_cast<char*>(v.data) + begin * bytes_of(v.dtype);
  v.sizes[v.dims - 1] = end - begin;
  return v;
}

FUZZ(token_logprob) {
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t vocab = chance(0.1) ? 2040 + below(20) : 1 + below(chance(0.5) ? 20 : 300), ignore = -100;
  std::vector<int64_t> lead;
  for (int64_t d = below(4); d > 0; --d) lead.push_back(chance(0.05) ? 0 : 1 + below(4));
  std::vector<int64_t> shape = lead, stats_shape = lead;
  shape.push_back(vocab), stats_shape.push_back(2);
  const bool several = chance(0.3);
  const int64_t k = several ? below(6) : 1;
  std::vector<int64_t> each = lead;  // the shape of targets
  if (several) each.push_back(k);

  const double scale = std::array{0.0, 1.0, 20.0}[below(3)], impossible = chance(0.5) ? 0 : chance(0.2) ? 1 : 0.3;
  Array z = random_layout(dtype, shape, true);
  z.fill([&](int64_t) { return chance(impossible) ? -kInf : normal(scale); });
  Array y = random_layout(DType::i64, each, false);
  y.fill([&](int64_t) { return chance(several ? 0.4 : 0.2) ? ignore : below(vocab); });
  const int64_t rows = z.size() / vocab;
  const auto ignored = [&](int64_t r) {  // all of its targets
    for (int64_t i = r * k; i < (r + 1) * k; ++i) {
      if (y[i] != ignore) return false;
    }
    return true;
  };
  const double t_scalar = chance(0.5) ? 1 : 0.3 + below(20) / 10.0;
  const bool per_row = chance(0.3), with_entropy = chance(0.5), with_lse = chance(0.3), with_p2 = chance(0.3);
  Array t = random_layout(DType::f32, lead, false);
  t.fill([](int64_t) { return 0.5 + below(10) / 8.0; });
  const auto temperature_of = [&](int64_t r) { return per_row ? t[r] : t_scalar; };
  for (int64_t r = 0; r < rows; ++r) {  // an ignored row may hold anything
    if (ignored(r) && chance(0.5)) z.set(r * vocab + below(vocab), std::nan(""));
  }

  // A replayed sampler: delta on some tokens, others not kept.
  const bool moves = chance(0.3), keeps = chance(0.3), delta_per_row = chance(0.5);
  const double delta_scalar = normal(3);
  Array token_set(DType::u8, {vocab}), kept_mask = random_layout(DType::u8, shape, true);
  Array delta = random_layout(DType::f32, lead, false);
  token_set.fill([](int64_t) { return chance(0.3) ? 1 + below(255) : 0; });
  kept_mask.fill([](int64_t) { return chance(0.7) ? 1 + below(255) : 0; });
  delta.fill([](int64_t) { return normal(3); });
  const Form form;
  const auto replayed = [&](int64_t i) {  // z'
    const int64_t r = i / vocab, j = i % vocab;
    if (keeps && kept_mask[i] == 0) return -kInf;
    return moves && token_set[j] != 0 ? form(z[i]) + (delta_per_row ? delta[r] : delta_scalar) : form(z[i]);
  };
  const bool rounds = moves || !form.plain();  // z' is not the logit as it is

  const auto optional = [](bool given, const Array& a) {
    return given ? warpup::OptionalView(a.view()) : std::nullopt;
  };
  std::vector<int64_t> state_shape = lead;
  state_shape.push_back(4 + k);
  Array logp(acc, each), entropy(acc, lead), lse(acc, lead), p2(acc, lead), stats(acc, stats_shape);
  Array state(acc, state_shape);
  const auto h_view = optional(with_entropy, entropy), p2_view = optional(with_p2, p2);
  const int64_t cut = vocab > 1 && chance(0.4) ? 1 + below(vocab - 1) : 0;  // 0: the vocabulary in one piece
  const auto tokens = [&](int64_t begin, int64_t end) {
    return warpup::SampledTokens{
        .targets = y,
        .ignore_index = ignore,
        .temperature = {optional(per_row, t), t_scalar},
        .token_set = moves ? warpup::OptionalView(columns(token_set, begin, end)) : std::nullopt,
        .delta = {optional(delta_per_row, delta), delta_scalar},
        .kept_mask = keeps ? warpup::OptionalView(columns(kept_mask, begin, end)) : std::nullopt,
        .form = form.options};
  };
  const auto slices = [&](const auto& call) {  // call(begin, end)
    if (cut > 0) call(int64_t(0), cut);
    call(cut, vocab);
  };
  const auto forward = [&] {
    slices([&](int64_t begin, int64_t end) {
      warpup::token_logprob(columns(z, begin, end), tokens(begin, end), {begin, vocab},
                            {.logp = logp,
                             .stats = stats,
                             .entropy = h_view,
                             .lse = optional(with_lse, lse),
                             .sum_p2 = p2_view,
                             .state = optional(cut > 0, state)});
    });
  };
  if (y.size() > 0 && chance(0.05)) {
    const int64_t i = below(y.size());
    const double former = y[i];
    y.set(i, chance(0.5) ? double(vocab) : -1.0);
    expect_rejected(forward, "is outside");
    y.set(i, former);
  }
  forward();

  // Plain loops.
  std::vector<double> want_logp(rows * k), want_entropy(rows), want_lse(rows), want_p2(rows);
  std::vector<double> want_p(rows * vocab), spread(rows), largest(rows);
  std::vector<bool> counts(rows);
  for (int64_t r = 0; r < rows; ++r) {
    double max = -kInf;
    long double sum = 0, plogp = 0, squares = 0;
    for (int64_t j = 0; j < vocab; ++j) max = std::max(max, replayed(r * vocab + j));
    counts[r] = !ignored(r) && max > -kInf;
    if (!counts[r]) continue;
    for (int64_t j = 0; j < vocab; ++j)
      sum += std::exp((replayed(r * vocab + j) - (long double)max) / temperature_of(r));
    for (int64_t j = 0; j < vocab; ++j) {
      const long double log_p = (replayed(r * vocab + j) - (long double)max) / temperature_of(r) - std::log(sum),
                        p = std::exp(log_p);
      want_p[r * vocab + j] = p, squares += p * p;
      if (p > 0) plogp += p * log_p, spread[r] = std::max(spread[r], double(-log_p));
      for (int64_t i = r * k; i < (r + 1) * k; ++i) {
        if (j == int64_t(y[i])) want_logp[i] = log_p;
      }
    }
    want_entropy[r] = -plogp, want_p2[r] = squares, want_lse[r] = max / temperature_of(r) + std::log(sum);
    largest[r] = std::fabs(max) / temperature_of(r);
  }
  const double eps = epsilon_of(acc);
  const auto near_row = [&](int64_t r) { return 32 * eps * (1 + spread[r] + (rounds ? largest[r] : 0)); };
  expect_near(
      logp, [&](int64_t i) { return want_logp[i]; }, [&](int64_t i) { return near_row(i / k); }, "token_logprob: logp");
  if (with_entropy) {
    expect_near(entropy, [&](int64_t r) { return want_entropy[r]; }, near_row, "token_logprob: entropy");
  }
  if (with_p2) expect_near(p2, [&](int64_t r) { return want_p2[r]; }, near_row, "token_logprob: sum_p2");
  if (with_lse) {
    expect_near(
        lse, [&](int64_t r) { return want_lse[r]; }, [&](int64_t r) { return 32 * eps * (1 + spread[r] + largest[r]); },
        "token_logprob: lse");
  }

  const bool has_q = chance(0.3), has_s = with_p2 && chance(0.8);
  const bool has_g = chance(0.8), has_h = with_entropy && chance(0.8), expanded = chance(0.2), inplace = chance(0.3);
  const std::vector<int64_t> flat(lead.size(), 0), flat_each(each.size(), 0);
  Array g = expanded ? Array(acc, each, flat_each) : random_layout(acc, each, false);
  Array h = expanded ? Array(acc, lead, flat) : random_layout(acc, lead, false);
  Array q = random_layout(acc, lead, false), s = random_layout(acc, lead, false);
  for (Array* gradient : {&g, &h, &q, &s}) gradient->fill([](int64_t) { return normal(); });
  Array grad = random_layout(dtype, shape, true);
  std::vector<double> want(rows * vocab), tolerance(rows * vocab);
  for (int64_t i = 0; i < rows * vocab; ++i) {
    const int64_t r = i / vocab;
    double gr = 0, g_size = 0, at_target = 0;           // sums over the targets
    const bool drawable = !keeps || kept_mask[i] != 0;  // a target that the mask leaves out has no gradient
    for (int64_t t = r * k; t < (r + 1) * k && has_g; ++t) {
      if (y[t] == ignore) continue;
      gr += g[t], g_size += std::fabs(g[t]);
      at_target += counts[r] && drawable && i % vocab == int64_t(y[t]) ? g[t] : 0;
    }
    const double p = want_p[i], hr = has_h ? h[r] : 0;
    const double qr = has_q ? q[r] : 0, sr = has_s ? s[r] : 0;
    const double by = form.slope(z[i]) / temperature_of(r);
    want[i] = (at_target + p * (qr - gr + 2 * sr * (p - want_p2[r])) -
               (p > 0 ? hr * p * (std::log(p) + want_entropy[r]) : 0)) *
              (p > 0 || at_target != 0 ? by : 0);
    const double size =
        (g_size + std::fabs(qr) + 4 * std::fabs(sr) + std::fabs(hr) * (2 + std::log(vocab) + spread[r])) * by;
    tolerance[i] = 64 * eps * size * (1 + 0.1 * spread[r] + (rounds ? largest[r] : 0)) +
                   epsilon_of(dtype) * std::fabs(want[i]) +
                   (dtype == DType::f16 ? 0x1p-24
                    : form.plain()      ? 0
                                        : 1e-36);
  }
  const auto backward = [&](const View& out) {
    slices([&](int64_t begin, int64_t end) {
      warpup::token_logprob_backward(columns(z, begin, end), tokens(begin, end), {begin, vocab},
                                     {.stats = stats,
                                      .entropy = h_view,
                                      .sum_p2 = p2_view,
                                      .grad_logp = optional(has_g, g),
                                      .grad_entropy = optional(has_h, h),
                                      .grad_lse = optional(has_q, q),
                                      .grad_sum_p2 = optional(has_s, s)},
                                     columns(out, begin, end));
    });
  };
  backward(inplace ? z : grad);
  expect_near(
      inplace ? z : grad, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return tolerance[i]; },
      inplace ? "token_logprob_backward in place" : "token_logprob_backward");
}

}  // namespace
}  // namespace fuzz
