// policy_loss: a token-level policy-gradient loss with its metrics, forward and backward fused.
//
//   l[b, t]   = policy_term(logp - old_logp, A) + kl_term(ref - logp)            policy_loss_math.h
//   loss      = sum_b w[b] sum_t mask l       w[b] = 1 / D, or 1 / (D n[b]) with n[b] = sum_t mask  (per_sequence)
//   D         = the number of tokens, of non-empty sequences, of elements (batch * length), or a given number
//   dlogp     = grad_loss w[b] mask dl/dlogp
//
// Layout   logp, old_logp, ref_logp, mask [batch, length] with unit stride along length; advantages [batch, length] or
//          one a row (advantage_stride 0); all of one floating type, mask uint8.
//          partials [batch * pieces, kPolicySums]: scratch, pieces = ceil(length / kPolicyPiece).
//          row_weight [batch]: w, for the backward. metrics [kPolicyMetrics], see below.
// Numerics float32 (float64 for float64); a piece's sums in that type, all further sums in double, in a fixed order.
//          Masked before exp: what stands under mask = 0, NaN included, changes nothing. D = 0 gives loss 0.
// Bytes    forward: 3 (4 with ref_logp) * sizeof(T) + 1 an element; backward: the same, and sizeof(T) written.
#pragma once

#include "core/types.h"
#include "logprob/policy_loss_math.h"

namespace warpup {

inline constexpr int64_t kPolicyPiece = 8192;

// What is summed over the tokens of a piece; ratio_max is a maximum.
template <class Acc>
struct PolicySums {
  Acc loss, tokens, clipped_low, clipped_high, ratio, ratio_max, approx_kl, ref_kl;
};
inline constexpr int kPolicySums = 8;

// metrics: tokens, clip fraction low, high, ratio mean, ratio max, approx_kl = mean(r - 1 - log r), mean weighted ref
// KL
inline constexpr int kPolicyMetrics = 7;

enum class Denominator : int { tokens, sequences, elements, given };

template <class T>
struct PolicyLossArgs {
  int64_t batch, length;
  const T *logp, *old_logp, *ref_logp, *advantages;  // ref_logp: null without a KL term
  const uint8_t* mask;
  int64_t logp_stride, old_logp_stride, ref_logp_stride, mask_stride;  // from row to row
  int64_t advantages_stride, advantage_step;                           // step: 1, or 0 for one value a row
  PolicyKind kind;
  PolicyParams params;
  bool per_sequence;
  Denominator denominator;
  double denominator_value;       // given, where the pointer is null
  const float* denominator_data;  // given: one number on the device, or null
  T* partials;
  T* row_weight;
  T* loss;
  T* metrics;
};

template <class T>
struct PolicyLossBackwardArgs {
  PolicyLossArgs<T> forward;  // outputs but row_weight unused
  const T* grad_loss;         // one number
  T* grad_logp;               // [batch, length], contiguous
};

template <class T>
void policy_loss_cpu(const PolicyLossArgs<T>& args);
template <class T>
void policy_loss_cuda(const PolicyLossArgs<T>& args, void* stream);

template <class T>
void policy_loss_backward_cpu(const PolicyLossBackwardArgs<T>& args);
template <class T>
void policy_loss_backward_cuda(const PolicyLossBackwardArgs<T>& args, void* stream);

}  // namespace warpup
