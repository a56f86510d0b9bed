// The automaton that follows a request, and the waves: one row's work, the same in both kernels.
#pragma once

#include <cmath>

#include "reflection/apply_schedule.h"

namespace warpup {

struct Slot {
  int32_t* header;  // tokens seen, prompt tokens, lost, the fewest tokens whose state is still there
  int64_t ring;

  WARPUP_HD static Slot of(const Tables& t, int64_t slot) { return {t.state + slot * (1 + t.ring) * kFields, t.ring}; }
  WARPUP_HD DecodeState* at(int64_t tokens) const {
    return reinterpret_cast<DecodeState*>(header + (1 + tokens % ring) * kFields);
  }
};

// How far a request is where a row of logits predicts its next token.
struct Progress {
  int32_t phase;  // -1: not known any more
  int64_t generated;
  DecodeState state;
};

WARPUP_HD Progress progress_of(const Tables& tables, int64_t slot, int64_t back) {
  const Slot s = Slot::of(tables, slot);
  const int64_t seen = int64_t(s.header[0]) - back, generated = seen - s.header[1];
  if (s.header[2] || seen < s.header[3] || back < 0) return {-1, 0, {}};
  const DecodeState d = *s.at(seen);
  const int phase = generated < 0 ? kPrompt : d.code ? kCode : d.phase == kPrompt ? kThinking : d.phase;
  return {phase, generated < 0 ? 0 : generated, d};
}

WARPUP_HD bool contains(const int32_t* set, int64_t size, int64_t id) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    set[middle] < id ? low = middle + 1 : high = middle;
  }
  return low < size && set[low] == id;
}

// Takes one more token for marker m by Knuth-Morris-Pratt: `matched` tokens of the marker are found so far, and where
// the next one does not fit, its longest border still does. Returns whether the marker ends here.
WARPUP_HD bool advance(const int32_t* markers, int m, int64_t token, int32_t* matched) {
  const int32_t* ids = markers + m * 2 * (kMarker + 1);
  const int32_t* border = ids + kMarker + 1;
  if (ids[0] < 0) return false;
  int32_t k = *matched;
  while (k > 0 && ids[k] != token) k = border[k];
  if (ids[k] == token) ++k;
  const bool complete = ids[k] < 0;
  *matched = complete ? border[k] : k;
  return complete;
}

// The state after `token`, the generated-th of the answer (0: still the prompt, or its last).
WARPUP_HD DecodeState after(DecodeState d, int64_t token, int64_t generated, const int32_t* markers,
                            const Schedule& schedule, const int32_t* sets) {
  const bool in_prompt = generated <= 0;
  const int phase = d.code ? kCode : d.phase == kPrompt ? kThinking : d.phase;
  if (!in_prompt && int64_t(schedule.phases) >> phase & 1 &&
      contains(sets + int64_t(schedule.set), int64_t(schedule.set_size), token)) {
    d.last_reflection = static_cast<int32_t>(generated);
    ++d.reflections;
  }
  bool complete[kMarkers];
  for (int m = 0; m < kMarkers; ++m) complete[m] = advance(markers, m, token, &d.matched[m]);
  if (complete[0]) d.phase = kThinking, d.think_start = in_prompt ? 0 : static_cast<int32_t>(generated);
  if (complete[1]) d.phase = kAnswer;
  if (complete[2]) d.code = 1;
  if (complete[3]) d.code = 0;
  return d;
}

template <class T>
WARPUP_HD void update_row(const ReflectionStateUpdateArgs<T>& args, int64_t r) {
  const int64_t index = args.slots[r];
  if (index < 0 || index >= args.tables.slots) return;
  const Slot slot = Slot::of(args.tables, index);
  const Schedule& schedule = args.tables.schedules[index];
  const int64_t prompt = args.prompt ? args.prompt[r] : -1, drop = args.rollback ? args.rollback[r] : 0;
  // Begin anew, or take tokens back.
  if (prompt >= 0) {
    slot.header[0] = 0, slot.header[1] = static_cast<int32_t>(prompt), slot.header[2] = slot.header[3] = 0;
    *slot.at(0) = {kPrompt, 0, 0, -1, 0, {}, 0};
  } else if (drop > 0) {
    if (drop > slot.header[0] - slot.header[3]) slot.header[2] = 1;
    if (!slot.header[2]) slot.header[0] -= static_cast<int32_t>(drop);
  }
  if (slot.header[2]) return;
  // Take the row's tokens, keeping the last `ring` states.
  const int64_t skipped = args.first ? args.first[r] : 0, count = args.count ? args.count[r] : args.width - skipped;
  const T* tokens = args.tokens + r * args.stride + skipped * args.step;
  const int64_t begin = slot.header[0];
  DecodeState d = *slot.at(begin);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t seen = begin + i + 1;
    d = after(d, tokens[i * args.step], seen - slot.header[1], args.markers, schedule, args.tables.sets);
    if (count - i <= slot.ring) *slot.at(seen) = d;
  }
  slot.header[0] = static_cast<int32_t>(begin + count);
  const int64_t oldest = begin + count - slot.ring + 1;
  if (oldest > slot.header[3]) slot.header[3] = static_cast<int32_t>(oldest);
}

WARPUP_HD double between_knots(const double* knots, int64_t size, double u) {
  if (size == 0) return 0;
  if (!(u > knots[0])) return knots[1];
  int64_t low = 0, high = size;  // knots[low] <= u
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    knots[2 * middle] <= u ? low = middle : high = middle;
  }
  const double* k = knots + 2 * low;
  return low + 1 == size ? k[1] : k[1] + (k[3] - k[1]) * (u - k[0]) / (k[2] - k[0]);
}

// delta of the wave at t tokens, windows and phases aside.
WARPUP_HD double wave(const Schedule& s, const double* knots, double t) {
  const double c = s.period, u = t + s.shift * c, since_peak = u - c / 4;
  switch (static_cast<int>(s.wave)) {
    case kTriangle:
      return s.amplitude * fabs(4 * (since_peak - floor(since_peak / c) * c) / c - 2) - s.amplitude;
    case kCosine:
      return s.amplitude * cos(6.283185307179586 * (since_peak / c - floor(since_peak / c)));
    case kConstant:
      return s.amplitude;
    case kTable:
      return between_knots(knots + 2 * int64_t(s.knots), int64_t(s.knots_size), u);
    default:
      return 0;
  }
}

// What the row's schedule adds now; 0 where it is off.
WARPUP_HD float delta_at(const Tables& tables, int64_t slot, const Progress& at, double temperature) {
  const Schedule& s = tables.schedules[slot];
  if (int(s.wave) == kOff || at.phase < 0 || !(int64_t(s.phases) >> at.phase & 1)) return 0;
  const DecodeState& d = at.state;
  const int kind = static_cast<int>(s.anchor);
  const bool reflected = kind == kReflection && d.last_reflection >= 0;
  const int64_t anchor = kind == kGeneration ? 0 : reflected ? d.last_reflection : d.think_start;
  const double t = static_cast<double>(at.generated - anchor) + (anchor == 0 ? s.offset : 0);
  if (t < s.begin || t >= s.end) return 0;
  return static_cast<float>(wave(s, tables.knots, t) * (s.unit != 0 ? temperature : 1));
}

}  // namespace warpup
