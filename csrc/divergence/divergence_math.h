// The divergences between student S and teacher T, each once: one token's share of the sums, and the gradient, from its
// two logits and the constants of the row. Shared by the CPU and the CUDA kernel. With p the probability, s = log pS, t
// = log pT:
//
//   kind           sum of                           c                          d / d xS,  xS = zS / T
//   forward        pT (t - s)                       0                          pS - pT
//   reverse        pS (s - t)                       RKL                        pS (s - t - c)
//   jeffreys       (pS - pT) (s - t)                RKL                        pS (s - t - c) + pS - pT
//   jsd            b pT log(pT/m) + a pS log(pS/m)  KL(pS || m)                a pS (log(pS/m) - c)    a = 1 - b
//   symmetric_ce   -(pT s + pS t) / 2               sum pS t                   (pS (1 + c - t) - pT) / 2
//   binary         Bernoulli KL of sigmoids         0                          sigmoid(xS) - sigmoid(xT)
//
// m = b pT + a pS. A term that is infinite because the other side rules the token out (its logit is -inf) is left out
// of the sum, and the probability so lost is part of c, which makes the gradient that of the sum as it stands.
//
// Digits: p is exp((z - max) / T) / sum, not the exp of a rounded log p; s - t takes the difference of the two rows'
// log sums, rounded once, so that a small divergence is not what is left of large logarithms.
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

// Whether row r has a value: without a mask all have.
template <class Args>
WARPUP_HD bool counts(const Args& args, int64_t r) {
  return !args.mask || args.mask[r] != 0;
}

template <class Args>
WARPUP_HD auto inverse_temperature(const Args& args, int64_t r) {
  return static_cast<typename Args::Acc>(1 / args.temperature[r]);
}

template <class Acc>
struct TokenProb {
  Acc p, x;  // x = (z - max) / T = log p + log sum
};

// One side of a row: max z, sum exp((z - max) / T), and of that 1 / sum and log sum. As it stands, what `binary` takes.
template <class Acc>
struct RowSide {
  Acc max = 0, sum = 1, inverse = 1, log = 0;
  WARPUP_HD TokenProb<Acc> operator()(Acc z, Acc inv_t) const {
    const Acc x = (z - max) * inv_t;
    return {exp_neg(x) * inverse, x};
  }
};

template <class Acc>
WARPUP_HD RowSide<Acc> row_side(Acc max, Acc sum) {
  return {max, sum, Acc(1) / sum, log_pos(sum)};
}

template <class Acc>
struct DivergenceRow {
  RowSide<Acc> s, t;
  Acc log_ratio = 0;  // log(sum of S / sum of T)
  Acc inv_t = 1, beta = 0, c = 0;
};

template <class Acc>
WARPUP_HD DivergenceRow<Acc> divergence_row(RowSide<Acc> s, RowSide<Acc> t, Acc inv_t, Acc beta, Acc c) {
  return {s, t, log_pos(s.sum / t.sum), inv_t, beta, c};
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
WARPUP_HD DivergenceTerm<Acc> divergence_term(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) {
  const auto [p_s, x_s] = row.s(z_s, row.inv_t);
  const auto [p_t, x_t] = row.t(z_t, row.inv_t);
  const bool no_s = x_s == -kInf<Acc>, no_t = x_t == -kInf<Acc>;
  const Acc d = no_s || no_t ? Acc(0) : (x_s - x_t) - row.log_ratio;
  if constexpr (kind == Divergence::forward) {
    return {-p_t * d, no_s ? p_t : Acc(0)};
  } else if constexpr (kind == Divergence::reverse) {
    return {p_s * d, no_t ? -p_s : p_s * d};
  } else if constexpr (kind == Divergence::jeffreys) {
    return {(p_s - p_t) * d, p_s * d + (no_s ? p_t : Acc(0)) - (no_t ? p_s : Acc(0))};
  } else if constexpr (kind == Divergence::jsd) {
    const Acc m = detail::inverse_mixture(p_s, p_t, row.beta);
    const Acc kl_s = p_s * detail::log_share(p_s, m), kl_t = p_t * detail::log_share(p_t, m);
    return {row.beta * kl_t + (Acc(1) - row.beta) * kl_s, kl_s};
  } else if constexpr (kind == Divergence::symmetric_ce) {
    const Acc forward = no_s ? Acc(0) : p_t * (x_s - row.s.log), reverse = no_t ? Acc(0) : p_s * (x_t - row.t.log);
    return {Acc(-0.5) * (forward + reverse), reverse - (no_s ? p_t : Acc(0))};
  } else {
    // softplus(s) - softplus(t) - sigmoid(t) (s - t), mirrored so that t <= 0 and nothing large cancels.
    const Acc t = -detail::magnitude(x_t), s = x_t > Acc(0) ? -x_s : x_s, e = exp_neg(t);
    const Acc q = e / (Acc(1) + e);
    const Acc value = (s > Acc(0) ? s : Acc(0)) + log1p_unit(exp_neg(-detail::magnitude(x_s))) - log1p_unit(e) -
                      (t == -kInf<Acc> ? Acc(0) : q * (s - t));
    return {no_s ? Acc(0) : value, Acc(0)};
  }
}

template <Divergence kind, class Acc>
WARPUP_HD Acc divergence_slope(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) {
  const auto [p_s, x_s] = row.s(z_s, row.inv_t);
  const auto [p_t, x_t] = row.t(z_t, row.inv_t);
  const bool no_s = x_s == -kInf<Acc>, no_t = x_t == -kInf<Acc>;
  const Acc d = no_t ? Acc(-1) : no_s ? Acc(0) : (x_s - x_t) - row.log_ratio;
  if constexpr (kind == Divergence::binary) {
    return no_s ? Acc(0) : detail::sigmoid(x_s) - detail::sigmoid(x_t);
  } else if constexpr (kind == Divergence::forward) {
    return p_s * (Acc(1) - row.c) - (no_s ? Acc(0) : p_t);
  } else if constexpr (kind == Divergence::reverse) {
    return p_s * (d - row.c);
  } else if constexpr (kind == Divergence::jeffreys) {
    return p_s * (d - row.c + Acc(1)) - (no_s ? Acc(0) : p_t);
  } else if constexpr (kind == Divergence::jsd) {
    const Acc m = detail::inverse_mixture(p_s, p_t, row.beta);
    return (Acc(1) - row.beta) * p_s * (detail::log_share(p_s, m) - row.c);
  } else {
    const Acc t = no_t ? Acc(0) : x_t - row.t.log;
    return Acc(0.5) * (p_s * (Acc(1) + row.c - t) - (no_s ? Acc(0) : p_t));
  }
}

}  // namespace warpup
