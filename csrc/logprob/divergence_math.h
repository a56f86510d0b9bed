// The divergences between student S and teacher T, each once: one token's share of the sums, and the gradient, from
// s = log pS, t = log pT and one constant c of the row. Shared by both twins.
//
//   kind           sum of                       c                          d / d xS,  xS = zS / T
//   forward        pT (t - s)                   0                          pS - pT
//   reverse        pS (s - t)                   RKL                        pS (s - t - c)
//   jeffreys       (pS - pT) (s - t)            RKL                        pS (s - t - c) + pS - pT
//   jsd            b pT (t - m) + a pS (s - m)  KL(pS || m)                a pS (s - m - c)     a = 1 - b
//   symmetric_ce   -(pT s + pS t) / 2           sum pS t                   (pS (1 + c - t) - pT) / 2
//   binary         Bernoulli KL of sigmoids     0                          sigmoid(s) - sigmoid(t);  s = xS, t = xT
//
// m = log(b pT + a pS). A term that is infinite because the other side rules the token out (its logit is -inf) is left
// out of the sum, and the probability so lost is part of c, which makes the gradient that of the sum as it stands.
#pragma once

#include "core/math.h"

namespace warpup {

enum class Divergence { forward, reverse, jeffreys, jsd, symmetric_ce, binary };

// Calls body.template operator()<kind>().
template <class Body>
void dispatch_divergence(Divergence kind, const Body& body) {
  switch (kind) {
    case Divergence::forward:
      return body.template operator()<Divergence::forward>();
    case Divergence::reverse:
      return body.template operator()<Divergence::reverse>();
    case Divergence::jeffreys:
      return body.template operator()<Divergence::jeffreys>();
    case Divergence::jsd:
      return body.template operator()<Divergence::jsd>();
    case Divergence::symmetric_ce:
      return body.template operator()<Divergence::symmetric_ce>();
    case Divergence::binary:
      return body.template operator()<Divergence::binary>();
  }
}

template <class Acc>
struct DivergenceTerm {
  Acc value, c;
};

namespace detail {

// log p that times p = 0 is 0.
template <class Acc>
WARPUP_HD Acc held_log(Acc x) {
  return x < Acc(-1000) ? Acc(-1000) : x;
}

// log of the mixture of which pS and pT are a and b parts; of a normal number at least.
template <class Acc>
WARPUP_HD Acc log_mixture(Acc p_s, Acc p_t, Acc beta) {
  constexpr Acc kLeast = std::numeric_limits<Acc>::min();
  const Acc m = beta * p_t + (Acc(1) - beta) * p_s;
  return log_pos(m < kLeast ? kLeast : m);
}

template <class Acc>
WARPUP_HD Acc magnitude(Acc x) {
  return x < Acc(0) ? -x : x;
}

// 1 / (1 + e^-x), to full relative precision on both sides.
template <class Acc>
WARPUP_HD Acc sigmoid(Acc x) {
  const Acc e = exp_neg(-magnitude(x));
  return (x < Acc(0) ? e : Acc(1)) / (Acc(1) + e);
}

}  // namespace detail

template <Divergence kind, class Acc>
WARPUP_HD DivergenceTerm<Acc> divergence_term(Acc s, Acc t, Acc beta) {
  const bool no_s = s == -kInf<Acc>, no_t = t == -kInf<Acc>;
  if constexpr (kind == Divergence::forward) {
    const Acc p_t = exp_neg(t);
    return {no_s || no_t ? Acc(0) : p_t * (t - s), no_s ? p_t : Acc(0)};
  } else if constexpr (kind == Divergence::reverse) {
    const Acc p_s = exp_neg(s), value = no_s || no_t ? Acc(0) : p_s * (s - t);
    return {value, no_t ? -p_s : value};
  } else if constexpr (kind == Divergence::jeffreys) {
    const Acc p_s = exp_neg(s), p_t = exp_neg(t), d = no_s || no_t ? Acc(0) : s - t;
    return {(p_s - p_t) * d, p_s * d + (no_s ? p_t : Acc(0)) - (no_t ? p_s : Acc(0))};
  } else if constexpr (kind == Divergence::jsd) {
    const Acc p_s = exp_neg(s), p_t = exp_neg(t), m = detail::log_mixture(p_s, p_t, beta);
    const Acc kl_s = p_s * (detail::held_log(s) - m), kl_t = p_t * (detail::held_log(t) - m);
    return {beta * kl_t + (Acc(1) - beta) * kl_s, kl_s};
  } else if constexpr (kind == Divergence::symmetric_ce) {
    const Acc p_s = exp_neg(s), p_t = exp_neg(t);
    const Acc forward = no_s ? Acc(0) : p_t * s, reverse = no_t ? Acc(0) : p_s * t;
    return {Acc(-0.5) * (forward + reverse), reverse - (no_s ? p_t : Acc(0))};
  } else {
    // softplus(s) - softplus(t) - sigmoid(t) (s - t), mirrored so that t <= 0 and nothing large cancels.
    const Acc t_neg = -detail::magnitude(t), s_neg = t > Acc(0) ? -s : s, e = exp_neg(t_neg);
    const Acc q = e / (Acc(1) + e);
    const Acc value = (s_neg > Acc(0) ? s_neg : Acc(0)) + log1p_unit(exp_neg(-detail::magnitude(s))) - log1p_unit(e) -
                      (t_neg == -kInf<Acc> ? Acc(0) : q * (s_neg - t_neg));
    return {no_s ? Acc(0) : value, Acc(0)};
  }
}

template <Divergence kind, class Acc>
WARPUP_HD Acc divergence_slope(Acc s, Acc t, Acc c, Acc beta) {
  const bool no_s = s == -kInf<Acc>, no_t = t == -kInf<Acc>;
  if constexpr (kind == Divergence::binary) {
    return no_s ? Acc(0) : detail::sigmoid(s) - detail::sigmoid(t);
  } else if constexpr (kind == Divergence::forward) {
    return exp_neg(s) * (Acc(1) - c) - (no_s ? Acc(0) : exp_neg(t));
  } else if constexpr (kind == Divergence::reverse) {
    return exp_neg(s) * ((no_t ? Acc(-1) : no_s ? Acc(0) : s - t) - c);
  } else if constexpr (kind == Divergence::jeffreys) {
    const Acc d = no_t ? Acc(-1) : no_s ? Acc(0) : s - t;
    return exp_neg(s) * (d - c + Acc(1)) - (no_s ? Acc(0) : exp_neg(t));
  } else if constexpr (kind == Divergence::jsd) {
    const Acc p_s = exp_neg(s), m = detail::log_mixture(p_s, exp_neg(t), beta);
    return (Acc(1) - beta) * p_s * (detail::held_log(s) - m - c);
  } else {
    return Acc(0.5) * (exp_neg(s) * (Acc(1) + c - (no_t ? Acc(0) : t)) - (no_s ? Acc(0) : exp_neg(t)));
  }
}

}  // namespace warpup
