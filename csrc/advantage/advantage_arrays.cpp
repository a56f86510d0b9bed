#include "advantage/gae_check.h"
#include "advantage/group_advantage_check.h"
#include "advantage/masked_whiten_check.h"
#include "advantage/role_advantage_check.h"
#include "advantage/tree_advantage_check.h"
#include "arrays/arrays.h"

namespace warpup {

WARPUP_ARRAYS(m) {
  m.def("group_plan",
        "Rows by id: order [N] and offsets [N + 1] are written, group g is order[offsets[g]:offsets[g + 1]]. CPU only.",
        &group_plan, "ids"_a, py::kw_only(), "order"_w, "offsets"_w);
  m.def(
      "group_advantage",
      "Advantages of rewards [N] over those of their group: advantages [N] are written and, where all five are given, "
      "the statistics of each group. Groups: group_size rows each, or offsets [G + 1] into rewards[order].",
      &group_advantage, "rewards"_a, "offsets"_a = py::none(), "order"_a = py::none(), "lengths"_a = py::none(),
      "batch"_a = py::none(), py::kw_only(), "group_size"_a = 0, "baseline"_a = "mean", "scale"_a = "std",
      "eps"_a = 1e-4, "correction"_a = 1, "singleton"_a = "zero", "advantages"_w, "count"_w = py::none(),
      "mean"_w = py::none(), "std"_w = py::none(), "mean_abs"_w = py::none(), "zero_variance"_w = py::none());
  m.def("role_advantage",
        "Rewards [N] against a running baseline of their role: advantages [N] and new_state [K] are written.",
        &role_advantage, "rewards"_a, "roles"_a, "baseline_state"_a, py::kw_only(), "decay"_a = 0.95, "advantages"_w,
        "new_state"_w);
  m.def(
      "gae",
      "Advantages over the tokens of each row, from the right: advantages [B, T] and, with values, returns [B, T] are "
      "written. decay is gamma times lambda; without values and with decay gamma it is the reward-to-go.",
      &gae, "rewards"_a, "values"_a, "mask"_a, "bootstrap"_a = py::none(), py::kw_only(), "gamma"_a, "decay"_a,
      "cut"_a = false, "advantages"_w, "returns"_w = py::none());
  m.def("masked_moments",
        "Count, mean, variance of what the mask keeps, and whether all is equal: moments [4] float64 are written, "
        "partials [ceil(N / 4096), 5] float64 are scratch.",
        &masked_moments, "x"_a, "mask"_a = py::none(), py::kw_only(), "skip_nan"_a = false, "correction"_a = 1,
        "partials"_w, "moments"_w);
  m.def("masked_whiten",
        "x to mean 0 and variance 1 over the mask: out, which may be x itself, and moments [4] are written, partials "
        "are scratch as for masked_moments.",
        &masked_whiten, "x"_a, "mask"_a = py::none(), py::kw_only(), "shift_mean"_a = true, "correction"_a = 1,
        "eps"_a = 1e-8, "out"_w, "partials"_w, "moments"_w);
  m.def("tree_advantage",
        "Value of each node of a forest, from the rewards [M] of its leaves: values [M] are written, settled [M] uint8 "
        "is scratch. The children of a node are children[begin:end].",
        &tree_advantage, "rewards"_a, "children"_a, "begin"_a, "end"_a, py::kw_only(), "values"_w, "settled"_w);
}

}  // namespace warpup
