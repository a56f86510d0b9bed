// Advantages over tokens and trees against plain loops.
#include <algorithm>

#include "advantage/gae_check.h"
#include "advantage/masked_whiten.h"
#include "advantage/masked_whiten_check.h"
#include "advantage/tree_advantage_check.h"
#include "fuzz.h"

namespace fuzz {
namespace {

// ---- gae ---------------------------------------------------------------------------------------------------

FUZZ(gae) {
  const DType dtype = wide();
  const double e = epsilon_of(dtype);
  const int64_t rows = below(5), length = chance(0.02) ? 9000 + below(100) : below(50);
  const bool with_values = chance(0.6), with_end = chance(0.4), cut = chance(0.3);
  const double gamma = std::array{1.0, 0.9, 0.0}[below(3)], decay = gamma * std::array{1.0, 0.95, 0.0}[below(3)];
  const std::vector<int64_t> shape{rows, length};
  Array r = random_layout(dtype, shape, true), v = random_layout(dtype, shape, true);
  Array mask = random_layout(DType::u8, shape, true), end(dtype, {rows}), x(dtype, shape), returns(dtype, shape);
  const double kept = std::array{0.0, 0.5, 1.0}[below(3)];
  mask.fill([&](int64_t) { return chance(kept) ? 1 + below(255) : 0; });
  const auto value = [&](int64_t i) { return mask[i] == 0 && chance(0.5) ? std::nan("") : normal(); };
  r.fill(value), v.fill(value), end.fill([](int64_t) { return normal(); });
  warpup::gae(r, given_if(with_values, v), mask, given_if(with_end, end), gamma, decay, cut, x,
              given_if(with_values, returns));
  std::vector<double> want(rows * length), near(rows * length), want_returns(rows * length);
  for (int64_t b = 0; b < rows; ++b) {
    const double last = with_end ? end[b] : 0;
    double next = with_values ? last : 0, running = with_values ? 0 : last, size = std::fabs(running);
    for (int64_t i = (b + 1) * length - 1; i >= b * length; --i) {
      if (mask[i] == 0) {
        if (cut) running = size = 0;
        continue;
      }
      const double here = with_values ? v[i] : 0;
      running = r[i] + gamma * next - here + decay * running;
      size = std::fabs(r[i]) + std::fabs(next) + std::fabs(here) + decay * size;
      next = here;
      want[i] = running, want_returns[i] = running + here;
      near[i] = e * (std::fabs(running) + std::fabs(here)) + 0x1p-52 * 64 * size;
    }
  }
  const auto tolerance = [&](int64_t i) { return near[i]; };
  expect_near(x, [&](int64_t i) { return want[i]; }, tolerance, "gae: advantages");
  if (with_values) expect_near(returns, [&](int64_t i) { return want_returns[i]; }, tolerance, "gae: returns");
}

// ---- masked_moments, masked_whiten ----------------------------------------------------------------------------------

FUZZ(masked_whiten) {
  const DType dtype = wide();
  const double e = epsilon_of(dtype), eps = std::array{0.0, 1e-8, 1e-2}[below(3)];
  const int64_t n = chance(0.05) ? 4090 + below(12) : chance(0.02) ? 20000 : below(70), correction = below(2);
  const bool with_mask = chance(0.8), skip_nan = chance(0.5), shift = chance(0.5), inplace = chance(0.3);
  const double kept = std::array{0.0, 0.1, 0.7, 1.0}[below(4)], scale = std::array{0.0, 1.0, 1e3}[below(3)];
  Array x(dtype, {n}), mask(DType::u8, {n}), out(dtype, {n}), moments(DType::f64, {4});
  Array partials(DType::f64, {warpup::Moments::chunks(n), warpup::Moments::kPartial});
  mask.fill([&](int64_t) { return chance(kept) ? 1 + below(255) : 0; });
  const auto left_out = [&](int64_t i) { return with_mask && mask[i] == 0; };
  x.fill([&](int64_t i) {
    return (left_out(i) && chance(0.5)) || (skip_nan && chance(0.2)) ? std::nan("") : 0.7 + normal(scale);
  });
  warpup::masked_moments(x, given_if(with_mask, mask), skip_nan, correction, partials, moments);
  std::vector<double> held;
  for (int64_t i = 0; i < n; ++i) {
    if (!left_out(i) && !std::isnan(x[i])) held.push_back(x[i]);
  }
  const Spread all(held);
  const double variance = all.n > correction ? all.m2 / (all.n - correction) : 0, count = all.n;
  const bool equal = all.n > 0 && all.max == all.min;
  const double largest = all.n > 0 ? std::max(std::fabs(all.max), std::fabs(all.min)) : 0;
  const double want[] = {count, all.n > 0 ? all.mean : 0, variance, double(equal)};
  const double sums = e * (8 + std::min(count, 4096.0) / 4);  // of a chunk, in its own type
  const double near[] = {0, equal ? 0 : sums * largest, equal ? 0 : sums * (variance + e * largest * largest), 0};
  expect_near(moments, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return near[i]; }, "masked_moments");
  if (skip_nan) return;  // whitening leaves out what the mask does

