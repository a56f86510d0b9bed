#include "arrays/arrays.h"
#include "interval/interval_activation_check.h"
#include "interval/interval_batch_norm_check.h"
#include "interval/interval_linear_check.h"
#include "interval/interval_softmax_check.h"
#include "interval/margin_bounds_check.h"

namespace warpup {
namespace {

using Optional = OptionalView;

void batch_norm(View center, View radius, Optional clean, Optional mean, Optional var, Optional weight, Optional bias,
                int64_t source, double eps, bool relu, bool sound, Optional partials, Optional scale, Optional shift,
                View out_center, View out_radius, Optional out_clean, Optional sum_partials, Optional sums) {
  interval_batch_norm(center, radius, clean, {mean, var, weight, bias, eps}, source, relu, sound, partials, scale,
                      shift, out_center, out_radius, out_clean, sum_partials, sums);
}

void batch_norm_backward(Optional grad_center, Optional grad_radius, Optional grad_clean, View center, View radius,
                         Optional clean, bool from_outputs, Optional mean, Optional var, Optional weight, Optional bias,
                         int64_t source, double eps, bool relu, Optional added, Optional partials, Optional totals,
                         Optional scale, Optional shift, View out_center, View out_radius, Optional out_clean,
                         Optional out_weight, Optional out_bias) {
  interval_batch_norm_backward({grad_center, grad_radius, grad_clean}, center, radius, clean, from_outputs,
                               {mean, var, weight, bias, eps}, scale, shift, source, relu, added, partials, totals,
                               out_center, out_radius, out_clean, out_weight, out_bias);
}

}  // namespace

WARPUP_ARRAYS(m) {
  m.def("margin_bounds",
        "Lower bounds of the label's logit minus each other one over a box: bounds [B, K - 1] and, where given, the "
        "worst case's cross-entropy loss [B] and, for the backward, share [B, K - 1] are written.",
        &margin_bounds, "center"_a, "radius"_a, "weight"_a, "bias"_a = py::none(), py::kw_only(), "labels"_a,
        "bounds"_w, "loss"_w = py::none(), "share"_w = py::none());
  m.def("margin_bounds_backward",
        "Its gradients: grad_center, grad_radius, grad_weight and grad_bias are written. grad_loss needs the share.",
        &margin_bounds_backward, "center"_a, "radius"_a, "weight"_a, "labels"_a, "share"_a = py::none(), py::kw_only(),
        "grad_bounds"_a = py::none(), "grad_loss"_a = py::none(), "grad_center"_w, "grad_radius"_w, "grad_weight"_w,
        "grad_bias"_w);
  m.def(
      "interval_activation",
      "A box through an element-wise function, and a plain array beside it: out_center, out_radius and, where clean "
      "is given, out_clean are written. kind: sigmoid, tanh, gelu, gelu_tanh, silu, hardswish, leaky_relu (a: slope), "
      "elu (a: alpha), softplus, exp or clamp (a, b: ends).",
      &interval_activation, "center"_a, "radius"_a, "clean"_a = py::none(), py::kw_only(), "kind"_a, "a"_a = 0.0,
      "b"_a = 0.0, "out_center"_w, "out_radius"_w, "out_clean"_w = py::none());
  m.def("interval_activation_backward", "Its gradients: grad_center, grad_radius and grad_clean are written.",
        &interval_activation_backward, "center"_a, "radius"_a, "clean"_a = py::none(), py::kw_only(), "kind"_a,
        "a"_a = 0.0, "b"_a = 0.0, "grad_out_center"_a, "grad_out_radius"_a, "grad_out_clean"_a = py::none(),
        "grad_center"_w, "grad_radius"_w, "grad_clean"_w = py::none());
  m.def("interval_softmax",
        "The tightest box of each softmax probability, over the last dimension: out_center and out_radius are written.",
        &interval_softmax, "center"_a, "radius"_a, py::kw_only(), "out_center"_w, "out_radius"_w);
  m.def("interval_softmax_backward", "Its gradients: grad_center and grad_radius are written.",
        &interval_softmax_backward, "center"_a, "radius"_a, py::kw_only(), "grad_out_center"_a, "grad_out_radius"_a,
        "grad_center"_w, "grad_radius"_w);
  m.def("interval_batch_norm",
        "A box [outer, channels, inner], and a plain array beside it, through batch normalization (where mean, var, "
        "scale and shift are given) and ReLU (where asked): out_center, out_radius, out_clean are written. source: "
        "whose statistics are taken, and written to mean and var: 0 center's, 2 clean's, -1 none, they are read. "
        "partials [chunks, channels, 2] is scratch, a chunk being 32 rows where inner is 1, else up to 4096 elements "
        "of a row. sums [8], with sum_partials [1024, 8]: of the box before the ReLU.",
        &batch_norm, "center"_a, "radius"_a, "clean"_a = py::none(), py::kw_only(), "mean"_w = py::none(),
        "var"_w = py::none(), "weight"_a = py::none(), "bias"_a = py::none(), "source"_a = -1, "eps"_a = 1e-5,
        "relu"_a = false, "sound"_a = false, "partials"_w = py::none(), "scale"_w = py::none(), "shift"_w = py::none(),
        "out_center"_w, "out_radius"_w, "out_clean"_w = py::none(), "sum_partials"_w = py::none(),
        "sums"_w = py::none());
  m.def("interval_batch_norm_backward",
        "Its gradients: out_center, out_radius, out_clean, out_weight and out_bias are written. from_outputs: center "
        "and radius are what the ReLU gave. added [6]: what the sums' gradients add.",
        &batch_norm_backward, "grad_center"_a, "grad_radius"_a, "grad_clean"_a = py::none(), py::kw_only(), "center"_a,
        "radius"_a, "clean"_a = py::none(), "from_outputs"_a = false, "mean"_a = py::none(), "var"_a = py::none(),
        "weight"_a = py::none(), "bias"_a = py::none(), "source"_a = -1, "eps"_a = 1e-5, "relu"_a = false,
        "added"_a = py::none(), "partials"_w = py::none(), "totals"_w = py::none(), "scale"_a = py::none(),
        "shift"_a = py::none(), "out_center"_w, "out_radius"_w, "out_clean"_w = py::none(), "out_weight"_w = py::none(),
        "out_bias"_w = py::none());
  m.def("interval_linear_sign_", "gradient = base + sign(weight) gradient, in place; base may be left out: 0.",
        &interval_linear_sign, "gradient"_w, "weight"_a, "base"_a = py::none());
  m.def("interval_linear_exact",
        "What the exact hull of a product of two boxes has less than midpoint-radius arithmetic: shift and excess "
        "[rows, columns] of a [rows, width] and b [columns, width] are written.",
        &interval_linear_exact, "a_center"_a, "a_radius"_a, "b_center"_a, "b_radius"_a, py::kw_only(), "shift"_w,
        "excess"_w);
  m.def("interval_linear_exact_backward",
        "Its gradients to a: out_center and out_radius are written. transposed: the gradients lie [columns, rows].",
        &interval_linear_exact_backward, "a_center"_a, "a_radius"_a, "b_center"_a, "b_radius"_a, "grad_shift"_a,
        "grad_excess"_a, py::kw_only(), "transposed"_a = false, "out_center"_w, "out_radius"_w);
}

}  // namespace warpup
