// divergence and topk_divergence against plain loops, and the scalar functions under them.
#include <algorithm>

#include "core/math.h"
#include "divergence/divergence.h"
#include "divergence/divergence_check.h"
#include "divergence/divergence_math.h"
#include "divergence/topk_divergence.h"
#include "divergence/topk_divergence_check.h"
#include "fuzz.h"

namespace fuzz {
namespace {

struct DivergenceProblem {  // what both ops take, and what plain loops make of it
  DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  int64_t vocab = chance(0.1) ? 1020 + below(20) : 1 + below(chance(0.5) ? 20 : 300);
  std::vector<int64_t> lead, shape;
  double t_scalar = chance(0.5) ? 1 : 0.3 + below(20) / 10.0;
  bool per_row = chance(0.3), masked = chance(0.5);
  std::vector<Array> arrays;  // student, temperature, mask

  DivergenceProblem() {
    for (int64_t d = below(4); d > 0; --d) lead.push_back(chance(0.05) ? 0 : 1 + below(4));
    shape = with(vocab);
    arrays.push_back(logits());
    arrays.push_back(random_layout(DType::f32, lead, false));
    temperature().fill([](int64_t) { return 0.5 + below(10) / 8.0; });
    arrays.push_back(random_layout(DType::u8, lead, false));
    mask().fill([](int64_t) { return chance(0.7); });
  }
  std::vector<int64_t> with(int64_t last) const {
    std::vector<int64_t> sizes = lead;
    sizes.push_back(last);
    return sizes;
  }
  Array logits() const {
    const double scale = std::array{0.0, 1.0, 10.0}[below(3)], impossible = chance(0.5) ? 0 : chance(0.1) ? 1 : 0.3;
    Array z = random_layout(dtype, shape, true);
    z.fill([&](int64_t) { return chance(impossible) ? -kInf : normal(scale); });
    return z;
  }
  Array& student() { return arrays[0]; }
  Array& temperature() { return arrays[1]; }
  Array& mask() { return arrays[2]; }
  warpup::PerRowOrScalarView temperature_view() {
    return {per_row ? warpup::OptionalView(temperature().view()) : std::nullopt, t_scalar};
  }
  warpup::OptionalView mask_view() { return masked ? warpup::OptionalView(mask().view()) : std::nullopt; }
  double t(int64_t r) { return per_row ? temperature()[r] : t_scalar; }
  bool counts(int64_t r) { return !masked || mask()[r] != 0; }

