// One outcome's share of topk_divergence, from its log-probs t (the teacher's) and s (the student's), with p the
// probability and m = beta pT + (1 - beta) pS. Shared by the CPU and the CUDA kernel.
//
//   kind     term                                            G = pS d term / d pS
//   mixed    beta pT (t - s) + (1 - beta) pS (s - t)         (1 - beta) pS (s - t + 1) - beta pT
//   jsd      beta pT log(pT/m) + (1 - beta) pS log(pS/m)     (1 - beta) pS log(pS/m)
//
// `forward` is mixed at beta 1, `reverse` at 0. In mixed, a token that the student rules out has no share; in jsd it has,
// since m is not 0.
#pragma once

#include "divergence/divergence_math.h"
#include "divergence/topk_divergence.h"

namespace warpup {

template <class Acc>
struct TopkTerm {
  Acc value = 0, g = 0;
};

template <class Acc>
WARPUP_HD TopkTerm<Acc> topk_term(bool jsd, Acc beta, Acc t, Acc s) {
  if (t == -kInf<Acc> || (s == -kInf<Acc> && !jsd)) return {};
  const Acc p_t = exp_neg(t), p_s = exp_neg(s), alpha = Acc(1) - beta;
  if (jsd) {
    const Acc m = detail::inverse_mixture(p_s, p_t, beta), of_s = alpha * p_s * detail::log_share(p_s, m);
    return {beta * p_t * detail::log_share(p_t, m) + of_s, of_s};
  }
  return {(beta * p_t - alpha * p_s) * (t - s), alpha * p_s * (s - t + Acc(1)) - beta * p_t};
}

// log of the teacher's tail, given the sum of what it lists.
WARPUP_HD double log_tail(double listed) {
  constexpr double kLeast = 1e-7;
  const double tail = 1 - listed;
  return log_pos(tail < kLeast ? kLeast : tail);
}

// Row r's list as the kernels go through it.
template <class T>
struct TopkList {
  using Acc = acc_t<T>;
  const int64_t* ids;
  const Acc* logp;
  int64_t count;

  WARPUP_HD bool holds(int64_t k) const { return logp[k] != -kInf<Acc>; }  // NaN is listed
  WARPUP_HD bool first_of_its_id(int64_t k) const {
    for (int64_t i = 0; i < k; ++i) {
      if (ids[i] == ids[k] && holds(i)) return false;
    }
    return holds(k);
  }
};

template <class T>
WARPUP_HD TopkList<T> list_of(const TopkDivergenceArgs<T>& args, int64_t r) {
  return {args.ids + args.ids_rows.offset(r), args.logp + args.logp_rows.offset(r), args.k};
}

// What the backward keeps of a row. listed(p, g_k): the gradient with respect to z / T of a listed token, from its pS
// and the sum of its entries' G.
template <class Acc>
struct TopkRow {
  RowSide<Acc> all, rest;
  Acc g, of_rest;
  WARPUP_HD Acc listed(Acc p, Acc g_k) const { return g_k - p * g; }
};

template <class Acc>
WARPUP_HD TopkRow<Acc> topk_row(const Acc* stats) {
  return {row_side(stats[0], stats[1]), row_side(stats[2], stats[3]), stats[4], stats[5]};
}

}  // namespace warpup
