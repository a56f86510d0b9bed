// The divergences between student S and teacher T, each once: one token's share of the sums, and the gradient, from pS,
// s = log pS, pT, t = log pT and one constant c of the row. Shared by both twins. (p comes beside its logarithm since
// exp((z - max) / T) / sum keeps digits that exp(log p) has lost to the rounding of log p.)
//
//   kind           sum of                       c                          d / d xS,  xS = zS / T
//   forward        pT (t - s)                   0                          pS - pT
//   reverse        pS (s - t)                   RKL                        pS (s - t - c)
//   jeffreys       (pS - pT) (s - t)            RKL                        pS (s - t - c) + pS - pT
//   jsd            b pT log(pT / m)             KL(pS || m)                a pS (log(pS / m) - c)    a = 1 - b
//                  + a pS log(pS / m)
//   symmetric_ce   -(pT s + pS t) / 2           sum pS t                   (pS (1 + c - t) - pT) / 2
//   binary         Bernoulli KL of sigmoids     0                          sigmoid(s) - sigmoid(t);  s = xS, t = xT
//
// m = b pT + a pS. A term that is infinite because the other side rules the token out (its logit is -inf) is left
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
struct TokenProb {
  Acc p, log;
};

// What a row needs to turn its logits into probabilities: max z, sum exp((z - max) / T), and of it 1 / sum and log.
template <class Acc>
struct RowSoftmax {
  Acc max = 0, sum = 1, inverse = 1, log = 0;  // as it stands: p = exp(z / T), which `binary` does not look at
  WARPUP_HD TokenProb<Acc> operator()(Acc z, Acc inv_t) const {
    const Acc x = (z - max) * inv_t;
    return {exp_neg(x) * inverse, x - log};
  }
};

template <class Acc>
WARPUP_HD RowSoftmax<Acc> row_softmax(Acc max, Acc sum) {
  return {max, sum, Acc(1) / sum, log_pos(sum)};
}

template <class Acc>
struct DivergenceTerm {
  Acc value, c;
};

namespace detail {

// log of the ratio of p to the mixture m; some number where p is 0. To full precision also where p is close to m, which
// the difference of logarithms would not be.
template <class Acc>
WARPUP_HD Acc log_share(Acc p, Acc inverse_m) {
  constexpr Acc kLeast = std::numeric_limits<Acc>::min();
  const Acc ratio = p * inverse_m;
  return log_pos(ratio < kLeast ? kLeast : ratio);
}

template <class Acc>
WARPUP_HD Acc inverse_mixture(Acc p_s, Acc p_t, Acc beta) {
  constexpr Acc kLeast = std::numeric_limits<Acc>::min();
  const Acc m = beta * p_t + (Acc(1) - beta) * p_s;
  return Acc(1) / (m < kLeast ? kLeast : m);
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
WARPUP_HD DivergenceTerm<Acc> divergence_term(TokenProb<Acc> student, TokenProb<Acc> teacher, Acc beta) {
  const Acc p_s = student.p, s = student.log, p_t = teacher.p, t = teacher.log;
  const bool no_s = s == -kInf<Acc>, no_t = t == -kInf<Acc>;
  if constexpr (kind == Divergence::forward) {
    return {no_s || no_t ? Acc(0) : p_t * (t - s), no_s ? p_t : Acc(0)};
  } else if constexpr (kind == Divergence::reverse) {
    const Acc value = no_s || no_t ? Acc(0) : p_s * (s - t);
    return {value, no_t ? -p_s : value};
  } else if constexpr (kind == Divergence::jeffreys) {
    const Acc d = no_s || no_t ? Acc(0) : s - t;
    return {(p_s - p_t) * d, p_s * d + (no_s ? p_t : Acc(0)) - (no_t ? p_s : Acc(0))};
  } else if constexpr (kind == Divergence::jsd) {
    const Acc m = detail::inverse_mixture(p_s, p_t, beta);
    const Acc kl_s = p_s * detail::log_share(p_s, m), kl_t = p_t * detail::log_share(p_t, m);
    return {beta * kl_t + (Acc(1) - beta) * kl_s, kl_s};
  } else if constexpr (kind == Divergence::symmetric_ce) {
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
WARPUP_HD Acc divergence_slope(TokenProb<Acc> student, TokenProb<Acc> teacher, Acc c, Acc beta) {
  const Acc p_s = student.p, s = student.log, p_t = teacher.p, t = teacher.log;
  const bool no_s = s == -kInf<Acc>, no_t = t == -kInf<Acc>;
  if constexpr (kind == Divergence::binary) {
    return no_s ? Acc(0) : detail::sigmoid(s) - detail::sigmoid(t);
  } else if constexpr (kind == Divergence::forward) {
    return p_s * (Acc(1) - c) - (no_s ? Acc(0) : p_t);
  } else if constexpr (kind == Divergence::reverse) {
    return p_s * ((no_t ? Acc(-1) : no_s ? Acc(0) : s - t) - c);
  } else if constexpr (kind == Divergence::jeffreys) {
    const Acc d = no_t ? Acc(-1) : no_s ? Acc(0) : s - t;
    return p_s * (d - c + Acc(1)) - (no_s ? Acc(0) : p_t);
  } else if constexpr (kind == Divergence::jsd) {
    return (Acc(1) - beta) * p_s * (detail::log_share(p_s, detail::inverse_mixture(p_s, p_t, beta)) - c);
  } else {
    return Acc(0.5) * (p_s * (Acc(1) + c - (no_t ? Acc(0) : t)) - (no_s ? Acc(0) : p_t));
  }
}

}  // namespace warpup
