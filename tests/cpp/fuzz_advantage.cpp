// The advantage family against plain loops.
#include <algorithm>
#include <numeric>

#include "advantage/group_advantage_check.h"
#include "advantage/masked_whiten.h"
#include "advantage/masked_whiten_check.h"
#include "advantage/role_advantage_check.h"
#include "fuzz.h"

namespace fuzz {
namespace {

// ---- group_plan -----------------------------------------------------------------------------------------------------

FUZZ(group_plan) {
  const int64_t rows = some_rows();
  const uint64_t bits = 1 + below(64), pool = 1 + below(rows + 1);
  const bool narrow = chance(0.4), sorted = chance(0.2);
  std::vector<int64_t> values(pool), id(rows), want(rows), bounds;
  for (int64_t& v : values) v = static_cast<int64_t>(engine() << (64 - bits)) >> (64 - bits);
  for (int64_t& v : id) v = values[below(pool)], v = narrow ? static_cast<int32_t>(v) : v;
  if (sorted) std::sort(id.begin(), id.end());
  Array ids(narrow ? DType::i32 : DType::i64, {rows}), order(DType::i64, {rows}), offsets(DType::i64, {rows + 1});
  for (int64_t i = 0; i < rows; ++i) {  // not by `set`: a double does not hold every id
    narrow ? void(static_cast<int32_t*>(ids.view().data)[i] = static_cast<int32_t>(id[i]))
           : void(static_cast<int64_t*>(ids.view().data)[i] = id[i]);
  }
  warpup::group_plan(ids, order, offsets);
  std::iota(want.begin(), want.end(), 0);
  std::stable_sort(want.begin(), want.end(), [&](int64_t a, int64_t b) { return id[a] < id[b]; });
  for (int64_t i = 0; i < rows; ++i) {
    if (i == 0 || id[want[i]] != id[want[i - 1]]) bounds.push_back(i);
  }
  bounds.resize(rows + 1, rows);
  const auto exactly = [](int64_t) { return 0.0; };
  expect_near(order, [&](int64_t i) { return want[i]; }, exactly, "group_plan: order");
  expect_near(offsets, [&](int64_t i) { return bounds[i]; }, exactly, "group_plan: offsets");
}

// ---- group_advantage ------------------------------------------------------------------------------------------------

FUZZ(group_advantage) {
  const DType dtype = wide();
  const double eps = std::array{0.0, 1e-8, 1e-4}[below(3)], e = epsilon_of(dtype);
  const int64_t size = 1 + below(chance(0.9) ? 9 : 200), correction = below(2);
  const bool fixed = chance(0.4), ordered = chance(0.4), raw = chance(0.5), stats = chance(0.6);
  const char *baselines[] = {"mean", "leave_one_out", "length_weighted", "runner_up", "none"},
             *scales[] = {"std", "batch_std", "leave_one_out_std", "none"};
  const std::string baseline = baselines[below(5)], scale = scales[below(4)];
  const int64_t rows = fixed ? some_rows() / size * size : some_rows();
  std::vector<int64_t> bounds{0};
  if (fixed) {
    while (bounds.back() < rows) bounds.push_back(bounds.back() + size);
  } else {
    for (int64_t g = rows / 50 + below(1 + rows / 2); g > 0; --g) bounds.push_back(below(rows + 1));
    bounds.push_back(rows);
    std::sort(bounds.begin(), bounds.end());
  }
  const int64_t groups = bounds.size() - 1;
  Array r = random_layout(dtype, {rows}, false), lengths = random_layout(dtype, {rows}, false);
  Array offsets(DType::i64, {groups + 1}), order(DType::i64, {rows});
  const bool drawn = chance(0.5);
  const double missing = std::array{0.0, 0.2, 1.0}[below(3)];
  const std::array pool{0.0, 1.0, 1.0, 0.7, -3.5, 1e3, 1.25};
  r.fill([&](int64_t) { return chance(missing) ? std::nan("") : drawn ? 5 + normal() : pool[below(7)]; });
  lengths.fill([](int64_t) { return chance(0.3) ? 0 : below(9); });
  offsets.fill([&](int64_t g) { return bounds[g]; });
  std::vector<int64_t> at(rows);
  std::iota(at.begin(), at.end(), 0);
  if (ordered) std::shuffle(at.begin(), at.end(), engine);
  order.fill([&](int64_t i) { return at[i]; });

  Array packed(dtype, {rows}), partials(DType::f64, {warpup::Moments::chunks(rows), 5}), batch(DType::f64, {4});
  packed.fill([&](int64_t i) { return r[i]; });
  warpup::masked_moments(packed, {}, true, correction, partials, batch);
  Array a(dtype, {rows}), count(DType::i64, {groups}), mean(dtype, {groups}), std(dtype, {groups});
  Array mean_abs(dtype, {groups}), zero(DType::u8, {groups});
  const auto call = [&] {
    warpup::group_advantage(r, given_if(!fixed, offsets), given_if(ordered, order),
                            given_if(baseline == "length_weighted", lengths), given_if(scale == "batch_std", batch),
                            fixed ? size : 0, baseline, scale, eps, correction, raw ? "raw" : "zero", a,
                            given_if(stats, count), given_if(stats, mean), given_if(stats, std),
                            given_if(stats, mean_abs), given_if(stats, zero));
  };
  if (ordered && rows > 0 && chance(0.1)) {
    order.set(0, rows);
    expect_rejected(call, "order[0]");
    order.set(0, at[0]);
  }
  if (baseline != "length_weighted" && chance(0.05)) {
    expect_rejected(
        [&] {
          warpup::group_advantage(r, {}, {}, lengths, {}, 1, baseline, "none", eps, 0, "zero", a, {}, {}, {}, {}, {});
        },
        "lengths belong");
  }
  if (!fixed && rows > 0 && chance(0.1)) {
    offsets.set(groups, rows + 1);
    expect_rejected(call, "offsets must");
    offsets.set(groups, rows);
  }
  call();

  std::vector<double> want(rows), near(rows);
  std::vector<double> want_stats[5], near_stats[5];
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<int64_t> row;
    std::vector<double> x;
    for (int64_t i = bounds[g]; i < bounds[g + 1]; ++i) {
      if (!std::isnan(r[at[i]])) row.push_back(at[i]), x.push_back(r[at[i]]);
    }
    const Spread all(x);
    const int64_t n = all.n;
    const bool equal = n > 0 && all.max == all.min;
    double length = 0, weighted = 0, absolute = 0, near_absolute = 0;
    for (int64_t i = 0; i < n; ++i) length += lengths[row[i]], weighted += lengths[row[i]] * (x[i] - all.mean);
    const int64_t best = n > 0 ? std::max_element(x.begin(), x.end()) - x.begin() : 0;
    const double largest = n > 0 ? std::max(std::fabs(all.max), std::fabs(all.min)) : 0;
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> others = x;
      others.erase(others.begin() + i);
      const Spread rest(others);
      double c = x[i] - all.mean, over = 1;
      if (baseline == "leave_one_out") c = x[i] - rest.mean;
      if (baseline == "length_weighted" && length > 0) c -= weighted / length;
      if (baseline == "runner_up") c = i == best ? all.max - rest.max : 0;
      if (baseline == "none") c = x[i];
      if (equal && baseline != "none") c = 0;
      if (scale == "std") over = equal ? kInf : all.std(correction) + eps;
      if (scale == "batch_std") over = batch[3] != 0 ? kInf : std::sqrt(batch[2]) + eps;
      if (scale == "leave_one_out_std" && rest.max != rest.min && rest.n > correction)
        over = rest.std(correction) + eps;
      const double value = n == 1 ? (raw ? x[i] : 0) : c / over;
      // Sums are in double: what counts is the last rounding, and the digits that an offset of the rewards takes.
      const double tolerance =
          n == 1 || over == kInf
              ? 0
              : 8 * e * std::fabs(value) + 0x1p-52 * 16 * (n + 8) * (largest + std::fabs(value)) / over;
      want[row[i]] = value, near[row[i]] = tolerance;
      absolute += std::fabs(value) / n, near_absolute += tolerance / n;
    }
    const double five[] = {double(n), all.n > 0 ? all.mean : 0, all.std(correction), absolute, double(equal)};
    const double rounding = n > 0 ? 2 * e * largest + 0x1p-52 * 16 * n * largest : 0;
    const double tolerances[] = {0, rounding, n > 1 ? rounding : 0, near_absolute + 4 * e * absolute, 0};
    for (int s = 0; s < 5; ++s) want_stats[s].push_back(five[s]), near_stats[s].push_back(tolerances[s]);
  }
  const std::string what = "group_advantage(" + baseline + ", " + scale + ")";
  expect_near(a, [&](int64_t i) { return want[i]; }, [&](int64_t i) { return near[i]; }, what);
  const Array* statistics[] = {&count, &mean, &std, &mean_abs, &zero};
  for (int s = 0; stats && s < 5; ++s) {
    expect_near(
        *statistics[s], [&](int64_t g) { return want_stats[s][g]; }, [&](int64_t g) { return near_stats[s][g]; },
        what + ": statistic " + std::to_string(s));
  }
}

