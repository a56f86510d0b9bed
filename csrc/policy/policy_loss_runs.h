// The stages of policy_loss's CPU kernel: each is a plain loop over a run of tokens, so that the compiler vectorises it.
// Only policy_run depends on the formula and is compiled for each.
#pragma once

#include "core/extremes.h"
#include "policy/policy_loss.h"
#include "policy/policy_loss_math.h"

namespace warpup {
namespace {

// Tokens that are added up in T before the sum goes on in double: 8192 float32 in one sum would lose 2 of 7 digits.
// A Run of that many is 20 KB in float32: the stages find it in the L1 cache.
constexpr int64_t kRun = 512;

// ---- Stages of a run ------------------------------------------------------------------------------------------------

// The inputs of a run, from its first token on.
template <class T>
struct Inputs {
  const T *logp, *old, *advantages, *ref, *weights, *penalty, *ref_kl, *entropy, *upstream;  // ref and on may be null
  const uint8_t* mask;
  bool row_advantage, row_weight;

  Inputs(const PolicyLossArgs<T>& a, int64_t b, int64_t begin)
      : row_advantage(a.advantages.step == 0), row_weight(a.weights.step == 0) {
    const auto at = [&](const auto& s) { return s ? s.row(a.layout, b) + begin * s.step : nullptr; };
    logp = at(a.logp), old = at(a.old_logp), advantages = at(a.advantages), ref = at(a.ref_logp);
    weights = at(a.weights), penalty = at(a.penalty), ref_kl = at(a.ref_kl), entropy = at(a.entropy);
    upstream = at(a.upstream);
    mask = at(a.mask);
  }
};

// What the stages hand on, all of it 0 (ratios 1) under the mask.
template <class T>
struct Run {
  T on[kRun], x[kRun], advantage[kRun];  // x: logp - old_logp
  T r[kRun], ratio[kRun];                // e^x, and the formula's
  T loss[kRun], slope[kRun];             // of the policy term
  T kl[kRun], kl_slope[kRun];            // of the KL that is added to it, without its coefficient
  T entropy[kRun];                       // where it is given, in the forward
  T open[kRun];                          // the tokens that a shared slope flows to
};

// The mask as numbers, in a loop of its own: beside bytes the compiler would take 32 tokens at once and run out of
// registers.
template <class T>
inline void widen(const uint8_t* mask, int64_t n, T* on) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) on[t] = mask[t] != 0 ? T(1) : T(0);
}

// Loads are unconditional and the mask selects afterwards: that is what lets the compiler vectorise.
template <class T>
WARPUP_LOOP void load_run(const Inputs<T> in, int64_t n, Run<T>* __restrict run) {
  widen(in.mask, n, run->on);
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) {
    const T x = in.logp[t] - in.old[t];
    run->x[t] = run->on[t] != 0 ? x : T(0);
  }
  if (in.row_advantage) {
    const T a = in.advantages[0];
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) run->advantage[t] = run->on[t] != 0 ? a : T(0);
  } else {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T a = in.advantages[t];
      run->advantage[t] = run->on[t] != 0 ? a : T(0);
    }
  }
}

// The sum of row_term over a run, and its tokens.
template <class T, PolicyLevel kLevel>
WARPUP_LOOP RowSums<double> row_run(const Run<T>& run, int64_t n, const PolicyBounds<T> bounds) {
  T sum = 0, tokens = 0;
#pragma omp simd reduction(+ : sum, tokens)
  for (int64_t t = 0; t < n; ++t) {
    sum += run.on[t] * row_term(kLevel, run.x[t], run.advantage[t], bounds), tokens += run.on[t];
  }
  return {double(sum), double(tokens)};
}

// The policy term and, for the forward, the sums that belong to it.
template <class T, PolicyFormula kFormula, bool kForward>
WARPUP_LOOP void policy_run(const T* logp, int64_t n, bool by_row, T positive, T negative, const PolicyBounds<T> p,
                            Run<T>* __restrict run, PolicySums<T>* out) {
  T low = 0, high = 0, dual = 0, ratio_max = 0, approx_kl = 0, tokens = 0;
  const T own = by_row ? T(0) : T(1);  // a number: the vectoriser takes no bool from outside the loop
#pragma omp simd reduction(+ : low, high, dual, approx_kl, tokens) reduction(largest : ratio_max)
  for (int64_t t = 0; t < n; ++t) {
    const T on = run->on[t], x = run->x[t], a = run->advantage[t], r = exp_held(x);
    const T of_row = a < 0 ? negative : positive, ratio = own != 0 ? r : of_row;
    const T lp = logp[t];
    const PolicyTerm<T> term = policy_term<kFormula>(ratio, x, on != 0 ? lp : T(0), a, p);
    run->r[t] = r, run->ratio[t] = ratio;
    run->loss[t] = term.loss, run->slope[t] = term.slope;
    if constexpr (kFormula == PolicyFormula::geometric) {
      run->open[t] = a != 0 ? on - term.clipped_low - term.clipped_high : T(0);
    }
    if constexpr (kForward) {
      const T q = on * ratio;
      low += term.clipped_low, high += term.clipped_high, dual += term.dual, tokens += on;
      ratio_max = q > ratio_max ? q : ratio_max;
      approx_kl += r - T(1) - x;
    }
  }
  if constexpr (kForward) {
    double ratios = 0;  // of a sequence all are one number, whose roundings would all go one way
#pragma omp simd reduction(+ : ratios)
    for (int64_t t = 0; t < n; ++t) ratios += double(run->on[t] * run->ratio[t]);
    *out = {T(0), tokens, low, high, dual, T(ratios), ratio_max, approx_kl, T(0), T(0), T(0)};
  }
}

