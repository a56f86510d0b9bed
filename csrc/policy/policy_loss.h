// policy_loss: a policy-gradient loss with its metrics, forward and backward fused. In eager torch each step below is a
// pass over [batch, length] of its own; here all of them are one pass each way.
//
//   l[b, t]   = weight (policy_term(ratio, A) + penalty |log r| + proximal / 2 log^2 r) + kl_coef kl
//               - entropy_coef entropy
//   loss      = sum_b w[b] sum_t mask l       w[b] = 1 / D, or 1 / (D n[b]) with n[b] = sum_t mask (per_sequence)
//   D         = the number of tokens, of non-empty sequences, of elements (batch * length), or a given number
//   dlogp     = grad_loss w[b] mask dl/dlogp
//   losses    = mask l, where they are asked for. Their gradients come in as `upstream`, a factor of each token's l:
//               forward and backward of sum_t upstream l (w 1) give theirs.
//
// The terms: policy_loss_math.h.
//
// Layout   padded: logp, old_logp, ref_logp, ref_kl, entropy, penalty, upstream, mask [batch, length] with unit stride
//          along length; advantages and weights the same, or one value a row (step 0).
//          packed: the same with [total], row b being the tokens [offsets[b], offsets[b + 1]).
//          All of one floating type, mask uint8.
//          A row is cut into pieces of kPolicyPiece tokens; each has a slot in partials [slots, kPolicyScratch].
//          row_state [batch, kPolicyState] is what the backward needs of a row.
//          metrics [kPolicyMetrics]: see there.
// Numerics float32 (float64 for float64); a piece's sums in that type, all further sums in double, in a fixed order.
//          Masked before exp: whatever is under mask = 0, NaN included, changes nothing. D = 0 gives loss 0.
// Bytes    forward: 3 (and 1 for each optional input) * sizeof(T) + 1 an element; a level of whole rows reads logp,
//          old_logp and mask twice, the second time from the cache. backward: the same, and sizeof(T) written.
#pragma once

#include "core/types.h"
#include "policy/policy_loss_math.h"

namespace warpup {

inline constexpr int64_t kPolicyPiece = 8192;

// What is summed over the tokens of a piece; ratio_max is a maximum. slope: what the row's ratio passes on to all
// tokens of the row (`spreads`).
template <class Acc>
struct PolicySums {
  Acc loss, tokens, clipped_low, clipped_high, dual, ratio, ratio_max, approx_kl, ref_kl, entropy, slope;
};
inline constexpr int kPolicySums = 11;

// Of a piece of a row longer than a piece, before its ratio is known: the sum of row_term, and the tokens.
template <class Acc>
struct RowSums {
  Acc sum, tokens;
};
inline constexpr int kPolicyScratch = kPolicySums + 2;

// metrics, in this order: tokens; the fractions clipped low, high, dual; mean and maximum of the ratio; approx_kl, the
// mean of r - 1 - log r with each token's own r; the means of the KL to the reference and of the entropy, without their
// coefficients, 0 where they are not given.
inline constexpr int kPolicyMetrics = 9;

enum PolicyState { kWeight, kRatio, kRatioNegative, kSlope, kPolicyState };  // columns of row_state

enum class Denominator : int { tokens, sequences, elements, given };

// Where the tokens of row b are, and which piece of which row belongs to a slot. The host does not know the lengths of
// packed rows (looking would wait for the GPU), so row b owns the slots from offsets[b] / kPolicyPiece + b on: always
// enough, some stay empty.
struct PolicyLayout {
  struct Piece {
    int64_t row, begin, count;  // tokens [begin, begin + count) of the row
  };

  int64_t batch, length;   // length: of a padded row
  const int64_t* offsets;  // [batch + 1], or null: padded
  int64_t total;           // packed tokens

  WARPUP_HD int64_t offset(int64_t b) const {  // held within the tokens: on a GPU they are not checked
    return offsets[b] < 0 ? 0 : offsets[b] > total ? total : offsets[b];
  }
  WARPUP_HD int64_t first_token(int64_t b) const { return offsets ? offset(b) : b * length; }  // in contiguous outputs
  WARPUP_HD int64_t tokens(int64_t b) const { return offsets ? offset(b + 1) - offset(b) : length; }
  WARPUP_HD int64_t first_slot(int64_t b) const {
    return offsets ? offset(b) / kPolicyPiece + b : b * ((length + kPolicyPiece - 1) / kPolicyPiece);
  }
  WARPUP_HD int64_t slots() const { return offsets ? total / kPolicyPiece + batch : first_slot(batch); }
  WARPUP_HD bool one_piece(int64_t b) const { return tokens(b) <= kPolicyPiece; }
  WARPUP_HD Piece piece(int64_t slot) const {
    int64_t b = 0, end = batch;  // the last row whose first slot is not above
    if (!offsets) b = slot / first_slot(1);
    while (offsets && end - b > 1) {
      const int64_t middle = b + (end - b) / 2;
      (first_slot(middle) <= slot ? b : end) = middle;
    }
    const int64_t begin = (slot - first_slot(b)) * kPolicyPiece, left = tokens(b) - begin;
    return {b, begin, begin < 0 || left < 0 ? 0 : left < kPolicyPiece ? left : kPolicyPiece};
  }
};

// An input, or null. step: 1, or 0 for one value a row.
template <class T>
struct PolicyStream {
  const T* data = nullptr;
  int64_t stride = 0, step = 1;  // stride: from row to row, without offsets
  WARPUP_HD explicit operator bool() const { return data != nullptr; }
  WARPUP_HD const T* row(const PolicyLayout& layout, int64_t b) const {
    return data + (layout.offsets && step ? layout.offset(b) : b * stride);
  }
};

template <class T>
struct PolicyLossArgs {
  PolicyLayout layout;
  PolicyStream<T> logp, old_logp, advantages;
  PolicyStream<T> ref_logp, weights, penalty, ref_kl, entropy, upstream;  // optional
  PolicyStream<uint8_t> mask;
  PolicyFormula formula;
  PolicyLevel level;
  bool kl_corrected;  // the KL is multiplied by the ratio
  PolicyParams params;
  bool per_sequence;  // each sequence counts once, by the mean over its tokens
  Denominator denominator;
  double denominator_scalar;        // given, where there is no tensor
  const float* denominator_tensor;  // given: one number on the device, or null
  T* partials;
  T* row_state;
  T* loss;
  T* metrics;
  T* losses;  // like logp, contiguous, or null
};

template <class T>
struct PolicyLossBackwardArgs {
  PolicyLossArgs<T> forward;                  // its outputs are not used, row_state is read
  const T* grad_loss;                         // one number
  T *grad_logp, *grad_ref_kl, *grad_entropy;  // like logp, contiguous; the last two null without their inputs
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
