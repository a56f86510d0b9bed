// moe_route: a row of router logits to its k experts and their weights; from the same pass what the balance losses
// need. In torch each of these is a pass of its own over the logits, and keeps what its backward needs.
//
//   m = max z,  l = log sum exp(z - m)                       one pass over the row, in registers or L1
//   s = softmax z, sigmoid z, or sqrt(softplus z)            score;  q = s / sum s
//   choose the k largest of s + bias (z + bias if `over_chosen`), within the groups that are kept, or replay given ones
//   v = s[chosen], or softmax over z[chosen] if `over_chosen`
//   weights = scale v [/ (sum v + epsilon)]                  the bias chooses, it does not weigh, and has no gradient
//   counts[b, e] = how often e was chosen in sequence b,  mean_score[b] = mean q,  z_loss = mean (m + l)^2
//
//   dv = scale g                                             renormalized: scale / W (g - <g, v> / W), W = sum v + eps
//   softmax   dz = p (U - <U, p> + c),  U = G + dv [chosen]
//   others    dz = s' (G - <G, q>) / sum s + c p + s' dv [chosen]
//             G = dmean_score / tokens of the sequence, c = 2 dz_loss (m + l) / tokens, p = exp(z - m - l)
//
// Groups   of experts / groups neighbors each; a group scores the sum of its `group_top` largest keys.
// Order    by falling key; of equal keys the lower index first. Without bias and groups the key is z itself: the score
//          is monotone, and does not round different logits to one value. A NaN counts as the smallest key; it comes
//          out in the weights (softmax: the whole row's).
// Layout   logits [tokens, experts], unit stride along experts; all else contiguous. bounds [sequences + 1]: sequence b
//          is tokens [bounds[b], bounds[b + 1]). A token that the mask leaves out, or without a logit above -inf, gives
//          weights 0 and indices -1 and counts for nothing: its stats are (m, inf). A replayed -1 gives weight 0.
// Numerics float32 (float64 for float64). Sums over tokens in stretches of a chunk, these one after another in float64:
//          the same bits whatever ran where.
// Bytes    forward: tokens * experts * sizeof(T) read.  backward: the same read, and as much written.
//          Scratch: O(sequences * experts), and no more chunks than kMost.
#pragma once

#include "core/types.h"

namespace warpup {

enum class RouteScore { softmax, sigmoid, sqrt_softplus };

inline constexpr int64_t kMaxExperts = 1024, kMaxGroups = 32;

// Chunk c holds its tokens of sequence b in slot c + b: along the tokens, c or b grows with each stretch.
struct RouteChunks {
  static constexpr int64_t kMost = 2048, kLeast = 8;  // chunks; tokens in each
  static int64_t size(int64_t tokens) {
    const int64_t even = (tokens + kMost - 1) / kMost;
    return even < kLeast ? kLeast : even;
  }
  static int64_t count(int64_t tokens) { return (tokens + size(tokens) - 1) / size(tokens); }
  static int64_t slots(int64_t tokens, int64_t sequences) { return count(tokens) + sequences; }
};

template <class T>
struct MoeRouteArgs {
  using Acc = acc_t<T>;
  int64_t tokens, experts, k, sequences;
  const T* logits;
  int64_t stride;
  RouteScore score;
  bool over_chosen, renormalize;
  double epsilon, scale;
  const Acc* bias;                         // [experts], or null
  int64_t groups, kept_groups, group_top;  // groups 0: all experts are one
  const int64_t* replay;                   // [tokens, k], or null
  const uint8_t* mask;                     // [tokens], or null: all
  const int64_t* bounds;                   // or null: one sequence of all
  Acc* weights;                            // [tokens, k]
  int64_t* indices;                        // [tokens, k]
  int64_t* counts;                         // [sequences, experts]
  Acc* mean_score;                         // [sequences, experts]
  Acc* z_loss;                             // [1]
  Acc* stats;                              // [tokens, 2]
  int64_t* lengths;                        // [sequences + 1]: tokens that count, of each sequence and of all
  Acc* slot_scores;                        // [slots, experts + 1], scratch: sums of q, then of (m + l)^2
  int64_t* slot_counts;                    // [slots, experts + 1], scratch: choices, then tokens
};

template <class T>
struct MoeRouteBackwardArgs {
  using Acc = acc_t<T>;
  MoeRouteArgs<T> forward;                                  // stats, indices and lengths are read; the rest unused
  const Acc *grad_weights, *grad_mean_score, *grad_z_loss;  // or null: zero
  T* grad_logits;                                           // [tokens, experts]
};

template <class T>
void moe_route_cpu(const MoeRouteArgs<T>& args);
template <class T>
void moe_route_cuda(const MoeRouteArgs<T>& args, void* stream);

template <class T>
void moe_route_backward_cpu(const MoeRouteBackwardArgs<T>& args);
template <class T>
void moe_route_backward_cuda(const MoeRouteBackwardArgs<T>& args, void* stream);

}  // namespace warpup
