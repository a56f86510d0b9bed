// CPU kernel of policy_loss. A piece is walked in runs that fit the L1 cache, each run in stages: policy_loss_runs.h.
#include <algorithm>

#include "core/parallel.h"
#include "policy/policy_loss.h"
#include "policy/policy_loss_reduce.h"
#include "policy/policy_loss_runs.h"

namespace warpup {
namespace {

// ---- Pieces and rows ------------------------------------------------------------------------------------------------

// Calls body(first token, count) for the runs of a piece.
template <class Body>
void for_each_run(const PolicyLayout::Piece& piece, const Body& body) {
  for (int64_t begin = 0; begin < piece.count; begin += kRun) {
    body(piece.begin + begin, std::min(kRun, piece.count - begin));
  }
}

// All stages but the last, which sums (forward) or writes gradients (backward).
template <PolicyFormula kFormula, bool kForward, class T>
void evaluate(const PolicyLossArgs<T>& args, const Inputs<T>& in, const T* state, int64_t n, Run<T>* run,
              PolicySums<T>* sums) {
  load_run(in, n, run);
  policy_run<T, kFormula, kForward>(in.logp, n, by_row(args.level), state[kRatio], state[kRatioNegative],
                                    PolicyBounds<T>(args.params), run, sums);
  const T* weights = args.level == PolicyLevel::gamma ? nullptr : in.weights;  // there they are in the ratio
  const T proximal = T(args.params.proximal);
  if (in.penalty || proximal != 0 || weights) weigh_run(in.penalty, proximal, weights, in.row_weight, n, run);
  const bool own = args.kl_corrected && corrects_by_own(args.level, state[kSlope]);
  if (in.ref) {
    kl_run(in.logp, in.ref, n, own, kl_weights<T>(args.params), run);
  } else {
    std::fill_n(run->kl, n, T(0)), std::fill_n(run->kl_slope, n, T(0));
  }
  if (in.ref_kl || args.kl_corrected) {
    const bool by_row = corrects_by_row(args.level), shared = args.level == PolicyLevel::sequence;
    add_kl_run(in.ref_kl, T(args.params.kl_coef), args.kl_corrected, by_row, own, shared, n, run);
  }
  const bool entropy = kForward && in.entropy;
  if (entropy) entropy_run(in.entropy, n, run);
  if (in.upstream) upstream_run(in.upstream, entropy, n, run);
}

template <class T>
RowSums<double> sum_of_row_terms(const PolicyLossArgs<T>& args, const PolicyLayout::Piece& piece) {
  Run<T> run;
  RowSums<double> sums{};
  for_each_run(piece, [&](int64_t begin, int64_t n) {
    const Inputs<T> in(args, piece.row, begin);
    load_run(in, n, &run);
    const PolicyBounds<T> bounds(args.params);
    const RowSums<double> s = args.level == PolicyLevel::gamma ? row_run<T, PolicyLevel::gamma>(run, n, bounds)
                              : args.level == PolicyLevel::geometric
                                  ? row_run<T, PolicyLevel::geometric>(run, n, bounds)
                                  : row_run<T, PolicyLevel::sequence>(run, n, bounds);
    sums.sum += s.sum, sums.tokens += s.tokens;
    if (args.level != PolicyLevel::gamma || !in.weights || in.row_weight) return;
    for (int64_t t = 0; t < n; ++t) sums.sum += run.on[t] != 0 ? double(gamma_term(in.weights[t])) : 0.0;
  });
  return sums;
}

template <PolicyFormula kFormula, class T>
PolicySums<T> forward_piece(const PolicyLossArgs<T>& args, const PolicyLayout::Piece& piece, const T* state) {
  Run<T> run;
  PolicySums<double> sums{};
  for_each_run(piece, [&](int64_t begin, int64_t n) {
    const Inputs<T> in(args, piece.row, begin);
    PolicySums<T> s;
    evaluate<kFormula, true>(args, in, state, n, &run, &s);
    const T entropy_coef = T(args.params.entropy_coef), kl_coef = T(args.params.kl_coef);
    sum_run(in.entropy != nullptr, entropy_coef, kl_coef, n, run, &s);
    if (args.losses) {
      write_losses(entropy_coef, kl_coef, n, run, args.losses + args.layout.first_token(piece.row) + begin);
    }
    sums = add(sums, cast<double>(s));
  });
  return cast<T>(sums);
}

template <PolicyFormula kFormula, class T>
void backward_piece(const PolicyLossBackwardArgs<T>& args, const PolicyLayout::Piece& piece) {
  const PolicyLossArgs<T>& f = args.forward;
  const T* state = f.row_state + piece.row * kPolicyState;
  const T scale = *args.grad_loss * state[kWeight];
  const int64_t row = f.layout.first_token(piece.row);
  Run<T> run;
  for_each_run(piece, [&](int64_t begin, int64_t n) {
    const Inputs<T> in(f, piece.row, begin);
    evaluate<kFormula, false>(f, in, state, n, &run, static_cast<PolicySums<T>*>(nullptr));
    write_run(scale, T(f.params.kl_coef), state, spreads(f.level), kFormula == PolicyFormula::geometric, n, run,
              args.grad_logp + row + begin);
    const T* q = !f.kl_corrected ? nullptr : corrects_by_row(f.level) ? run.ratio : run.r;
    if (args.grad_ref_kl) {
      write_linear(scale * T(f.params.kl_coef), q, in.upstream, n, run, args.grad_ref_kl + row + begin);
    }
    if (args.grad_entropy) {
      write_linear(-scale * T(f.params.entropy_coef), static_cast<const T*>(nullptr), in.upstream, n, run,
                   args.grad_entropy + row + begin);
    }
  });
}

template <class Body>
void for_each_piece(const PolicyLayout& layout, const Body& body) {
  const int64_t slots = layout.slots();
  const int64_t tokens = layout.offsets ? layout.total : layout.batch * layout.length;
  const int64_t grain = std::max<int64_t>(1, kPolicyPiece / std::max<int64_t>(1, tokens / std::max<int64_t>(1, slots)));
  parallel_for(0, slots, grain, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) body(slot, layout.piece(slot));
  });
}

}  // namespace

