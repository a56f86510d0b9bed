#include "arrays/arrays.h"
#include "moe/glu_check.h"
#include "moe/grouped_mm_check.h"
#include "moe/moe_gather_check.h"
#include "moe/moe_plan_check.h"
#include "moe/moe_route_check.h"

namespace warpup {

namespace {

void route(const View& logits, const OptionalView& bias, const OptionalView& replay, const OptionalView& mask,
           const OptionalView& bounds, int64_t k, const std::string& score, bool over_chosen, bool renormalize,
           double epsilon, double scale, int64_t groups, int64_t kept_groups, int64_t group_top, const View& weights,
           const View& indices, const View& counts, const View& mean_score, const View& z_loss, const View& stats,
           const View& lengths, const View& slot_scores, const View& slot_counts) {
  moe_route(logits, bias, replay, mask, bounds, k,
            {.score = score,
             .over_chosen = over_chosen,
             .renormalize = renormalize,
             .epsilon = epsilon,
             .scale = scale,
             .groups = groups,
             .kept_groups = kept_groups,
             .group_top = group_top},
            {.weights = weights,
             .indices = indices,
             .counts = counts,
             .mean_score = mean_score,
             .z_loss = z_loss,
             .stats = stats,
             .lengths = lengths},
            slot_scores, slot_counts);
}

void route_backward(const View& logits, const OptionalView& bounds, const std::string& score, bool over_chosen,
                    bool renormalize, double epsilon, double scale, const View& indices, const View& stats,
                    const View& lengths, const OptionalView& grad_weights, const OptionalView& grad_mean_score,
                    const OptionalView& grad_z_loss, const View& grad_logits) {
  const RouteOptions options{
      .score = score, .over_chosen = over_chosen, .renormalize = renormalize, .epsilon = epsilon, .scale = scale};
  moe_route_backward(logits, bounds, options, indices, stats, lengths, grad_weights, grad_mean_score, grad_z_loss,
                     grad_logits);
}

}  // namespace

WARPUP_ARRAYS(m) {
  m.def("moe_route",
        "The k experts of each token and their weights, and what balance losses need: all from `weights` on is written "
        "(slot_*: scratch).",
        &route, "logits"_a, "bias"_a = py::none(), "replay"_a = py::none(), "mask"_a = py::none(),
        "bounds"_a = py::none(), py::kw_only(), "k"_a, "score"_a = "softmax", "over_chosen"_a = false,
        "renormalize"_a = false, "epsilon"_a = 0.0, "scale"_a = 1.0, "groups"_a = 0, "kept_groups"_a = 0,
        "group_top"_a = 0, "weights"_w, "indices"_w, "counts"_w, "mean_score"_w, "z_loss"_w, "stats"_w, "lengths"_w,
        "slot_scores"_w, "slot_counts"_w);
  m.def("moe_route_backward", "Its gradient to the logits: grad_logits is written.", &route_backward, "logits"_a,
        "bounds"_a = py::none(), py::kw_only(), "score"_a = "softmax", "over_chosen"_a = false, "renormalize"_a = false,
        "epsilon"_a = 0.0, "scale"_a = 1.0, "indices"_a, "stats"_a, "lengths"_a, "grad_weights"_a = py::none(),
        "grad_mean_score"_a = py::none(), "grad_z_loss"_a = py::none(), "grad_logits"_w);
  m.def("moe_plan",
        "Copies of tokens sorted by expert: counts, offsets, permutation and inverse are written (chunks: scratch).",
        &moe_plan, "indices"_a, py::kw_only(), "block"_a = 1, "counts"_w, "offsets"_w, "permutation"_w, "inverse"_w,
        "chunks"_w);
  m.def("moe_gather",
        "A row a copy of a token, in the order of a plan: out is written; with weights and y, grad_weights too, which "
        "is the backward of moe_combine.",
        &moe_gather, "x"_a, "permutation"_a, "inverse"_a, "weights"_a = py::none(), "y"_a = py::none(), py::kw_only(),
        "out"_w, "grad_weights"_w = py::none());
  m.def("moe_combine",
        "The weighted sum of each token's rows: out is written. Without weights it is the backward of moe_gather.",
        &moe_combine, "y"_a, "weights"_a = py::none(), py::kw_only(), "inverse"_a, "out"_w);
  m.def("glu", "The gated activation of rows that hold gate and up: a is written.", &glu, "h"_a,
        "weights"_a = py::none(), "permutation"_a = py::none(), py::kw_only(), "activation"_a = "silu", "a"_w);
  m.def("glu_backward", "Its gradient: grad_h is written; grad_weights and a, too, where they are given.",
        &glu_backward, "h"_a, "weights"_a = py::none(), "permutation"_a = py::none(), py::kw_only(),
        "activation"_a = "silu", "grad_a"_a, "grad_h"_w, "grad_weights"_w = py::none(), "a"_w = py::none());
  m.def("grouped_mm",
        "A product a group in float32, bfloat16 or float16 on a CPU, rows sorted by group; layout nt, nn or tn as BLAS "
        "names it: out is "
        "written.",
        &grouped_mm, "a"_a, "b"_a, "offsets"_a, "a_rows"_a = py::none(), "b_rows"_a = py::none(), py::kw_only(),
        "layout"_a = "nt", "out"_w);
}

}  // namespace warpup
