// The reflection family against a search through all tokens of a request.
#include <algorithm>
#include <array>

#include "fuzz.h"
#include "reflection/apply_schedule_check.h"
#include "reflection/sample_step.h"
#include "reflection/sample_step_check.h"

namespace fuzz {
namespace {

struct Trace {  // one request, remembered whole
  std::vector<int64_t> tokens;
  int64_t prompt = 0;
  int64_t oldest = 0;  // as many of its tokens as can be gone back to
};

struct ReflectionWorld {
  static constexpr int64_t kVocab = 7;
  int64_t slots = 1 + below(5), ring = 2 + below(6), ids = 1 + below(3);
  Array state{DType::i32, {slots, 1 + ring, warpup::kFields}}, schedules{DType::f64, {slots, warpup::kSchedule}};
  Array sets{DType::i32, {ids + 3}}, knots{DType::f64, {3, 2}}, markers{DType::i32, {4, 2, warpup::kMarker + 1}};
  std::vector<std::vector<int64_t>> patterns{{1}, {2, 1, 2}, {3, 3}, {4}};
  std::vector<Trace> traces = std::vector<Trace>(slots);

  ReflectionWorld() {
    state.fill([&](int64_t i) { return i % warpup::kFields == 3 && i / warpup::kFields % (1 + ring) ? -1 : 0; });
    sets.fill([&](int64_t i) { return i < 3 ? 99 : double(i - 3 + (ids < 3 ? 2 : 0)); });
    knots.fill([](int64_t i) { return i % 2 ? normal(3) : 4.0 * i; });
    schedules.fill([&](int64_t i) -> double {
      switch (i % warpup::kSchedule) {
        case 0:
          return below(5);
        case 1:
          return normal(4);
        case 2:
          return 2 + below(20) / 2.0;
        case 3:
          return below(3) / 4.0;
        case 4:
          return below(4);
        case 5:
          return below(3) - 1;
        case 6:
          return chance(0.5) ? kInf : double(10 + below(30));
        case 7:
          return below(3);
        case 8:
          return 1 + below(15);
        case 9:
          return below(2);
        case 10:
          return 3;
        case 11:
          return double(ids);
        case 12:
          return below(2);
        case 13:
          return 1 + below(2);
        default:
          return 0;
      }
    });
    markers.fill([](int64_t i) { return i / (warpup::kMarker + 1) % 2 ? 0 : -1; });
    for (int64_t m = 0; m < 4; ++m) {
      const auto& p = patterns[m];
      for (size_t i = 0; i < p.size(); ++i) markers.set(m * 2 * (warpup::kMarker + 1) + i, double(p[i]));
    }
    markers.set((1 * 2 + 1) * (warpup::kMarker + 1) + 3, 1);  // borders of 2 1 2 and of 3 3
    markers.set((2 * 2 + 1) * (warpup::kMarker + 1) + 2, 1);
  }

  warpup::TableViews views() const { return {state, schedules, sets, warpup::OptionalView(knots.view())}; }
  double schedule(int64_t slot, int column) const { return schedules[slot * warpup::kSchedule + column]; }
  bool chosen(int64_t token) const {
    for (int64_t i = 0; i < ids; ++i) {
      if (sets[3 + i] == token) return true;
    }
    return false;
  }

