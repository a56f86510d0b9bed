// CUDA kernel of policy_loss. Forward: a block for each piece of a row writes the sums of its tokens; where the ratio
// is a row's and rows are longer than a piece, a pass before it sums what that ratio is made of; one last block adds
// the pieces up, always in the order of the rows. Backward: elementwise.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "policy/policy_loss.h"
#include "policy/policy_loss_reduce.h"

namespace warpup {
namespace {

constexpr int kThreads = 256;

// The ratio, the loss and the slopes of one token under the mask.
template <class T, PolicyFormula kFormula>
struct Token {
  T log_ratio, r, ratio;  // r: the token's own; ratio: the formula's
  PolicyTerm<T> policy;   // weighted
  KlTerm<T> kl;           // of the KL that is added to it, without its coefficient
  T kl_ratio;             // that corrects the KL, or 1
  T upstream;             // of the token's loss, so of all that adds to it; 1 where there is none
  bool open;              // the slope that the row's tokens share flows to it

  __device__ Token(const PolicyLossArgs<T>& a, int64_t b, int64_t t, T positive, T negative, T row_slope) {
    const auto at = [&](const PolicyStream<T>& s) { return s.row(a.layout, b)[t * s.step]; };
    const T logp = at(a.logp), advantage = at(a.advantages);
    log_ratio = logp - at(a.old_logp);
    r = exp_held(log_ratio);
    ratio = !by_row(a.level) ? r : advantage < 0 ? negative : positive;
    policy = policy_term<kFormula>(ratio, log_ratio, logp, advantage, PolicyBounds<T>(a.params));
    open = kFormula != PolicyFormula::geometric || (advantage != 0 && policy.clipped_low + policy.clipped_high == 0);
    if (a.penalty && log_ratio != 0) {
      const T c = log_ratio < 0 ? -at(a.penalty) : at(a.penalty);
      policy.loss += c * log_ratio, policy.slope += c;
    }
    if (const T slope = T(a.params.proximal) * log_ratio; slope != 0) {
      policy.loss += T(0.5) * slope * log_ratio, policy.slope += slope;
    }
    if (a.weights && a.level != PolicyLevel::gamma) {  // there they are in the ratio
      const T w = at(a.weights);
      policy.loss *= w, policy.slope *= w;
    }
    kl = {T(0), T(0), T(0)}, kl_ratio = T(1);
    if (a.ref_logp) kl = kl_term(at(a.ref_logp) - logp, kl_weights<T>(a.params));
    if (a.ref_kl) kl.value += at(a.ref_kl), kl.corrected += at(a.ref_kl);
    if (a.kl_corrected) {
      kl_ratio = corrects_by_row(a.level) ? ratio : r;
      if (corrects_by_own(a.level, row_slope)) kl.slope = kl.corrected;
      kl.value *= kl_ratio, kl.slope *= kl_ratio;
      const T coef = T(a.params.kl_coef);
      // A KL that counts has a gradient through the row's ratio too.
      if (coef != 0 && a.level == PolicyLevel::sequence) policy.slope += coef * kl.value;
    }
    upstream = a.upstream ? at(a.upstream) : T(1);
    policy.loss *= upstream, policy.slope *= upstream, kl.value *= upstream, kl.slope *= upstream;
  }
};

template <class T>
__device__ bool counts(const PolicyLossArgs<T>& a, int64_t b, int64_t t) {
  return a.mask.row(a.layout, b)[t] != 0;
}

struct Add {
  template <class Acc>
  __device__ PolicySums<Acc> operator()(const PolicySums<Acc>& a, const PolicySums<Acc>& b) const {
    return add(a, b);
  }
  template <class Acc>
  __device__ RowSums<Acc> operator()(const RowSums<Acc>& a, const RowSums<Acc>& b) const {
    return {a.sum + b.sum, a.tokens + b.tokens};
  }
  __device__ PolicyTotals operator()(const PolicyTotals& a, const PolicyTotals& b) const { return add(a, b); }
};

// The sum of row_term over a piece, and its tokens, for every thread of the block.
template <class T>
__device__ RowSums<T> sum_of_row_terms(const PolicyLossArgs<T>& args, const PolicyLayout::Piece& piece) {
  const bool weighted = args.level == PolicyLevel::gamma && args.weights && args.weights.step;
  RowSums<T> sums{};
  for (int64_t t = piece.begin + threadIdx.x; t < piece.begin + piece.count; t += kThreads) {
    if (!counts(args, piece.row, t)) continue;
    const auto at = [&](const PolicyStream<T>& s) { return s.row(args.layout, piece.row)[t * s.step]; };
    sums.sum +=
        row_term(args.level, at(args.logp) - at(args.old_logp), at(args.advantages), PolicyBounds<T>(args.params));
    if (weighted) sums.sum += gamma_term(at(args.weights));
    sums.tokens += T(1);
  }
  return block_reduce<kThreads>(sums, Add{});
}

// Of rows that are more than one piece.
template <class T>
__global__ __launch_bounds__(kThreads) void policy_loss_rows_kernel(const PolicyLossArgs<T> args) {
  const PolicyLayout::Piece piece = args.layout.piece(blockIdx.x);
  if (args.layout.one_piece(piece.row)) return;
  const RowSums<T> sums = sum_of_row_terms(args, piece);
  if (threadIdx.x == 0) row_sums_of(args, blockIdx.x) = sums;
}

template <class T, PolicyFormula kFormula>
__global__ __launch_bounds__(kThreads) void policy_loss_kernel(const PolicyLossArgs<T> args) {
  const PolicyLayout::Piece piece = args.layout.piece(blockIdx.x);

  // The ratio of the row, or 1 where each token has its own.
  __shared__ T shared[2];
  if (sums_rows(args.level)) {
    RowSums<T> own{};
    if (args.layout.one_piece(piece.row)) own = sum_of_row_terms(args, piece);
    if (threadIdx.x == 0) {
      const RowRatio ratio = ratio_of_row(args, piece.row, {double(own.sum), double(own.tokens)});
      shared[0] = T(ratio.positive), shared[1] = T(ratio.negative);
      if (piece.begin == 0) write_row_ratio(args, piece.row, ratio);
    }
  } else if (threadIdx.x == 0) {
    shared[0] = shared[1] = T(1);
    if (piece.begin == 0) write_row_ratio(args, piece.row, {1, 1, 1});
  }
  __syncthreads();
  const T positive = shared[0], negative = shared[1];

  // The sums of the tokens.
  PolicySums<T> sums{};
  T* losses = args.losses ? args.losses + args.layout.first_token(piece.row) : nullptr;
  for (int64_t t = piece.begin + threadIdx.x; t < piece.begin + piece.count; t += kThreads) {
    if (!counts(args, piece.row, t)) {
      if (losses) losses[t] = T(0);
      continue;
    }
    const Token<T, kFormula> token(args, piece.row, t, positive, negative, T(1));
    const PolicyTerm<T>& p = token.policy;
    const T kl_coef = T(args.params.kl_coef), entropy_coef = T(args.params.entropy_coef);
    const T entropy = args.entropy ? args.entropy.row(args.layout, piece.row)[t] * token.upstream : T(0);
    T loss = p.loss;
    if (kl_coef != 0) loss += kl_coef * token.kl.value;  // what is only measured may be infinite
    if (entropy_coef != 0) loss -= entropy_coef * entropy;
    if (losses) losses[t] = loss;
    sums = add(sums, {loss, T(1), p.clipped_low, p.clipped_high, p.dual, token.ratio, token.ratio,
                      token.r - T(1) - token.log_ratio, token.kl.value, entropy, p.slope});
  }
  sums = block_reduce<kThreads>(sums, Add{});
  if (threadIdx.x == 0) sums_of(args, blockIdx.x) = sums;
}

template <class T>
__global__ __launch_bounds__(kThreads) void policy_loss_total_kernel(const PolicyLossArgs<T> args) {
  PolicyTotals totals{};
  for (int64_t b = threadIdx.x; b < args.layout.batch; b += kThreads) totals = add(totals, row_totals(args, b));
  totals = block_reduce<kThreads>(totals, Add{});
  const double denominator = denominator_of(args, totals);
  for (int64_t b = threadIdx.x; b < args.layout.batch; b += kThreads) write_row_weight(args, b, denominator);
  if (threadIdx.x == 0) write_results(args, totals, denominator);
}

template <class T, PolicyFormula kFormula>
__global__ __launch_bounds__(kThreads) void policy_loss_backward_kernel(const PolicyLossBackwardArgs<T> args) {
  const PolicyLossArgs<T>& f = args.forward;
  const PolicyLayout::Piece piece = f.layout.piece(blockIdx.x);
  const T* state = f.row_state + piece.row * kPolicyState;
  const T scale = *args.grad_loss * state[kWeight], slope = state[kSlope];
  const int64_t row = f.layout.first_token(piece.row);
  for (int64_t t = piece.begin + threadIdx.x; t < piece.begin + piece.count; t += kThreads) {
    T grad = T(0), linear = T(0), kl_ratio = T(1);
    if (counts(f, piece.row, t)) {
      const Token<T, kFormula> token(f, piece.row, t, state[kRatio], state[kRatioNegative], slope);
      const T policy = spreads(f.level) ? (token.open ? slope : T(0)) : slope * token.policy.slope;
      grad = scale * (policy + T(f.params.kl_coef) * token.kl.slope), linear = scale * token.upstream;
      kl_ratio = token.kl_ratio;
    }
    args.grad_logp[row + t] = grad;
    if (args.grad_ref_kl) args.grad_ref_kl[row + t] = linear * T(f.params.kl_coef) * kl_ratio;
    if (args.grad_entropy) args.grad_entropy[row + t] = -linear * T(f.params.entropy_coef);
  }
}

}  // namespace

// ---- Launchers ------------------------------------------------------------------------------------------------------

template <class T>
void policy_loss_cuda(const PolicyLossArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.layout.slots())), block(kThreads);
  if (sums_rows(args.level) && (args.layout.offsets ? args.layout.total : args.layout.length) > kPolicyPiece) {
    launch("policy_loss_rows", policy_loss_rows_kernel<T>, grid, block, stream, args);
  }
  dispatch_formula(args.formula, [&]<PolicyFormula kFormula>() {
    launch("policy_loss", policy_loss_kernel<T, kFormula>, grid, block, stream, args);
  });
  launch("policy_loss_total", policy_loss_total_kernel<T>, dim3(1), block, stream, args);
}

template <class T>
void policy_loss_backward_cuda(const PolicyLossBackwardArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.forward.layout.slots())), block(kThreads);
  dispatch_formula(args.forward.formula, [&]<PolicyFormula kFormula>() {
    launch("policy_loss_backward", policy_loss_backward_kernel<T, kFormula>, grid, block, stream, args);
  });
}

#define INSTANTIATE(T)                                                            \
  template void policy_loss_cuda<T>(const PolicyLossArgs<T>& args, void* stream); \
  template void policy_loss_backward_cuda<T>(const PolicyLossBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
