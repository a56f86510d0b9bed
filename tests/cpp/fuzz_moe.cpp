// moe_plan, moe_gather, moe_combine and moe_route against plain loops.
#include <algorithm>

#include "fuzz.h"
#include "moe/moe_gather_check.h"
#include "moe/moe_plan.h"
#include "moe/moe_plan_check.h"
#include "moe/moe_route.h"
#include "moe/moe_route_check.h"

namespace fuzz {

// ---- moe_plan, moe_gather, moe_combine ------------------------------------------------------------------------------

FUZZ(moe_gather) {  // with moe_plan and moe_combine
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const double eps = epsilon_of(dtype), acc_eps = epsilon_of(acc),
               tiny = dtype == DType::f16 ? 0x1p-24 : 0;  // subnormal
  const int64_t tokens = chance(0.02) ? 400 : below(chance(0.5) ? 5 : 40), k = 1 + below(4), experts = 1 + below(20);
  const int64_t block = std::array{1, 1, 3, 16}[below(4)], width = below(chance(0.1) ? 1100 : 40), copies = tokens * k;
  const int64_t rows = warpup::moe_plan_rows(copies, experts, block);
  Array indices(chance(0.5) ? DType::i32 : DType::i64, {tokens, k});
  indices.fill([&](int64_t) { return chance(0.2) ? -1 : below(experts); });
  Array counts(DType::i64, {experts}), offsets(DType::i64, {experts + 1}), permutation(DType::i64, {rows});
  Array inverse(DType::i64, {tokens, k}), chunks(DType::i64, {warpup::MoePlanChunks::count(copies), experts});
  const auto plan = [&] { warpup::moe_plan(indices, block, counts, offsets, permutation, inverse, chunks); };
  if (copies > 0 && chance(0.1)) {
    const double former = indices[0];
    indices.set(0, chance(0.5) ? experts : -2);
    expect_rejected(plan, "indices[0, 0]");
    indices.set(0, former);
  }
  plan();
  std::vector<int64_t> count(experts), start(experts + 1), of_row(rows, -1), of_copy(copies, -1);
  for (int64_t e = 0; e < experts; ++e) {
    int64_t row = start[e];
    for (int64_t i = 0; i < copies; ++i) {
      if (indices[i] == e) of_row[row] = i, of_copy[i] = row++;
    }
    count[e] = row - start[e];
    start[e + 1] = start[e] + (count[e] + block - 1) / block * block;
  }
  const auto exactly = [](int64_t) { return 0.0; };
  expect_near(counts, [&](int64_t e) { return count[e]; }, exactly, "moe_plan: counts");
  expect_near(offsets, [&](int64_t e) { return start[e]; }, exactly, "moe_plan: offsets");
  expect_near(permutation, [&](int64_t s) { return of_row[s]; }, exactly, "moe_plan: permutation");
  expect_near(inverse, [&](int64_t i) { return of_copy[i]; }, exactly, "moe_plan: inverse");

  Array x = random_layout(dtype, {tokens, width}, true), y = random_layout(dtype, {rows, width}, true);
  Array w(acc, {tokens, k}), out(dtype, {rows, width}), dw(acc, {tokens, k}), combined(dtype, {tokens, width});
  x.fill([](int64_t) { return normal(); }), y.fill([](int64_t) { return normal(); });
  w.fill([](int64_t) { return normal(); });
  const bool weighted = chance(0.5);
  const auto weight = [&](int64_t copy) { return weighted ? w[copy] : 1.0; };
  const warpup::OptionalView weights = weighted ? warpup::OptionalView(w.view()) : std::nullopt;
  const bool dots = chance(0.5);
  warpup::moe_gather(x, permutation, inverse, weights, dots ? warpup::OptionalView(y.view()) : std::nullopt, out,
                     dots ? warpup::OptionalView(dw.view()) : std::nullopt);
  const auto spread = [&](int64_t i) {
    const int64_t copy = of_row[i / width];
    return copy < 0 ? 0.0 : weight(copy) * x[copy / k * width + i % width];
  };
  expect_near(out, spread, [&](int64_t i) { return eps * std::fabs(spread(i)) + tiny; }, "moe_gather");
  const auto dot = [&](int64_t copy) {
    double sum = 0;
    for (int64_t h = 0; h < width && of_copy[copy] >= 0; ++h) {
      sum += x[copy / k * width + h] * y[of_copy[copy] * width + h];
    }
    return sum;
  };
  if (dots) expect_near(dw, dot, [&](int64_t) { return 20 * acc_eps * (width + 4); }, "moe_gather: grad_weights");

  warpup::moe_combine(y, weights, inverse, combined);
  const auto sum = [&](int64_t i) {
    double total = 0;
    for (int64_t copy = i / width * k; copy < (i / width + 1) * k; ++copy) {
      if (of_copy[copy] >= 0) total += weight(copy) * y[of_copy[copy] * width + i % width];
    }
    return total;
  };
  expect_near(combined, sum, [&](int64_t i) { return eps * std::fabs(sum(i)) + 100 * acc_eps; }, "moe_combine");
}

// ---- moe_route ------------------------------------------------------------------------------------------------------

FUZZ(moe_route) {
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const double tolerance = 64 * epsilon_of(acc);
  const int64_t tokens = chance(0.02) ? 300 : below(chance(0.5) ? 5 : 40);
  const int64_t groups = chance(0.3) ? 2 + below(3) : 0, size = 1 + below(chance(0.1) ? 200 : 12);
  const int64_t experts = size * std::max<int64_t>(groups, 1), kept = groups ? 1 + below(groups) : 0;
  const int64_t k = 1 + below(std::min<int64_t>(groups ? kept * size : experts, 9)), top = groups ? 1 + below(size) : 0;
  const std::string score = std::array{"softmax", "sigmoid", "sqrt_softplus"}[below(3)];
  const bool over_chosen = score == "softmax" && chance(0.4), renormalize = chance(0.5), bounded = chance(0.5);
  const warpup::RouteOptions options{.score = score,
                                     .over_chosen = over_chosen,
                                     .renormalize = renormalize,
                                     .epsilon = 1e-20,
                                     .scale = 1.5,
                                     .groups = groups,
                                     .kept_groups = kept,
                                     .group_top = top};
  std::vector<int64_t> cuts{0};
  for (int64_t b = bounded ? below(4) : 0; b > 0; --b) cuts.push_back(below(tokens + 1));
  cuts.push_back(tokens);
  std::sort(cuts.begin(), cuts.end());
  const int64_t sequences = cuts.size() - 1, slots = warpup::RouteChunks::slots(tokens, sequences);
  Array z = random_layout(dtype, {tokens, experts}, true), bias(acc, {experts}), mask(DType::u8, {tokens});
  Array bounds(DType::i64, {sequences + 1}), weights(acc, {tokens, k}), indices(DType::i64, {tokens, k});
  z.fill([](int64_t) { return chance(0.05) ? -kInf : chance(0.05) ? std::nan("") : normal(4); });
  bias.fill([](int64_t) { return normal(); }), mask.fill([](int64_t) { return chance(0.8); });
  bounds.fill([&](int64_t b) { return cuts[b]; });
  Array counts(DType::i64, {sequences, experts}), mean(acc, {sequences, experts}), z_loss(acc, {});
  Array stats(acc, {tokens, 2}), lengths(DType::i64, {sequences + 1});
  Array sums(acc, {slots, experts + 1}), numbers(DType::i64, {slots, experts + 1});
  const warpup::OptionalView cu = bounded ? warpup::OptionalView(bounds.view()) : std::nullopt;
  const bool biased = chance(0.5);
  warpup::moe_route(z, biased ? warpup::OptionalView(bias.view()) : std::nullopt, {}, mask.view(), cu, k, options,
                    {weights, indices, counts, mean, z_loss, stats, lengths}, sums, numbers);

  // What any choice must fulfil: different experts, k of them, counted once each, weighed by their own scores.
  std::vector<double> seen(sequences * experts), want(tokens * k), live(sequences);
  bool valid = true;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t b = std::upper_bound(cuts.begin() + 1, cuts.end() - 1, t) - cuts.begin() - 1;
    double high = -kInf, total = 0, chosen = over_chosen ? 0 : 1e-20;
    bool any = mask[t] != 0, nan = false;
    for (int64_t e = 0; e < experts; ++e) high = std::fmax(high, z[t * experts + e]);
    for (int64_t e = 0; e < experts; ++e) {
      nan = nan || std::isnan(z[t * experts + e]);
      total += std::exp(z[t * experts + e] - high);
    }
    any = any && (nan || high > -kInf);
    live[b] += any;
    const auto value = [&](double x) {
      if (over_chosen) return std::exp(x - high);
      if (score == "softmax") return std::exp(x - high) / total;
      return score == "sigmoid" ? 1 / (1 + std::exp(-x)) : std::sqrt(std::log1p(std::exp(x)));
    };
    for (int64_t j = 0; j < k; ++j) {
      const int64_t e = static_cast<int64_t>(indices[t * k + j]);
      valid = valid && (any ? e >= 0 && e < experts : e == -1);
      for (int64_t i = 0; i < j && any; ++i) valid = valid && e != indices[t * k + i];
      if (!any || !valid) continue;
      seen[b * experts + e] += 1;
      want[t * k + j] = value(z[t * experts + e]);
      chosen += want[t * k + j];
    }
    for (int64_t j = 0; j < k && any; ++j) want[t * k + j] *= 1.5 / (over_chosen || renormalize ? chosen : 1);
  }
  expect(valid, "moe_route: indices");
  const auto exactly = [](int64_t) { return 0.0; };
  expect_near(counts, [&](int64_t i) { return seen[i]; }, exactly, "moe_route: counts");
  expect_near(
      lengths,
      [&](int64_t b) {
        double all = 0;
        for (const double n : live) all += n;
        return b < sequences ? live[b] : all;
      },
      exactly, "moe_route: lengths");
  expect_near(
      weights, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return tolerance * (1 + std::fabs(want[i])); },
      "moe_route: weights of " + score);

  Array grad_weights(acc, {tokens, k}), grad_mean(acc, {sequences, experts}), grad_z(acc, {});
  grad_weights.fill([](int64_t) { return normal(); }), grad_mean.fill([](int64_t) { return normal(); });
  grad_z.fill([](int64_t) { return normal(); });
  Array grad(dtype, {tokens, experts});
  grad.fill([](int64_t) { return 77; });
  const auto given = [](const Array& a) { return chance(0.7) ? warpup::OptionalView(a.view()) : std::nullopt; };
  warpup::moe_route_backward(z, cu, options, indices, stats, lengths, given(grad_weights), given(grad_mean),
                             given(grad_z), grad);
  bool written = true;  // its values: tests/test_contract.py, by finite differences
  for (int64_t i = 0; i < grad.size(); ++i) {
    written = written && grad[i] != 77 && (indices[i / experts * k] >= 0 || grad[i] == 0);
  }
  expect(written, "moe_route_backward");
}

}  // namespace fuzz
