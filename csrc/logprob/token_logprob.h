// token_logprob: log-probability of one token per row, and the row's entropy, straight from logits.
//
//   m = max z,  x = (z - m) / T,  l = log sum exp x                     one pass over the row (online softmax)
//   logp = x[y] - l              entropy = l - sum p x                  p = exp(x - l)
//   dz[j] = ( g ([j == y] - p[j]) - h p[j] (log p[j] + entropy) ) / T   one pass; g, h: gradients of logp, entropy
//
// Layout   logits [rows, vocab], unit stride along vocab, rows in up to two strided levels; targets, logp, entropy,
//          temperature and gradients one value a row; stats [rows, 2] = (m, l), what the backward needs of the
//          forward; l = inf marks a row that counts for nothing.
// Numerics products and sums in float32 (float64 for float64), results in that type. -inf logits have p = 0.
//          m is subtracted before the division by T: a rounded z / T of 1e6 would be off by .03, and differently so
//          where the compiler fuses the product into the subtraction.
//          A row whose target is `ignore_index`, or with no logit above -inf, gives 0, 0 and a zero gradient.
//          A target outside [0, vocab) gives NaN on CUDA (no host sync); the binding rejects it on the CPU.
// Bytes    forward: rows * vocab * sizeof(T) read.  backward: the same read, and as much written.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct TokenLogprobArgs {
  using Acc = acc_t<T>;
  int64_t vocab;
  const T* logits;
  Rows logits_rows;
  const int64_t* targets;
  Rows targets_rows;
  const float* temperature;  // one a row, or null: then `temperature_scalar`
  Rows temperature_rows;
  double temperature_scalar;
  int64_t ignore_index;
  Acc* logp;     // contiguous
  Acc* entropy;  // contiguous, or null: not computed
  Acc* stats;    // contiguous [rows, 2]
};

template <class T>
struct TokenLogprobBackwardArgs {
  using Acc = acc_t<T>;
  TokenLogprobArgs<T> forward;  // logp unused; entropy is read where grad_entropy is given
  const Acc* grad_logp;         // or null: zero
  Rows grad_logp_rows;
  const Acc* grad_entropy;  // or null: zero
  Rows grad_entropy_rows;
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
