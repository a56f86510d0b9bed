// apply_schedule_ and reflection_state_update_: a schedule on the logits of reflection tokens, and the tables on the
// device that follow each request token by token, so that the schedule knows how far the request is.
//
//   token     markers (think, its end, code, its end; several tokens long) advance by Knuth-Morris-Pratt; phase,
//             start of the thought and last reflection token follow
//   t = generated - anchor (+ offset where the anchor is the request's own start),  u = t + shift C
//   triangle  delta = A |4 ((u - C/4) mod C) / C - 2| - A        0 -> A at C/4 -> 0 -> -A at 3C/4 -> 0   (CyclicReflex)
//   cosine    delta = A cos(2 pi (u - C/4) / C)                  the same turning points
//   constant  delta = A                                          table: linear between knots (u, delta), held beyond
//   z[j] += delta for j in R, where the phase is one of the schedule's and begin <= t < end;  unit nat: delta T
//
// Why      the released code searches all tokens of each request in Python at each step; here a step costs a few
// hundred
//          bytes a request, and nothing waits for the device.
// State    [slots, 1 + ring, kFields] int32: row 0 = (n tokens seen, prompt tokens, lost, oldest n kept), then the
//          last `ring` states, that after n tokens in row 1 + n % ring. So a rejected draft of up to ring - 1 tokens is
//          undone by a decrement, and a row of logits behind a draft finds the state `back` tokens ago.
// Layout   tokens [rows, width] strided, of row r the `count` from `first` on; prompt[r] >= 0 begins the slot anew with
//          so many prompt tokens, -1 continues it; rollback[r] tokens are dropped first; a row of slot -1 does nothing.
//          A slot comes up once a call. schedules [slots] Schedule; sets: sorted distinct ids, one list behind another,
//          knots likewise. markers [4, 2, kMarker + 1] int32: ids (-1 behind the last), then the longest border of
//          each prefix.
// Phases   the prompt's last marker counts; a generation without one thinks until its end marker.
// Numerics delta in double, handed out and added in float32. A delta of 0 writes nothing; ids outside the vocabulary
//          neither. A rollback past the ring loses the slot: off until begun anew (the check rejects it on the CPU).
// Bytes    a few hundred a row and 2 |R| logits, never rows * vocab.
#pragma once

#include "core/types.h"

namespace warpup {

// One request's schedule; a row of a float64 tensor, so that a request's can be overwritten alone.
struct Schedule {
  double wave;  // Wave
  double amplitude, period, shift, offset, begin, end;
  double anchor;  // Anchor
  double phases;  // the sum of 1 << Phase where it acts
  double unit;    // 0: logit, 1: nat
  double set, set_size, knots, knots_size;
  double spare[2];
};
inline constexpr int kSchedule = 16;
static_assert(sizeof(Schedule) == kSchedule * sizeof(double));

enum Wave { kOff, kTriangle, kConstant, kCosine, kTable };
enum Anchor { kGeneration, kThink, kReflection };
enum Phase { kPrompt, kThinking, kAnswer, kCode };

inline constexpr int kMarkers = 4, kMarker = 8;  // think, its end, code, its end; tokens of one at most

struct DecodeState {                     // of a request, after some token
  int32_t phase, code;                   // Phase without kCode; whether inside of code
  int32_t think_start, last_reflection;  // generated tokens before it; -1: none yet
  int32_t reflections;                   // tokens of the set so far
  int32_t matched[kMarkers];             // tokens of each marker that the last tokens match
  int32_t spare;
};
inline constexpr int kFields = 10;
static_assert(sizeof(DecodeState) == kFields * sizeof(int32_t));

struct Tables {
  int64_t slots, ring;
  int32_t* state;
  const Schedule* schedules;
  const int32_t* sets;
  const double* knots;  // pairs
};

template <class T>  // of the token ids: int64_t, int32_t
struct ReflectionStateUpdateArgs {
  Tables tables;
  const int32_t* markers;
  int64_t rows, width;
  const T* tokens;
  int64_t stride, step;                              // between rows, between tokens
  const int64_t* slots;                              // [rows]
  const int64_t *first, *count, *prompt, *rollback;  // [rows], or null: 0, width, -1, 0
};

template <class T>
struct ApplyScheduleArgs {
  Tables tables;
  int64_t rows, vocab, stride;
  T* logits;
  const int64_t *slots, *back;  // [rows]; back or null: 0
  const float* temperature;     // [rows], or null: temperature_scalar
  double temperature_scalar;
  float* delta;  // [rows]
};

template <class T>
void reflection_state_update_cpu(const ReflectionStateUpdateArgs<T>& args);
template <class T>
void reflection_state_update_cuda(const ReflectionStateUpdateArgs<T>& args, void* stream);

template <class T>
void apply_schedule_cpu(const ApplyScheduleArgs<T>& args);
template <class T>
void apply_schedule_cuda(const ApplyScheduleArgs<T>& args, void* stream);

}  // namespace warpup