  std::vector<double> x_before(n);
  for (int64_t i = 0; i < n; ++i) x_before[i] = x[i];
  warpup::masked_whiten(x, given_if(with_mask, mask), shift, correction, eps, inplace ? x : out, partials, moments);
  const double scaled = equal ? 0 : 1 / std::sqrt(variance + eps), spread = std::sqrt(variance);
  const auto want_out = [&](int64_t i) {
    return left_out(i) ? 0 : (x_before[i] - all.mean) * scaled + (shift ? 0 : all.mean);
  };
  const auto near_out = [&](int64_t i) {
    if (left_out(i)) return 0.0;
    const double relative = sums * (8 + (equal ? 0 : largest / spread));  // what an offset takes
    return relative * std::fabs(want_out(i)) + (equal ? 0 : sums * largest * scaled) + (shift ? 0 : sums * largest);
  };
  expect_near(inplace ? x : out, want_out, near_out, inplace ? "masked_whiten in place" : "masked_whiten");
}

// ---- tree_advantage
// ----------------------------------------------------------------------------------------------------

FUZZ(tree_advantage) {
  const DType dtype = wide();
  const int64_t nodes = some_rows();
  std::vector<int64_t> place(nodes), parent(nodes, -1), children(nodes);
  std::iota(place.begin(), place.end(), 0);
  if (chance(0.7)) std::shuffle(place.begin(), place.end(), engine);
  const bool chain = chance(0.2) && nodes < 100;
  for (int64_t i = 1; i < nodes; ++i) parent[place[i]] = chain ? place[i - 1] : chance(0.1) ? -1 : place[below(i)];
  if (nodes > 1 && chance(0.1)) parent[place[0]] = place[below(nodes)];  // a cycle, where it is one's descendant
  std::iota(children.begin(), children.end(), 0);
  std::stable_sort(children.begin(), children.end(), [&](int64_t a, int64_t b) { return parent[a] < parent[b]; });
  Array r(dtype, {nodes}), order(DType::i64, {nodes}), begin(DType::i64, {nodes}), end(DType::i64, {nodes});
  Array values(dtype, {nodes}), settled(DType::u8, {nodes});
  r.fill([](int64_t) { return chance(0.2) ? std::nan("") : normal(); });
  std::vector<int64_t> first(nodes, 0), last(nodes, 0);
  for (int64_t i = nodes; i-- > 0;) {
    const int64_t p = parent[children[i]];
    if (p >= 0) first[p] = i, last[p] = last[p] == 0 ? i + 1 : last[p];
  }
  order.fill([&](int64_t i) { return children[i]; });
  begin.fill([&](int64_t i) { return first[i]; }), end.fill([&](int64_t i) { return last[i]; });
  const auto call = [&] { warpup::tree_advantage(r, order, begin, end, values, settled); };
  if (nodes > 0 && chance(0.1)) {
    end.set(0, nodes + 1);
    expect_rejected(call, "end[0]");
    end.set(0, last[0]);
  }
  call();

  // From the leaves up: a node has its value when all its children have; those of a cycle never do.
  std::vector<double> want(nodes, std::nan("")), sum(nodes), there(nodes);
  std::vector<int64_t> open(nodes), ready;
  for (int64_t i = 0; i < nodes; ++i) open[i] = last[i] - first[i];
  for (int64_t i = 0; i < nodes; ++i) {
    if (open[i] == 0) want[i] = r[i], ready.push_back(i);
  }
  for (size_t k = 0; k < ready.size(); ++k) {
    const int64_t p = parent[ready[k]];
    if (p < 0) continue;
    const double v = want[ready[k]];
    if (!std::isnan(v)) sum[p] += v, there[p] += 1;
    if (--open[p] == 0) want[p] = sum[p] / there[p], ready.push_back(p);  // 0 / 0 where none is there
  }
  const double near = 64 * epsilon_of(dtype);
  expect_near(values, [&](int64_t i) { return want[i]; }, [&](int64_t) { return near; }, "tree_advantage");
}

}  // namespace
}  // namespace fuzz