// penalty |x| and proximal / 2 x^2, then the weights.
template <class T>
WARPUP_LOOP void weigh_run(const T* penalty, T proximal, const T* weights, bool row_weight, int64_t n,
                           Run<T>* __restrict run) {
  if (penalty) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T x = run->x[t], p = penalty[t], c = x != 0 ? p : T(0);
      run->loss[t] += c * (x < 0 ? -x : x), run->slope[t] += x < 0 ? -c : c;
    }
  }
  if (proximal != 0) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T slope = proximal * run->x[t];
      run->loss[t] += T(0.5) * slope * run->x[t], run->slope[t] += slope;
    }
  }
  if (weights) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T weight = weights[row_weight ? 0 : t], w = run->on[t] != 0 ? weight : T(0);
      run->loss[t] *= w, run->slope[t] *= w;
    }
  }
}

template <class T>
WARPUP_LOOP void kl_run(const T* logp, const T* ref, int64_t n, bool own, const KlWeights<T> weights,
                        Run<T>* __restrict run) {
  const T through = own ? T(1) : T(0);
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) {
    const T on = run->on[t], d = ref[t] - logp[t];
    const KlTerm<T> term = kl_term(on != 0 ? d : T(0), weights);
    run->kl[t] = term.value, run->kl_slope[t] = on * (through != 0 ? term.corrected : term.slope);
  }
}

// The caller's KL, and the correction by the ratio, whose gradient goes to the token itself (own) or, where a KL counts
// (coef is not 0), to the slope that its row shares.
template <class T>
WARPUP_LOOP void add_kl_run(const T* ref_kl, T coef, bool corrected, bool by_row, bool own, bool shared, int64_t n,
                            Run<T>* __restrict run) {
  if (ref_kl) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T kl = ref_kl[t];
      run->kl[t] += run->on[t] != 0 ? kl : T(0);
    }
    if (own) {
#pragma omp simd
      for (int64_t t = 0; t < n; ++t) run->kl_slope[t] += run->kl[t];  // all of it the caller's: no estimate beside it
    }
  }
  if (!corrected) return;
  const T* q = by_row ? run->ratio : run->r;
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) run->kl[t] *= q[t], run->kl_slope[t] *= q[t];
  if (!shared || coef == 0) return;
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) run->slope[t] += coef * run->kl[t];
}

template <class T>
WARPUP_LOOP void entropy_run(const T* entropy, int64_t n, Run<T>* __restrict run) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) {
    const T h = entropy[t];
    run->entropy[t] = run->on[t] != 0 ? h : T(0);
  }
}

// Of a token's loss, so of all that adds to it.
template <class T>
WARPUP_LOOP void upstream_run(const T* upstream, bool entropy, int64_t n, Run<T>* __restrict run) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) {
    const T given = upstream[t], g = run->on[t] != 0 ? given : T(0);
    run->loss[t] *= g, run->slope[t] *= g, run->kl[t] *= g, run->kl_slope[t] *= g;
  }
  if (!entropy) return;
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) {
    const T given = upstream[t], g = run->on[t] != 0 ? given : T(0);
    run->entropy[t] *= g;
  }
}

template <class T>
WARPUP_LOOP void write_losses(T entropy_coef, T kl_coef, int64_t n, const Run<T>& run, T* __restrict to) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) to[t] = run.loss[t];
  if (kl_coef != 0) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) to[t] += kl_coef * run.kl[t];
  }
  if (entropy_coef != 0) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) to[t] -= entropy_coef * run.entropy[t];
  }
}

template <class T>
WARPUP_LOOP void sum_run(bool entropy, T entropy_coef, T kl_coef, int64_t n, const Run<T>& run, PolicySums<T>* out) {
  T loss = 0, kl = 0, slope = 0;
#pragma omp simd reduction(+ : loss, kl, slope)
  for (int64_t t = 0; t < n; ++t) loss += run.loss[t], kl += run.kl[t], slope += run.slope[t];
  out->ref_kl = kl, out->slope = slope, out->loss = loss;
  if (kl_coef != 0) out->loss += kl_coef * kl;  // a KL that is only measured may be infinite
  if (!entropy) return;
  T total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < n; ++t) total += run.entropy[t];
  out->entropy = total;
  if (entropy_coef != 0) out->loss -= entropy_coef * total;
}

template <class T>
WARPUP_LOOP void write_run(T scale, T kl_coef, const T* state, bool spread, bool clipped, int64_t n, const Run<T>& run,
                           T* __restrict grad) {
  const T slope = state[kSlope];
  const T* open = clipped ? run.open : run.on;
  if (spread) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) grad[t] = scale * (slope * open[t] + kl_coef * run.kl_slope[t]);
  } else {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) grad[t] = scale * (slope * run.slope[t] + kl_coef * run.kl_slope[t]);
  }
}

// The gradient of an input that the loss is linear in (ref_kl, entropy): its coefficient and the row's weight, both in
// scale, times the ratio where the KL is corrected by it, and the token's upstream gradient.
template <class T>
WARPUP_LOOP void write_linear(T scale, const T* q, const T* upstream, int64_t n, const Run<T>& run,
                              T* __restrict grad) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) grad[t] = scale * run.on[t];
  if (q) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) grad[t] *= q[t];
  }
  if (upstream) {
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) {
      const T g = upstream[t];
      grad[t] *= run.on[t] != 0 ? g : T(0);
    }
  }
}

}  // namespace
}  // namespace warpup
