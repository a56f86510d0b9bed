// Forward: one block a piece of a row writes its sums; a last block adds them up in row order. Backward: elementwise.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "logprob/policy_loss.h"
#include "logprob/policy_loss_reduce.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

// One token of the batch, masked before anything is computed with it.
template <class T, PolicyKind kKind, bool kKl>
struct Token {
  bool on;
  T log_ratio;
  PolicyTerm<T> policy;
  KlTerm<T> kl;

  __device__ Token(const PolicyLossArgs<T>& a, int64_t b, int64_t t) {
    on = a.mask[b * a.mask_stride + t] != 0;
    const T logp = on ? a.logp[b * a.logp_stride + t] : T(0);
    log_ratio = on ? logp - a.old_logp[b * a.old_logp_stride + t] : T(0);
    const T advantage = on ? a.advantages[b * a.advantages_stride + t * a.advantage_step] : T(0);
    policy = policy_term<kKind>(log_ratio, advantage, T(a.params.clip_low), T(a.params.clip_high));
    kl = {T(0), T(0)};
    if constexpr (kKl) {
      const T d = on ? a.ref_logp[b * a.ref_logp_stride + t] - logp : T(0);
      kl = kl_term(d, T(a.params.kl_k1), T(a.params.kl_k2), T(a.params.kl_k3));
    }
  }
};

struct Add {
  template <class Acc>
  __device__ PolicySums<Acc> operator()(const PolicySums<Acc>& a, const PolicySums<Acc>& b) const {
    return {a.loss + b.loss,
            a.tokens + b.tokens,
            a.clipped_low + b.clipped_low,
            a.clipped_high + b.clipped_high,
            a.ratio + b.ratio,
            a.ratio_max > b.ratio_max ? a.ratio_max : b.ratio_max,
            a.approx_kl + b.approx_kl,
            a.ref_kl + b.ref_kl};
  }
  __device__ PolicyTotals operator()(const PolicyTotals& a, const PolicyTotals& b) const { return add(a, b); }
};

template <class T, PolicyKind kKind, bool kKl>
__global__ __launch_bounds__(kThreads) void policy_loss_kernel(const PolicyLossArgs<T> args, unsigned pieces) {
  const int64_t b = blockIdx.x / pieces, begin = int64_t(blockIdx.x % pieces) * kPolicyPiece;
  const int64_t end = begin + kPolicyPiece < args.length ? begin + kPolicyPiece : args.length;
  PolicySums<T> sums{};
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
    const Token<T, kKind, kKl> token(args, b, t);
    if (!token.on) continue;
    sums = Add{}(sums,
                 {token.policy.loss + token.kl.value, T(1), token.policy.clipped_low, token.policy.clipped_high,
                  token.policy.ratio, token.policy.ratio, token.policy.ratio - T(1) - token.log_ratio, token.kl.value});
  }
  sums = block_reduce<kThreads>(sums, Add{});
  if (threadIdx.x == 0) reinterpret_cast<PolicySums<T>*>(args.partials)[blockIdx.x] = sums;
}

template <class T>
__global__ __launch_bounds__(kThreads) void policy_loss_total_kernel(const PolicyLossArgs<T> args) {
  PolicyTotals totals{};
  for (int64_t b = threadIdx.x; b < args.batch; b += kThreads) totals = add(totals, row_totals(args, b));
  totals = block_reduce<kThreads>(totals, Add{});
  const double denominator = denominator_of(args, totals);
  for (int64_t b = threadIdx.x; b < args.batch; b += kThreads) write_row_weight(args, b, denominator);
  if (threadIdx.x == 0) write_results(args, totals, denominator);
}

template <class T, PolicyKind kKind, bool kKl>
__global__ __launch_bounds__(kThreads) void policy_loss_backward_kernel(const PolicyLossBackwardArgs<T> args,
                                                                        unsigned pieces) {
  const PolicyLossArgs<T>& f = args.forward;
  const int64_t b = blockIdx.x / pieces, begin = int64_t(blockIdx.x % pieces) * kPolicyPiece;
  const int64_t end = begin + kPolicyPiece < f.length ? begin + kPolicyPiece : f.length;
  const T scale = *args.grad_loss * f.row_weight[b];
  for (int64_t t = begin + threadIdx.x; t < end; t += kThreads) {
    const Token<T, kKind, kKl> token(f, b, t);
    args.grad_logp[b * f.length + t] = token.on ? scale * (token.policy.grad + token.kl.grad) : T(0);
  }
}

template <class T, class Body>
void dispatch_kind(const PolicyLossArgs<T>& args, const Body& body) {
  args.ref_logp ? body.template operator()<PolicyKind::clip, true>()
                : body.template operator()<PolicyKind::clip, false>();
}

}  // namespace

template <class T>
void policy_loss_cuda(const PolicyLossArgs<T>& args, void* stream) {
  const auto pieces = static_cast<unsigned>(ceil_div(args.length, kPolicyPiece));
  const dim3 grid(static_cast<unsigned>(args.batch * pieces)), block(kThreads);
  dispatch_kind(args, [&]<PolicyKind kKind, bool kKl>() {
    launch("policy_loss", policy_loss_kernel<T, kKind, kKl>, grid, block, stream, args, pieces);
  });
  launch("policy_loss_total", policy_loss_total_kernel<T>, dim3(1), block, stream, args);
}

template <class T>
void policy_loss_backward_cuda(const PolicyLossBackwardArgs<T>& args, void* stream) {
  const auto pieces = static_cast<unsigned>(ceil_div(args.forward.length, kPolicyPiece));
  const dim3 grid(static_cast<unsigned>(args.forward.batch * pieces)), block(kThreads);
  dispatch_kind(args.forward, [&]<PolicyKind kKind, bool kKl>() {
    launch("policy_loss_backward", policy_loss_backward_kernel<T, kKind, kKl>, grid, block, stream, args, pieces);
  });
}

#define INSTANTIATE(T)                                                            \
  template void policy_loss_cuda<T>(const PolicyLossArgs<T>& args, void* stream); \
  template void policy_loss_backward_cuda<T>(const PolicyLossBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
