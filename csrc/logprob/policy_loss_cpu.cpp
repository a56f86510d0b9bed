#include <algorithm>

#include "core/parallel.h"
#include "logprob/policy_loss.h"
#include "logprob/policy_loss_reduce.h"

namespace warpup {

// The inputs of a piece, as the two loops below walk them. Loads are unconditional and the mask selects afterwards:
// that is what lets the compiler vectorise.
template <class T, bool kKl>
struct Piece {
  const T *logp, *old, *ref, *advantages;
  const uint8_t* mask;
  T low, high, k1, k2, k3;

  Piece(const PolicyLossArgs<T>& a, int64_t b, int64_t begin)
      : logp(a.logp + b * a.logp_stride + begin),
        old(a.old_logp + b * a.old_logp_stride + begin),
        ref(kKl ? a.ref_logp + b * a.ref_logp_stride + begin : nullptr),
        advantages(a.advantages + b * a.advantages_stride + begin * a.advantage_step),
        mask(a.mask + b * a.mask_stride + begin),
        low(T(a.params.clip_low)),
        high(T(a.params.clip_high)),
        k1(T(a.params.kl_k1)),
        k2(T(a.params.kl_k2)),
        k3(T(a.params.kl_k3)) {}
};

// Tokens that are added up in T: longer float32 sums lose digits (8192 of them: 2 of 7).
constexpr int64_t kRun = 512;

// The mask as numbers, in a loop of its own: beside bytes the compiler would take 32 tokens at once and run out of
// registers.
template <class T>
inline void widen(const uint8_t* mask, int64_t n, T* on) {
#pragma omp simd
  for (int64_t t = 0; t < n; ++t) on[t] = mask[t] != 0 ? T(1) : T(0);
}

template <class T, PolicyKind kKind, bool kKl, bool kPerRow>
WARPUP_CLONES void policy_piece(const Piece<T, kKl> in, int64_t n, PolicySums<T>* out) {
  PolicySums<double> sums{};
  T on[kRun];
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t len = n - begin < kRun ? n - begin : kRun;
    widen(in.mask + begin, len, on);
    const T *logp = in.logp + begin, *old = in.old + begin, *advantages = in.advantages + (kPerRow ? 0 : begin);
    const T* ref = kKl ? in.ref + begin : nullptr;
    T loss = 0, tokens = 0, low = 0, high = 0, ratio = 0, ratio_max = 0, approx_kl = 0, ref_kl = 0;
#pragma omp simd reduction(+ : loss, tokens, low, high, ratio, approx_kl, ref_kl) reduction(max : ratio_max)
    for (int64_t t = 0; t < len; ++t) {
      const T a = advantages[kPerRow ? 0 : t], lr = logp[t] - old[t];
      const T advantage = on[t] != 0 ? a : T(0), log_ratio = on[t] != 0 ? lr : T(0);
      const PolicyTerm<T> term = policy_term<kKind>(log_ratio, advantage, in.low, in.high);
      const T r = on[t] * term.ratio;
      loss += term.loss;
      tokens += on[t];
      low += term.clipped_low;
      high += term.clipped_high;
      ratio += r;
      ratio_max = r > ratio_max ? r : ratio_max;
      approx_kl += r - on[t] - log_ratio;
      if constexpr (kKl) {
        const T d = ref[t] - logp[t];
        ref_kl += kl_term(on[t] != 0 ? d : T(0), in.k1, in.k2, in.k3).value;
      }
    }
    sums.loss += double(loss) + double(ref_kl), sums.tokens += tokens;
    sums.clipped_low += low, sums.clipped_high += high;
    sums.ratio += ratio, sums.ratio_max = ratio_max > sums.ratio_max ? ratio_max : sums.ratio_max;
    sums.approx_kl += approx_kl, sums.ref_kl += ref_kl;
  }
  *out = {T(sums.loss),  T(sums.tokens),    T(sums.clipped_low), T(sums.clipped_high),
          T(sums.ratio), T(sums.ratio_max), T(sums.approx_kl),   T(sums.ref_kl)};
}

