// token_logprob and replay_logprob: log-probability of one token per row, or of several, and on request what else one
// pass over the row gives: its entropy, log-sum-exp and sum of squared probabilities.
//
// Why: a policy loss needs these of every token, and a vocabulary of 100,000 makes the logits the largest array of a
// training step. One read of them, without a softmax written out, is all that it takes; the vocabulary may even come in
// slices, so that the logits never exist as a whole (linear_logprob). Under the sampler that drew the tokens: a
// temperature, a delta that it added to the logits of a token_set, a kept_mask that its filter left.
//
//   z = form(logit), a model's scale and soft cap             core/logit_form.h
//   z' = z + delta [token_set], -inf where not kept_mask     z' = z without a sampler's additions
//   m = max z',  x = (z' - m) / T,  l = log sum exp x        one pass over the row (online softmax)
//   p = exp(x - l)    logp = x[y] - l    entropy = l - sum p x    lse = m / T + l    sum_p2 = sum p^2
//   dz[j] = ( g [j == y] + p[j] (q - g - h (log p[j] + entropy) + 2 s (p[j] - sum_p2)) ) / T     one pass
//           g, h, q, s: gradients of logp, entropy, lse, sum_p2; dlogit = dz times the form's slope
//
// Of K targets a row each has its logp and its g: the two terms in g are then sums over the targets.
//
// Slices   logits may be the columns [vocab_begin, vocab_begin + vocab) of vocab_total. The forward, called on all
//          slices in order, carries what it has seen in `state` and writes its outputs with the last one; the backward
//          takes each slice by itself.
// Layout   logits [rows, vocab], unit stride along vocab, rows in up to two strided levels, as has kept_mask (bytes,
//          0: left out); token_set [vocab] bytes; targets [rows] or [rows, K], and logp like them; outputs contiguous,
//          the others with one value a row; stats [rows, 2] = (m, l), what the backward needs of the forward; l = inf
//          marks a row that counts for nothing; state [rows, 4 + K] = (m, sum e^x, sum e^x x, sum e^2x, z'[y] ...).
// Numerics products and sums in float32 (float64 for float64), results in that type. -inf logits have p = 0.
//          m is subtracted before the division by T: a rounded z / T of 1e6 would be off by .03, and differently so
//          where the compiler fuses the product into the subtraction.
//          A target that is `ignore_index` gives 0 and no gradient; a row all of whose targets are, or with no logit
//          above -inf, gives zeros and a zero gradient. A target outside [0, vocab_total) makes its row NaN on CUDA (no
//          host sync); the check rejects it on the CPU.
// Bytes    forward: rows * vocab * sizeof(T) read.  backward: the same read, and as much written.
#pragma once

#include "core/logit_form.h"
#include "core/per_row.h"

namespace warpup {

inline constexpr int kLogprobStats = 2, kLogprobState = 4;  // the state's numbers beside those of the targets

template <class T>
struct TokenLogprobArgs {
  using Acc = acc_t<T>;
  int64_t vocab, vocab_begin, vocab_total;
  const T* logits;
  Rows logits_rows;
  PerRowList<int64_t> targets;
  int64_t ignore_index;
  LogitForm<Acc> form;
  PerRowOrScalar temperature;
  const uint8_t* token_set;  // null: delta is added to no token
  PerRowOrScalar delta;
  const uint8_t* kept_mask;  // null: all are kept
  Rows kept_rows;
  Acc* state;                          // null where the slice is the whole vocabulary
  Acc *logp, *entropy, *lse, *sum_p2;  // the last three are null where they are not asked for
  Acc* stats;

  bool as_given() const { return form.plain() && !token_set && !kept_mask; }  // z' are the logits
};

template <class T>
struct TokenLogprobBackwardArgs {
  using Acc = acc_t<T>;
  TokenLogprobArgs<T> forward;  // logp, lse, state unused; entropy and sum_p2 are read where their gradient is given
  PerRowList<Acc> grad_logp;    // not given: zero
  PerRow<Acc> grad_entropy, grad_lse, grad_sum_p2;  // not given: zero
  T* grad_logits;                                   // may be `forward.logits` itself
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