  // delta of a slot `back` tokens ago.
  double delta(int64_t slot, int64_t back, double temperature) const {
    const Trace& trace = traces[slot];
    const int64_t seen = int64_t(trace.tokens.size()) - back;
    if (seen < trace.oldest) return 0;
    int phase = 0;
    bool code = false;
    int64_t start = 0, last = -1;
    std::vector<int64_t> overlap(4, 0);  // tokens of a marker that ended may begin the next one: its border
    for (int64_t i = 1; i <= seen; ++i) {
      const int acting = code ? 3 : phase ? phase : 1;
      if (i > trace.prompt && int64_t(schedule(slot, 8)) >> acting & 1 && chosen(trace.tokens[i - 1])) {
        last = i - trace.prompt;
      }
      const auto ends = [&](int m) {
        const auto& p = patterns[m];
        if (i < int64_t(p.size())) return false;
        return std::equal(p.begin(), p.end(), trace.tokens.begin() + (i - int64_t(p.size())));
      };
      if (ends(0)) phase = 1, start = std::max<int64_t>(i - trace.prompt, 0);
      if (ends(1)) phase = 2;
      if (ends(2)) code = true;
      if (ends(3)) code = false;
    }
    const int64_t generated = seen - trace.prompt;
    const int now = generated < 0 ? 0 : code ? 3 : phase ? phase : 1;
    if (!(int64_t(schedule(slot, 8)) >> now & 1)) return 0;
    const int kind = int(schedule(slot, 7));
    const int64_t anchor = kind == 0 ? 0 : kind == 2 && last >= 0 ? last : start;
    const double t = double(std::max<int64_t>(generated, 0) - anchor) + (anchor == 0 ? schedule(slot, 4) : 0);
    if (t < schedule(slot, 5) || t >= schedule(slot, 6)) return 0;
    const double a = schedule(slot, 1), c = schedule(slot, 2), u = t + schedule(slot, 3) * c, pi = std::acos(-1.0);
    const double unit = schedule(slot, 9) ? temperature : 1;
    switch (int(schedule(slot, 0))) {
      case 1: {
        const double since_peak = std::fmod(std::fmod(u - c / 4, c) + c, c);
        return unit * (a * std::fabs(4 * since_peak / c - 2) - a);
      }
      case 2:
        return unit * a;
      case 3:
        return unit * a * std::cos(2 * pi * (u - c / 4) / c);
      case 4: {
        const int64_t first = int64_t(schedule(slot, 12)), n = int64_t(schedule(slot, 13));
        if (u <= knots[2 * first]) return unit * knots[2 * first + 1];
        for (int64_t i = first; i + 1 < first + n; ++i) {
          const double x0 = knots[2 * i], x1 = knots[2 * i + 2];
          if (u < x1) return unit * (knots[2 * i + 1] + (knots[2 * i + 3] - knots[2 * i + 1]) * (u - x0) / (x1 - x0));
        }
        return unit * knots[2 * (first + n - 1) + 1];
      }
      default:
        return 0;
    }
  }
};

FUZZ(apply_schedule) {
  ReflectionWorld w;
  for (int64_t step = 1 + below(6); step > 0; --step) {
    const int64_t rows = 1 + below(w.slots), width = below(8);
    const bool wide = chance(0.5);
    Array tokens = wide ? random_layout(DType::i64, {rows, width}, false) : Array(DType::i32, {rows, width});
    tokens.fill([&](int64_t) { return below(ReflectionWorld::kVocab); });
    Array slots(DType::i64, {rows}), first(DType::i64, {rows}), count(DType::i64, {rows}), prompt(DType::i64, {rows});
    Array drop(DType::i64, {rows});
    for (int64_t r = 0; r < rows; ++r) {
      const bool none = chance(0.1), anew = chance(0.3);
      slots.set(r, none ? -1 : double(r));
      first.set(r, below(width + 1)), count.set(r, below(width - int64_t(first[r]) + 1));
      prompt.set(r, anew ? double(below(int64_t(count[r]) + 2)) : -1);
      drop.set(r, anew ? 0 : below(int64_t(w.traces[r].tokens.size()) - w.traces[r].oldest + 1));
      if (none) continue;
      Trace& trace = w.traces[r];
      if (anew) trace = {{}, int64_t(prompt[r]), 0};
      if (!anew) trace.tokens.resize(trace.tokens.size() - int64_t(drop[r]));
      for (int64_t i = 0; i < int64_t(count[r]); ++i) {
        trace.tokens.push_back(int64_t(tokens[r * width + int64_t(first[r]) + i]));
      }
    }
    for (Trace& t : w.traces) t.oldest = std::max<int64_t>(t.oldest, int64_t(t.tokens.size()) - w.ring + 1);
    using Optional = warpup::OptionalView;
    warpup::reflection_state_update(w.views(), w.markers, tokens, slots, Optional(first.view()), Optional(count.view()),
                                    Optional(prompt.view()), Optional(drop.view()));
  }

  const DType dtype = floating();
  const int64_t rows = 1 + below(6), vocab = ReflectionWorld::kVocab - below(3);
  Array z = random_layout(dtype, {rows, vocab}, true), slots(DType::i64, {rows}), back(DType::i64, {rows});
  Array temperature(DType::f32, {rows}), delta(DType::f32, {rows});
  std::vector<double> before(rows * vocab), want(rows);
  z.fill([&](int64_t i) { return before[i] = normal(2); });
  for (int64_t i = 0; i < rows * vocab; ++i) before[i] = z[i];
  slots.fill([&](int64_t) { return below(w.slots + 1) - 1; });
  temperature.fill([](int64_t) { return 0.25 * (1 + below(8)); });
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t seen = slots[r] < 0 ? 0 : int64_t(w.traces[int64_t(slots[r])].tokens.size());
    back.set(r, below(seen + 2));
    want[r] = slots[r] < 0 ? 0 : w.delta(int64_t(slots[r]), int64_t(back[r]), temperature[r]);
  }
  warpup::apply_schedule(z, w.views(), slots, warpup::OptionalView(back.view()),
                         warpup::OptionalView(temperature.view()), 1, delta);
  expect_near(
      delta, [&](int64_t r) { return want[r]; }, [&](int64_t r) { return 1e-6 * (1 + std::fabs(want[r])) * 50; },
      "apply_schedule: delta");
  expect_near(
      z, [&](int64_t i) { return before[i] + (w.chosen(i % vocab) ? delta[i / vocab] : 0); },
      [&](int64_t i) { return epsilon_of(dtype) * (std::fabs(before[i]) + std::fabs(delta[i / vocab])); },
      "apply_schedule: logits");
}

// sample_step against sorting: tokens kept, masses, and that the token is one of the kept.
FUZZ(sample_step) {
  ReflectionWorld w;
  const DType dtype = floating(), acc = dtype == DType::f64 ? DType::f64 : DType::f32;
  const int64_t rows = 1 + below(4), vocab = chance(0.1) ? 2040 + below(20) : 1 + below(60);
  const double scale = std::array{0.0, 1.0, 20.0}[below(3)], impossible = chance(0.7) ? 0 : chance(0.2) ? 1 : 0.4;
  Array z = random_layout(dtype, {rows, vocab}, true), tuned = random_layout(dtype, {rows, vocab}, true);
  Array base = random_layout(dtype, {rows, vocab}, true), seen(DType::u8, {w.slots, vocab});
  Array sampling(DType::f64, {w.slots, warpup::kSampling}), slots(DType::i64, {rows}), back(DType::i64, {rows});
  z.fill([&](int64_t) { return chance(impossible) ? -kInf : normal(scale); });
  tuned.fill([](int64_t) { return normal(); }), base.fill([](int64_t) { return normal(); });
  seen.fill([](int64_t) { return below(4); });
  slots.fill([&](int64_t) { return below(w.slots + 1) - 1; }), back.fill([](int64_t) { return 0; });
  const bool combined = chance(0.4), penalized = chance(0.4), counted = chance(0.3), biased = chance(0.3);
  const bool more = chance(0.3);  // filters whose sets the Python tests hold against transformers'
  Array counts(DType::i32, {w.slots, vocab}), bias(DType::f32, {w.slots, vocab});
  counts.fill([](int64_t) { return below(4); }), bias.fill([](int64_t) { return chance(0.1) ? -kInf : normal(); });
  const Form form;
  sampling.fill([&](int64_t i) -> double {
    switch (i % warpup::kSampling) {
      case 0:
      case 1:
      case 2:
        return chance(0.1) ? 0 : 0.25 * (1 + below(8));
      case 3:
        return chance(0.5) ? 0 : double(below(chance(0.5) ? 5 : vocab + 3));
      case 4:
        return chance(0.5) ? 1 : below(101) / 100.0;
      case 5:
        return chance(0.7) ? 0 : below(101) / 100.0;
      case 6:
        return chance(0.5) || !penalized ? 1 : 1 + below(8) / 8.0;
      case 7:
        return chance(0.5) || !penalized ? 0 : normal();
      case 8:
        return double(below(int64_t(1) << 53));
      case 9:
        return combined ? 0.5 : 1;
      case 10:
        return counted ? 0.25 * below(5) : 0;
      default:
        return more && chance(0.5) ? 0.1 * (1 + below(8)) : 0;
    }
  });
  using Optional = warpup::OptionalView;
  const auto given = [](bool wanted, const Array& a) { return wanted ? Optional(a.view()) : std::nullopt; };
  Array token(DType::i64, {rows}), raw(acc, {rows}), logp(acc, {rows}), kept(acc, {rows}), p_r(acc, {rows});
  Array delta(DType::f32, {rows}), temperature(DType::f32, {rows}), cut(acc, {rows}), most(acc, {rows});
  const auto call = [&] {
    warpup::sample_step(z, given(combined, tuned), given(combined, base), w.views(), sampling, slots,
                        Optional(back.view()), given(penalized, seen), given(counted, counts), given(biased, bias),
                        below(3), form.options, std::nullopt,
                        {token, raw, logp, kept, p_r, delta, temperature, cut, most});
  };
  if (!penalized && slots[0] >= 0 && chance(0.1)) {
    const int64_t repetition = int64_t(slots[0]) * warpup::kSampling + 6;
    sampling.set(repetition, 1.5);
    expect_rejected(call, "needs seen");
    sampling.set(repetition, 1);
  }
  call();

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t slot = int64_t(slots[r]);
    if (slot < 0) {
      expect(token[r] == -1 && logp[r] == 0, "sample_step: a row of nobody");
      continue;
    }
    const auto s = [&](int column) { return sampling[slot * warpup::kSampling + column]; };
    const double t = temperature[r];
    expect(t == s(0) && std::fabs(delta[r] - w.delta(slot, 0, t)) < 1e-4, "sample_step: schedule");
    std::vector<double> x(vocab);
    double raw_max = -kInf, max = -kInf;
    for (int64_t j = 0; j < vocab; ++j) {
      const int64_t i = r * vocab + j;
      x[j] = form(z[i]) + (combined ? s(9) * (tuned[i] - base[i]) : 0);
      raw_max = std::max(raw_max, x[j]);
    }
    if (raw_max == -kInf) {
      expect(token[r] == 0 && raw[r] == 0 && logp[r] == 0, "sample_step: an impossible row");
      continue;
    }
    const int64_t y = int64_t(token[r]);
    double raw_sum = 0;
    for (double v : x) raw_sum += std::exp(v - raw_max);
    const double want_raw = x[y] - raw_max - std::log(raw_sum);
    for (int64_t j = 0; j < vocab; ++j) {
      if (w.chosen(j)) x[j] += delta[r];
      if (biased) x[j] += bias[slot * vocab + j];
      const int seen_as = penalized ? int(seen[slot * vocab + j]) : 0;
      if (seen_as) x[j] = x[j] > 0 ? x[j] / s(6) : x[j] * s(6);
      if (seen_as & 2) x[j] -= s(7);
      if (counted) x[j] -= s(10) * counts[slot * vocab + j];
      max = std::max(max, x[j]);
    }
    if (max == -kInf) {
      expect(token[r] == 0 && logp[r] == 0, "sample_step: a bias that rules all out");
      continue;
    }
    const double tolerance = 64 * epsilon_of(acc) * (1 + std::fabs(max - x[y]) + std::fabs(raw_max) + std::fabs(max)) /
                             std::min(t > 0 ? t : 1, 1.0);
    expect(std::fabs(raw[r] - want_raw) <= tolerance, "sample_step: logp_raw");
    if (t == 0) {
      expect(x[y] >= max - tolerance && logp[r] == 0 && kept[r] == 1, "sample_step: greedy");
      continue;
    }
    if (more) {
      double inner = 0, outer = 0, of_all = 0;  // the edges are values of the row, in another precision
      for (double v : x) {
        const double e = std::exp((v - max) / t);
        of_all += e;
        inner += v > cut[r] + tolerance && v < most[r] - tolerance ? e : 0;
        outer += v >= cut[r] - tolerance && v <= most[r] + tolerance ? e : 0;
      }
      expect(x[y] >= cut[r] - tolerance && x[y] <= most[r] + tolerance, "sample_step: the token is among what is left");
      const double slack = 16 * tolerance;
      expect(kept[r] >= inner / of_all - slack && kept[r] <= outer / of_all + slack,
             "sample_step: the mass that is left");
      continue;
    }
    std::vector<double> sorted = x;
    std::sort(sorted.rbegin(), sorted.rend());
    double least = std::numeric_limits<double>::lowest();
    if (s(3) > 0 && s(3) < vocab) least = std::max(least, sorted[int64_t(s(3)) - 1]);
    const auto mass_from = [&](double from) {
      double mass = 0;
      for (double v : x) mass += v >= from ? std::exp((v - max) / t) : 0;
      return mass;
    };
    bool close = false;                    // to a boundary, where rounding decides
    for (int64_t i = 1; i < vocab; ++i) {  // what a cap holds may be equal there and not here
      const double apart = sorted[i - 1] - sorted[i];
      close = close || (form.options.softcap != 0 && apart > 0 && apart < tolerance);
    }
    const double all = mass_from(std::numeric_limits<double>::lowest()), before = mass_from(least);
    if (s(4) < 1) {
      double above = 0;
      for (int64_t i = 0; i < vocab && sorted[i] >= least; ++i) {
        close = close || std::fabs(above / before - s(4)) < 1e-5;
        if (i > 0 && above >= s(4) * before && sorted[i] < sorted[i - 1]) {
          least = std::max(least, sorted[i - 1]);
          break;
        }
        above += std::exp((sorted[i] - max) / t);
      }
    }
    if (s(5) > 0) {
      const double relative = max + t * std::log(s(5));
      for (double v : x) close = close || std::fabs(v - relative) < 1e-4;
      least = std::max(least, relative);
    }
    const bool filtered = (s(3) > 0 && s(3) < vocab) || s(4) < 1 || s(5) > 0;
    expect(filtered ? cut[r] <= x[y] + tolerance : cut[r] == -kInf, "sample_step: least and the token");
    if (close && s(5) < 1) continue;
    double smallest = kInf;
    for (double v : x) smallest = v >= least && v > -kInf ? std::min(smallest, v) : smallest;
    expect(!filtered || std::fabs(cut[r] - smallest) <= tolerance, "sample_step: least");
    const double mass = mass_from(least);
    expect(x[y] >= least - tolerance, "sample_step: the token was cut");
    expect(std::fabs(kept[r] - mass / all) <= 16 * tolerance, "sample_step: kept");
    expect(std::fabs(logp[r] - ((x[y] - max) / t - std::log(mass))) <= 16 * tolerance, "sample_step: logp");
  }
}

}  // namespace
}  // namespace fuzz