template <class T>
void policy_loss_cpu(const PolicyLossArgs<T>& args) {
  const bool rows = sums_rows(args.level);

  // Rows of more than one piece: the sums that their ratio is made of.
  if (rows && (args.layout.offsets ? args.layout.total : args.layout.length) > kPolicyPiece) {
    for_each_piece(args.layout, [&](int64_t slot, const PolicyLayout::Piece& piece) {
      if (args.layout.one_piece(piece.row)) return;  // summed below, where its tokens are in the cache anyway
      const RowSums<double> sums = sum_of_row_terms(args, piece);
      row_sums_of(args, slot) = {T(sums.sum), T(sums.tokens)};
    });
  }

  // Each piece: the ratio of its row, then the sums of its tokens.
  dispatch_formula(args.formula, [&]<PolicyFormula kFormula>() {
    for_each_piece(args.layout, [&](int64_t slot, const PolicyLayout::Piece& piece) {
      T state[kPolicyState] = {T(1), T(1), T(1), T(1)};
      RowRatio ratio{1, 1, 1};
      if (rows) {
        const bool alone = args.layout.one_piece(piece.row);
        ratio = ratio_of_row(args, piece.row, alone ? sum_of_row_terms(args, piece) : RowSums<double>{});
        state[kRatio] = T(ratio.positive), state[kRatioNegative] = T(ratio.negative);
      }
      if (piece.begin == 0) write_row_ratio(args, piece.row, ratio);
      sums_of(args, slot) = forward_piece<kFormula>(args, piece, state);
    });
  });

  // Pieces to rows, rows to the loss.
  PolicyTotals totals{};
  for (int64_t b = 0; b < args.layout.batch; ++b) totals = add(totals, row_totals(args, b));
  const double denominator = denominator_of(args, totals);
  for (int64_t b = 0; b < args.layout.batch; ++b) write_row_weight(args, b, denominator);
  write_results(args, totals, denominator);
}

template <class T>
void policy_loss_backward_cpu(const PolicyLossBackwardArgs<T>& args) {
  dispatch_formula(args.forward.formula, [&]<PolicyFormula kFormula>() {
    for_each_piece(args.forward.layout,
                   [&](int64_t, const PolicyLayout::Piece& piece) { backward_piece<kFormula>(args, piece); });
  });
}

#define INSTANTIATE(T)                                             \
  template void policy_loss_cpu<T>(const PolicyLossArgs<T>& args); \
  template void policy_loss_backward_cpu<T>(const PolicyLossBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
