// sample_step: from raw logits to the next token of each request in one operator.
//
//   z0 = form(logit) + beta (tuned - base)                           core/logit_form.h; emulated fine-tuning, where the
//                                                                    two are given
//   z1 = z0 + delta [j in R] + bias[j]                               the request's schedule (apply_schedule.h) and bias
//   z  = z1 / rho or z1 rho (z1 > 0 or not) where seen, - frequency counts[j], - presence where generated
//   x  = (z - max z) / T, T by phase;  S = sum e^x                   T = 0: the argmax, and nothing below
//   kept, each of what those before it left, p renormalized and H its entropy:
//     top_h    of the 100 largest, those whose -p log p add up to top_h H at most
//     top_k    z >= the k-th largest                                 ties stay together, in all of them
//     top_p    mass above z < top_p
//     min_p    p >= min_p max p
//     typical  nearest to the mean of log p, up to a mass of typical
//     epsilon  p >= epsilon
//     eta      p >= min(eta, sqrt(eta) e^-H)                         the likeliest token stays, whatever they say
//   token = argmax over kept of e^x / E      E exponential by (seed, position, stream, token): a draw of softmax
//   logp_raw = log softmax(z0)[token]        logp = x - log(S of kept)
//   kept = S of kept / S                     p_r = sum over R of softmax(z0 / T)
//   least, most = the least and largest z that were kept: what the filters left is { j : least <= z[j] <= most }
//
// Why      torch ops sort the vocabulary of each row and read its logits some ten times, and what they draw depends on
//          the rest of the batch. Here a draw is a function of the request alone, and the row is read from memory once.
// Method   no filter needs a sort: each is a threshold of z, or of the distance from the mean, at which a count, a mass
//          or a sum of -p log p crosses a bound. It is found by halving an interval of values, a pass each, until at
//          most one element is between its ends; both kernels take the same steps.
// Layout   logits, tuned, base [rows, vocab], unit stride along vocab; state, schedules, sets, knots, slots, back as in
//          apply_schedule.h; sampling [slots] Sampling; seen [slots, vocab] bytes, bit 0: in the prompt, bit 1:
//          generated; counts [slots, vocab] int32, how often; bias [slots, vocab] float32; outputs one value a row;
//          scratch [rows, vocab] (CUDA only). A row of slot -1 gives token -1 and zeros.
// Numerics exp and products in float32 (float64 for float64), sums of masses in double on the CPU and the GPU alike.
//          -inf is never kept; a row without a finite logit gives token 0 and zeros; NaN gives token 0 and NaN.
//          T = 0: the lowest index of equals, logp = 0, kept = 1, p_r whether the token is in R: a point mass.
//          least is -inf where no filter is on, the largest z where T = 0; most is inf but where typical is on.
// Bytes    rows * vocab * sizeof(T) read once; the row stays in cache (CPU: its own copy; GPU: scratch) for two more
//          passes, and some 15 to find a threshold, on the GPU over those alone that a first bound leaves.
#pragma once

#include "core/logit_form.h"
#include "reflection/apply_schedule.h"

namespace warpup {

// How one request samples; a row of a float64 tensor.
struct Sampling {
  double think, answer, code;           // temperatures by phase
  double top_k, top_p, min_p;           // 0, 1, 0: off
  double repetition, presence;          // 1, 0: off
  double seed;                          // an integer in [0, 2^53)
  double beta;                          // of the emulated fine-tuning
  double frequency;                     // 0: off
  double top_h, typical, epsilon, eta;  // 0: off; typical also 1
  double spare;
};
inline constexpr int kSampling = 16;
static_assert(sizeof(Sampling) == kSampling * sizeof(double));

template <class T>
struct SampleStepArgs {
  using Acc = acc_t<T>;
  Tables tables;
  const Sampling* sampling;
  int64_t rows, vocab;
  const T *logits, *tuned, *base;  // the last two or null
  int64_t stride, tuned_stride, base_stride;
  LogitForm<Acc> form;          // of the logits
  const int64_t *slots, *back;  // back or null
  const uint8_t* seen;          // or null, as the two below
  const int32_t* counts;
  const float* bias;
  int64_t stream;
  Acc* scratch;  // null on the CPU
  int64_t* token;
  Acc *logp_raw, *logp, *kept, *p_r, *least, *most;
  float *delta, *temperature;
};

template <class T>
void sample_step_cpu(const SampleStepArgs<T>& args);
template <class T>
void sample_step_cuda(const SampleStepArgs<T>& args, void* stream);

}  // namespace warpup