template <class T, PolicyKind kKind, bool kKl, bool kPerRow>
WARPUP_CLONES void policy_gradient(const Piece<T, kKl> in, int64_t n, T scale, T* __restrict grad) {
  T on[kRun];
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t len = n - begin < kRun ? n - begin : kRun;
    widen(in.mask + begin, len, on);
    const T *logp = in.logp + begin, *old = in.old + begin, *advantages = in.advantages + (kPerRow ? 0 : begin);
    const T* ref = kKl ? in.ref + begin : nullptr;
    T* __restrict out = grad + begin;
#pragma omp simd
    for (int64_t t = 0; t < len; ++t) {
      const T a = advantages[kPerRow ? 0 : t], lr = logp[t] - old[t];
      const T advantage = on[t] != 0 ? a : T(0), log_ratio = on[t] != 0 ? lr : T(0);
      T g = policy_term<kKind>(log_ratio, advantage, in.low, in.high).grad;  // 0 where the advantage is
      if constexpr (kKl) {
        const T d = ref[t] - logp[t];
        g += on[t] * kl_term(on[t] != 0 ? d : T(0), in.k1, in.k2, in.k3).grad;
      }
      out[t] = scale * g;
    }
  }
}

namespace {

// Calls body.template operator()<kind, with KL, one advantage a row>() for the runtime values.
template <class T, class Body>
void dispatch_kind(const PolicyLossArgs<T>& args, const Body& body) {
  const auto with_kl = [&]<bool kPerRow>() {
    args.ref_logp ? body.template operator()<PolicyKind::clip, true, kPerRow>()
                  : body.template operator()<PolicyKind::clip, false, kPerRow>();
  };
  args.advantage_step == 0 ? with_kl.template operator()<true>() : with_kl.template operator()<false>();
}

template <class T, class Body>
void for_each_piece(const PolicyLossArgs<T>& args, const Body& body) {
  const int64_t pieces = (args.length + kPolicyPiece - 1) / kPolicyPiece;
  const int64_t grain = std::max<int64_t>(1, kPolicyPiece / std::max<int64_t>(1, std::min(args.length, kPolicyPiece)));
  parallel_for(0, args.batch * pieces, grain, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t b = p / pieces, begin = p % pieces * kPolicyPiece;
      body(p, b, begin, std::min(kPolicyPiece, args.length - begin));
    }
  });
}

}  // namespace

template <class T>
void policy_loss_cpu(const PolicyLossArgs<T>& args) {
  auto* partials = reinterpret_cast<PolicySums<T>*>(args.partials);
  dispatch_kind(args, [&]<PolicyKind kKind, bool kKl, bool kPerRow>() {
    for_each_piece(args, [&](int64_t p, int64_t b, int64_t begin, int64_t n) {
      policy_piece<T, kKind, kKl, kPerRow>(Piece<T, kKl>(args, b, begin), n, partials + p);
    });
  });
  PolicyTotals totals{};
  for (int64_t b = 0; b < args.batch; ++b) totals = add(totals, row_totals(args, b));
  const double denominator = denominator_of(args, totals);
  for (int64_t b = 0; b < args.batch; ++b) write_row_weight(args, b, denominator);
  write_results(args, totals, denominator);
}

template <class T>
void policy_loss_backward_cpu(const PolicyLossBackwardArgs<T>& args) {
  const PolicyLossArgs<T>& f = args.forward;
  const T grad_loss = *args.grad_loss;
  dispatch_kind(f, [&]<PolicyKind kKind, bool kKl, bool kPerRow>() {
    for_each_piece(f, [&](int64_t, int64_t b, int64_t begin, int64_t n) {
      policy_gradient<T, kKind, kKl, kPerRow>(Piece<T, kKl>(f, b, begin), n, grad_loss * f.row_weight[b],
                                              args.grad_logp + b * f.length + begin);
    });
  });
}

#define INSTANTIATE(T)                                             \
  template void policy_loss_cpu<T>(const PolicyLossArgs<T>& args); \
  template void policy_loss_backward_cpu<T>(const PolicyLossBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
