// token_logprob: log-probability of one token per row, and on request what else one pass over the row gives: its
// entropy, log-sum-exp and sum of squared probabilities. Straight from logits, whole or a slice of the vocabulary at a
// time, under a plain softmax or under the schedule that a sampler added to it.
//
//   z' = z + delta [boosted], -inf where not kept     the replayed sampler; z' = z without one
//   m = max z',  x = (z' - m) / T,  l = log sum exp x                   one pass over the row (online softmax)
//   p = exp(x - l)    logp = x[y] - l    entropy = l - sum p x    lse = m / T + l    sum_p2 = sum p^2
//   dz[j] = ( g [j == y] + p[j] (q - g - h (log p[j] + entropy) + 2 s (p[j] - sum_p2)) ) / T         one pass
//           g, h, q, s: gradients of logp, entropy, lse, sum_p2
//
// Slices   logits may be the columns [vocab_begin, vocab_begin + vocab) of vocab_total: the forward, called on all
// slices
//          in order, carries what it has seen in `state` and writes its outputs with the last one; the backward takes
//          each slice by itself. So logits = hidden @ weight.T never exist as a whole.
// Layout   logits [rows, vocab], unit stride along vocab, rows in up to two strided levels, as has kept (bytes, 0: left
//          out); boosted [vocab] bytes; targets, temperature, delta and gradients one value a row; outputs contiguous,
//          one value a row; stats [rows, 2] = (m, l), what the backward needs of the forward; l = inf marks a row that
//          counts for nothing; state [rows, 5] = (m, sum e^x, sum e^x x, sum e^2x, z'[y]).
// Numerics products and sums in float32 (float64 for float64), results in that type. -inf logits have p = 0.
//          m is subtracted before the division by T: a rounded z / T of 1e6 would be off by .03, and differently so
//          where the compiler fuses the product into the subtraction.
//          A row whose target is `ignore_index`, or with no logit above -inf, gives zeros and a zero gradient.
//          A target outside [0, vocab_total) gives NaN on CUDA (no host sync); the binding rejects it on the CPU.
// Bytes    forward: rows * vocab * sizeof(T) read.  backward: the same read, and as much written.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct TokenLogprobArgs {
  using Acc = acc_t<T>;
  int64_t vocab, vocab_begin, vocab_total;
  const T* logits;
  Rows logits_rows;
  const int64_t* targets;
  Rows targets_rows;
  const float* temperature;  // one a row, or null: then `temperature_scalar`
  Rows temperature_rows;
  double temperature_scalar;
  int64_t ignore_index;
  const uint8_t* boosted;  // or null: delta is added to none
  const float* delta;      // one a row, or null: then `delta_scalar`
  Rows delta_rows;
  double delta_scalar;
  const uint8_t* kept;  // or null: all are
  Rows kept_rows;
  Acc* state;                          // or null, where the slice is the whole vocabulary
  Acc *logp, *entropy, *lse, *sum_p2;  // the last three may be null: not computed
  Acc* stats;
};

template <class T>
struct TokenLogprobBackwardArgs {
  using Acc = acc_t<T>;
  TokenLogprobArgs<T> forward;  // logp, lse, state unused; entropy and sum_p2 are read where their gradient is given
  const Acc *grad_logp, *grad_entropy, *grad_lse, *grad_sum_p2;  // or null: zero
  Rows grad_logp_rows, grad_entropy_rows, grad_lse_rows, grad_sum_p2_rows;
  T* grad_logits;  // may be `forward.logits` itself
  Rows grad_logits_rows;
};

template <class T>
void token_logprob_cpu(const TokenLogprobArgs<T>& args);
template <class T>
void token_logprob_cuda(const TokenLogprobArgs<T>& args, void* stream);

template <class T>
void token_logprob_backward_cpu(const TokenLogprobBackwardArgs<T>& args);
template <class T>
void token_logprob_backward_cuda(const TokenLogprobBackwardArgs<T>& args, void* stream);

}  // namespace warpup