// ---- role_advantage -------------------------------------------------------------------------------------------------

FUZZ(role_advantage) {
  const DType dtype = wide();
  const int64_t rows = some_rows(), count = 1 + below(6);
  const double e = epsilon_of(dtype), decay = std::array{0.0, 0.9, 1.0}[below(3)];
  Array r(dtype, {rows}), roles(DType::i64, {rows}), state(dtype, {count}), a(dtype, {rows}), fresh(dtype, {count});
  r.fill([](int64_t) { return chance(0.2) ? std::nan("") : normal(); });
  roles.fill([&](int64_t) { return below(count); }), state.fill([](int64_t) { return normal(); });
  std::vector<double> b(count), want(rows);
  for (int64_t k = 0; k < count; ++k) b[k] = state[k];
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t role = static_cast<int64_t>(roles[i]);
    if (std::isnan(r[i])) continue;
    want[i] = r[i] - b[role];
    b[role] = decay * b[role] + (1 - decay) * r[i];
  }
  const bool inplace = chance(0.3);
  const auto call = [&] { warpup::role_advantage(r, roles, state, decay, a, inplace ? state : fresh); };
  if (rows > 0 && chance(0.1)) {
    const double role = roles[0];
    roles.set(0, chance(0.5) ? count : -1);
    expect_rejected(call, "roles[0]");
    roles.set(0, role);
  }
  call();
  const auto near = [&](int64_t) { return 16 * e; };
  expect_near(a, [&](int64_t i) { return want[i]; }, near, "role_advantage");
  expect_near(inplace ? state : fresh, [&](int64_t k) { return b[k]; }, near, "role_advantage: new_state");
}

}  // namespace
}  // namespace fuzz
