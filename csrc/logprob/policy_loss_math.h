// The scalar formulas of policy_loss, one token at a time, shared by both twins. A new kind is a PolicyKind, a
// specialisation of policy_term, and a line in the Python table; nothing else changes.
#pragma once

#include "core/math.h"

namespace warpup {

enum class PolicyKind : int { clip };  // clip: PPO, GRPO, DAPO (clip-higher), Dr. GRPO

struct PolicyParams {
  double clip_low, clip_high;  // the ratio is clipped to [1 - clip_low, 1 + clip_high]
  double kl_k1, kl_k2, kl_k3;  // weights of the three estimators of KL(pi || ref): kl_coef on one, 0 on the others
};

template <class Acc>
struct PolicyTerm {
  Acc loss, grad;                 // grad: d loss / d logp
  Acc ratio;                      // pi / pi_old
  Acc clipped_low, clipped_high;  // 1 where the clip holds and takes the gradient away, else 0; numbers vectorise
};

// loss = -min(r A, clamp(r, 1 - low, 1 + high) A)
template <PolicyKind kKind, class Acc>
WARPUP_HD PolicyTerm<Acc> policy_term(Acc log_ratio, Acc advantage, Acc low, Acc high) {
  static_assert(kKind == PolicyKind::clip);
  const Acc r = exp_held(log_ratio);
  // Only one side of the clip can hold: the upper where A > 0, the lower where A < 0.
  const Acc floor = advantage < 0 ? Acc(1) - low : Acc(0);
  const Acc ceiling = advantage > 0 ? Acc(1) + high : std::numeric_limits<Acc>::max();
  const Acc above_floor = r < floor ? floor : r, held = above_floor > ceiling ? ceiling : above_floor;
  const Acc loss = -held * advantage;
  return {loss, held == r ? loss : Acc(0), r, held > r ? Acc(1) : Acc(0), held < r ? Acc(1) : Acc(0)};
}

template <class Acc>
struct KlTerm {
  Acc value, grad;  // weighted; grad: d value / d logp
};

// d = ref - logp:  k1 = -d,  k2 = d^2 / 2,  k3 = e^d - d - 1  (Schulman 2020)
template <class Acc>
WARPUP_HD KlTerm<Acc> kl_term(Acc d, Acc k1, Acc k2, Acc k3) {
  const Acc e = exp_held(d);
  return {k3 * (e - d - Acc(1)) + d * (k2 * Acc(0.5) * d - k1), k1 - k2 * d + k3 * (Acc(1) - e)};
}

}  // namespace warpup