  // log p of a row of logits z(i), empty where none is above -inf
  template <class Logit>
  std::vector<double> log_p(const Logit& z, int64_t r) {
    double max = -kInf;
    long double sum = 0;
    for (int64_t j = 0; j < vocab; ++j) max = std::max(max, z(r * vocab + j));
    if (max == -kInf) return {};
    for (int64_t j = 0; j < vocab; ++j) sum += std::exp((z(r * vocab + j) - (long double)max) / t(r));
    std::vector<double> out(vocab);
    for (int64_t j = 0; j < vocab; ++j) out[j] = double((z(r * vocab + j) - (long double)max) / t(r) - std::log(sum));
    return out;
  }
};

FUZZ(divergence) {
  DivergenceProblem x;
  Array teacher = x.logits(), y = random_layout(DType::i64, x.lead, false);
  const int64_t vocab = x.vocab, rows = y.size();
  y.fill([&](int64_t r) { return x.counts(r) || chance(0.5) ? below(vocab) : -100; });
  const std::string kind =
      std::array{"forward", "reverse", "jeffreys", "jsd", "symmetric_ce", "logit_swap", "binary"}[below(7)];
  const double beta = std::array{0.0, 0.2, 0.5, 1.0}[below(4)];
  for (int64_t r = 0; r < rows; ++r) {  // a masked row may hold anything
    if (!x.counts(r) && chance(0.5)) x.student().set(r * vocab + below(vocab), std::nan(""));
  }
  const warpup::OptionalView targets = kind == "logit_swap" ? warpup::OptionalView(y.view()) : std::nullopt;
  Array value(x.acc, x.lead), stats(x.acc, x.with(warpup::kDivergenceStats));
  const Form student_form, teacher_form;
  const auto student_logit = [&](int64_t i) { return student_form(x.student()[i]); };
  const auto teacher_logit = [&](int64_t i) { return teacher_form(teacher[i]); };
  const warpup::DivergenceOptions options{.kind = kind,
                                          .temperature = x.temperature_view(),
                                          .beta = beta,
                                          .mask = x.mask_view(),
                                          .targets = targets,
                                          .student_form = student_form.options,
                                          .teacher_form = teacher_form.options};
  warpup::divergence(x.student(), teacher, options, value, stats);

  // Plain loops: the value from its definition, the gradient by the chain rule through the softmax's Jacobian.
  std::vector<double> want(rows), size(rows), slope(rows * vocab), slope_size(rows);
  for (int64_t r = 0; r < rows; ++r) {
    if (!x.counts(r)) continue;
    const auto at = [&](const auto& z, int64_t j) { return z(r * vocab + j) / x.t(r); };
    if (kind == "binary") {
      for (int64_t j = 0; j < vocab; ++j) {
        const long double a = at(teacher_logit, j), b = at(student_logit, j), q = 1 / (1 + std::exp(-a));
        if (b == -kInf) continue;
        const auto softplus = [](long double v) { return std::max(v, 0.0L) + std::log1p(std::exp(-std::fabs(v))); };
        const long double d = (q > 0 ? q * (softplus(-b) - softplus(-a)) : 0) + (1 - q) * (softplus(b) - softplus(a));
        want[r] += d, size[r] += 1 + std::fabs(double(b)) + (q > 0 ? std::fabs(double(a)) : 0);
        slope[r * vocab + j] = double(1 / (1 + std::exp(-b)) - q);
      }
      slope_size[r] = 1;
      continue;
    }
    const std::vector<double> s = x.log_p(student_logit, r);
    std::vector<double> t = x.log_p(teacher_logit, r), d_p(vocab);  // d_p: derivative of the value by pS
    if (s.empty() || t.empty()) continue;
    if (kind == "logit_swap") std::swap(t[std::max_element(t.begin(), t.end()) - t.begin()], t[int64_t(y[r])]);
    const auto times = [](double p, double log) { return log == -kInf || log == kInf ? 0 : p * log; };
    const bool one = kind == "jsd" && beta == 1, zero = kind == "jsd" && beta == 0;
    long double total = 0, mean = 0;
    std::vector<double> x_slope(vocab);
    for (int64_t j = 0; j < vocab; ++j) {
      const double p = std::exp(s[j]), q = std::exp(t[j]);
      const double ratio = s[j] == -kInf || t[j] == -kInf ? 0 : s[j] - t[j];
      const double out = s[j] == -kInf || t[j] == -kInf ? 0 : 1;
      const double m = beta * q + (1 - beta) * p, log_m = m > 0 ? std::log(m) : 0;
      const bool forward = kind == "forward" || kind == "logit_swap" || zero || kind == "jeffreys";
      const bool reverse = kind == "reverse" || one || kind == "jeffreys";
      double by_x = 0, by_p = 0;  // derivative as p times something, and what is left of pT
      if (forward) total -= q * ratio, by_x -= s[j] == -kInf ? 0 : q;
      if (reverse) total += p * ratio, by_p += ratio + out;
      if (kind == "symmetric_ce") {
        total -= 0.5 * (times(q, s[j]) + times(p, t[j]));
        by_x -= s[j] == -kInf ? 0 : 0.5 * q;
        by_p -= t[j] == -kInf ? 0 : 0.5 * t[j];
      }
      if (kind == "jsd" && !one && !zero) {
        total += beta * times(q, t[j] == -kInf ? t[j] : t[j] - log_m) +
                 (1 - beta) * times(p, s[j] == -kInf ? s[j] : s[j] - log_m);
        by_p += s[j] == -kInf ? 0 : (1 - beta) * (s[j] - log_m);
      }
      x_slope[j] = by_x + p * by_p, mean += x_slope[j];
      slope_size[r] = std::max(slope_size[r], (p + q) * (1 + std::fabs(p > 0 ? s[j] : 0) + (q > 0 ? -t[j] : 0)));
      size[r] += (p + q) * (1 + (p > 0 ? -s[j] : 0) + (q > 0 ? -t[j] : 0));
      if (p > 0 && q > 0) size[r] += (p + q) * std::fabs(ratio);
    }
    want[r] = double(total);
    for (int64_t j = 0; j < vocab; ++j) slope[r * vocab + j] = x_slope[j] - double(mean) * std::exp(s[j]);
    slope_size[r] += size[r];
  }
  // A formed logit is rounded, by as much as its size.
  const auto rounded = [&](int64_t r) {
    double largest = 0;
    for (int64_t i = r * vocab; i < (r + 1) * vocab; ++i) {
      if (!student_form.plain() && std::isfinite(student_logit(i)))
        largest = std::max(largest, std::fabs(student_logit(i)));
      if (!teacher_form.plain() && std::isfinite(teacher_logit(i)))
        largest = std::max(largest, std::fabs(teacher_logit(i)));
    }
    return largest / x.t(r);
  };
  std::vector<double> by(rows * vocab);
  for (int64_t i = 0; i < rows * vocab; ++i) {
    size[i / vocab] *= i % vocab == 0 ? 1 + rounded(i / vocab) : 1;
    slope_size[i / vocab] *= i % vocab == 0 ? 1 + rounded(i / vocab) : 1;
    by[i] = x.student()[i] == -kInf || !x.counts(i / vocab) ? 0 : student_form.slope(x.student()[i]) / x.t(i / vocab);
  }
  const double eps = epsilon_of(x.acc);
  expect_near(
      value, [&](int64_t r) { return want[r]; }, [&](int64_t r) { return 128 * eps * (1 + size[r]); },
      "divergence: " + kind);

  const bool inplace = chance(0.3);
  Array g =
      chance(0.2) ? Array(x.acc, x.lead, std::vector<int64_t>(x.lead.size(), 0)) : random_layout(x.acc, x.lead, false);
  g.fill([](int64_t) { return normal(); });
  Array grad = random_layout(x.dtype, x.shape, true);
  const Array& out = inplace ? x.student() : grad;
  warpup::divergence_backward(x.student(), teacher, options, stats, g, out);
  expect_near(
      out, [&](int64_t i) { return g[i / vocab] * slope[i] * by[i]; },
      [&](int64_t i) {
        const double factor = std::fabs(g[i / vocab]) * by[i];
        return factor * (64 * eps * slope_size[i / vocab] + epsilon_of(x.dtype) * std::fabs(slope[i])) +
               (x.dtype == DType::f16  ? 0x1p-24
                : student_form.plain() ? 0
                                       : 1e-36);
      },
      "divergence_backward: " + kind + (inplace ? " in place" : ""));
}

FUZZ(topk_divergence) {
  DivergenceProblem x;
  const int64_t vocab = x.vocab, k = below(6), rows = x.mask().size();
  Array ids = random_layout(DType::i64, x.with(k), true), logp = random_layout(x.acc, x.with(k), true);
  ids.fill([&](int64_t) { return below(vocab); });
  logp.fill([](int64_t) { return chance(0.2) ? -kInf : -std::fabs(normal(2)); });
  Array value(x.acc, x.lead), stats(x.acc, x.with(warpup::kTopkStats));
  const std::string kind = std::array{"forward", "reverse", "jsd", "mixed"}[below(4)];
  const Form form;
  const warpup::TopkOptions options{.kind = kind,
                                    .temperature = x.temperature_view(),
                                    .beta = std::array{0.0, 0.2, 0.5, 1.0}[below(4)],
                                    .tail = chance(0.5),
                                    .mask = x.mask_view(),
                                    .form = form.options};
  const auto forward = [&] { warpup::topk_divergence(x.student(), {ids, logp}, options, value, stats); };
  if (rows > 0 && k > 0 && !x.masked && chance(0.1)) {
    const int64_t i = below(ids.size());
    const double kept = ids[i];
    ids.set(i, chance(0.5) ? double(vocab) : -1.0);
    expect_rejected(forward, "is outside");
    ids.set(i, kept);
  }
  forward();

  // Plain loops: each outcome's term, and the derivative of it by the student's probability.
  const bool jsd = kind == "jsd" && options.beta > 0 && options.beta < 1;
  const double beta = kind == "forward"       ? 1
                      : kind == "reverse"     ? 0
                      : kind == "jsd" && !jsd ? 1 - options.beta
                                              : options.beta;
  std::vector<double> want(rows), size(rows), slope(rows * vocab);
  const auto logit = [&](int64_t i) { return form(x.student()[i]); };
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<double> s = x.counts(r) ? x.log_p(logit, r) : std::vector<double>{};
    if (s.empty()) continue;
    std::vector<double> by_p(vocab);                    // derivative of the value by pS, times pS
    const auto add = [&](double log_t, double log_s) {  // that of one outcome
      if (log_t == -kInf || (log_s == -kInf && !jsd)) return 0.0;
      const double p = std::exp(log_s), q = std::exp(log_t), d = log_s - log_t, m = beta * q + (1 - beta) * p;
      const double of_s = p > 0 ? p * (log_s - std::log(m)) : 0;
      want[r] += jsd ? beta * q * (log_t - std::log(m)) + (1 - beta) * of_s : ((1 - beta) * p - beta * q) * d;
      size[r] += p * (2 + std::fabs(log_t) - (p > 0 ? log_s : 0)) + q * (2 - log_t + (p > 0 ? std::fabs(log_s) : 0));
      return jsd ? (1 - beta) * of_s : (1 - beta) * p * (d + 1) - beta * q;
    };
    double listed = 0, sum = 0, tail = 0, of_tail = 0;
    std::vector<bool> unlisted(vocab, true);
    for (int64_t i = r * k; i < (r + 1) * k; ++i) {
      if (logp[i] == -kInf) continue;
      const int64_t j = int64_t(ids[i]);
      const double g = add(logp[i], s[j]);
      by_p[j] += g, sum += g, listed += std::exp(logp[i]), unlisted[j] = false;
    }
    if (options.tail) {
      for (int64_t j = 0; j < vocab; ++j) tail += unlisted[j] ? std::exp(s[j]) : 0;
      of_tail = add(std::log(std::max(1 - listed, 1e-7)), tail > 0 ? std::log(tail) : -kInf);
    }
    for (int64_t j = 0; j < vocab; ++j) {
      const double p = std::exp(s[j]), share = options.tail && unlisted[j] && p > 0 ? of_tail * (p / tail) : 0;
      slope[r * vocab + j] = by_p[j] + share - p * (sum + of_tail);
    }
    double largest = 0;  // a formed logit is rounded, by as much as its size
    for (int64_t i = r * vocab; i < (r + 1) * vocab; ++i) {
      if (!form.plain() && std::isfinite(logit(i))) largest = std::max(largest, std::fabs(logit(i)));
    }
    size[r] *= 1 + largest / x.t(r);
  }
  const double eps = epsilon_of(x.acc);
  expect_near(
      value, [&](int64_t r) { return want[r]; }, [&](int64_t r) { return 128 * eps * (1 + size[r]); },
      "topk_divergence: " + kind);
  Array g = random_layout(x.acc, x.lead, false), grad = random_layout(x.dtype, x.shape, true);
  g.fill([](int64_t) { return normal(); });
  warpup::topk_divergence_backward(x.student(), {ids, logp}, options, stats, g, grad);
  const auto by = [&](int64_t i) {  // from the slope to the gradient
    const double logit = x.student()[i];
    return logit == -kInf || !x.counts(i / vocab) ? 0 : form.slope(logit) / x.t(i / vocab);
  };
  expect_near(
      grad, [&](int64_t i) { return g[i / vocab] * slope[i] * by(i); },
      [&](int64_t i) {
        const double factor = std::fabs(g[i / vocab]) * by(i);
        return factor * (64 * eps * (1 + size[i / vocab]) + epsilon_of(x.dtype) * std::fabs(slope[i])) +
               (x.dtype == DType::f16 ? 0x1p-24
                : form.plain()        ? 0
                                      : 1e-36);
      },
      "topk_divergence_backward: " + kind);
}

// log_pos and log1p_unit within 2 ulp of the result, over the whole range and close to 1 and 0.
FUZZ(logarithms) {
  const auto ulps = [](float got, double want) {
    if (want == 0) return got == 0 ? 0 : kInf;
    return std::fabs(got - want) / std::max(std::ldexp(1.0, std::ilogb(want) - 23), 0x1p-149);
  };
  double worst = 0;
  for (int i = 0; i < 200; ++i) {
    const float wide = std::bit_cast<float>(uint32_t(0x00800000 + below(0x7f000000)));
    const float near_one = 1 + float(normal(chance(0.5) ? 0.3 : 1e-4)), x = near_one > 0 && i % 2 ? near_one : wide;
    worst = std::max(worst, ulps(warpup::log_pos(x), std::log(double(x))));
    const float y = std::exp(-float(below(1000)) / 20) * float(1 - below(1000) / 4000.0);
    worst = std::max(worst, ulps(warpup::log1p_unit(y), std::log1p(double(y))));
  }
  worst = std::max(worst, ulps(warpup::log_pos(1.0f), 0.0));
  expect(worst <= 2, "log_pos and log1p_unit: " + std::to_string(worst) + " ulp");
  expect(std::isnan(warpup::log_pos(std::nanf(""))), "log_pos of NaN");
}

}  // namespace
}  // namespace fuzz
