// The pybind11 module: build information, and every entry on arrays of any framework, outputs given by the caller.
// Nothing here knows torch; torch tensors come in through DLPack like all others.
#include "arrays/arrays.h"

#include <pybind11/stl.h>

#include "core/cpu.h"
#include "core/parallel.h"
#include "interval/interval_activation_check.h"
#include "interval/interval_check.h"
#include "interval/interval_margin_check.h"
#include "moe/grouped_product_check.h"
#include "moe/moe_gather_check.h"
#include "moe/moe_glu_check.h"
#include "moe/moe_route_check.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace warpup {

namespace {

std::vector<ArraysRegistration::Register>& registrations() {
  static std::vector<ArraysRegistration::Register> all;  // made at its first use: files register in any order
  return all;
}

py::dict build_info() {
  py::dict info;
  info["version"] = WARPUP_VERSION;
  info["cpu"] = instruction_set();
  info["compiler"] = WARPUP_COMPILER;
#ifdef WARPUP_WITH_CUDA
  info["cuda_archs"] = WARPUP_CUDA_ARCHS;
  info["cuda_toolkit"] = WARPUP_CUDA_TOOLKIT;
#else
  info["cuda_archs"] = py::none();
  info["cuda_toolkit"] = py::none();
#endif
  info["threads"] = thread_pool.load()->name;
  info["torch_headers"] = WARPUP_TORCH_HEADERS;
  return info;
}

}  // namespace

ArraysRegistration::ArraysRegistration(Register function) { registrations().push_back(function); }

}  // namespace warpup

PYBIND11_MODULE(arrays, m) {
  // Entries touch no Python object: other threads may run meanwhile.
  const auto def = [&m](const char* name, auto entry, const auto&... arguments) {
    m.def(name, entry, py::call_guard<py::gil_scoped_release>(), arguments...);
  };
  m.doc() =
      "warpup kernels on DLPack arrays; outputs are given by the caller. See csrc/<family>/<op>.h for each contract.";
  m.def("build_info", &warpup::build_info);
  warpup::Arrays arrays(m);
  for (const auto add : warpup::registrations()) add(arrays);

  using View = const warpup::View&;
  using Optional = const warpup::OptionalView&;

  def("margin_bounds", &warpup::margin_bounds, "center"_a, "radius"_a, "weight"_a, "bias"_a = py::none(), "labels"_a,
      py::kw_only(), "bounds"_a, "loss"_a = py::none(), "share"_a = py::none());
  def("margin_bounds_backward", &warpup::margin_bounds_backward, "center"_a, "radius"_a, "weight"_a, "labels"_a,
      "share"_a = py::none(), py::kw_only(), "grad_bounds"_a = py::none(), "grad_loss"_a = py::none(), "grad_center"_a,
      "grad_radius"_a, "grad_weight"_a, "grad_bias"_a);
  def("interval_activation", &warpup::interval_activation, "center"_a, "radius"_a, "clean"_a = py::none(),
      py::kw_only(), "kind"_a, "a"_a = 0.0, "b"_a = 0.0, "out_center"_a, "out_radius"_a, "out_clean"_a = py::none());
  def("interval_activation_backward", &warpup::interval_activation_backward, "center"_a, "radius"_a,
      "clean"_a = py::none(), py::kw_only(), "kind"_a, "a"_a = 0.0, "b"_a = 0.0, "grad_out_center"_a,
      "grad_out_radius"_a, "grad_out_clean"_a = py::none(), "grad_center"_a, "grad_radius"_a,
      "grad_clean"_a = py::none());
  def("interval_softmax", &warpup::interval_softmax, "center"_a, "radius"_a, py::kw_only(), "out_center"_a,
      "out_radius"_a);
  def("interval_softmax_backward", &warpup::interval_softmax_backward, "center"_a, "radius"_a, py::kw_only(),
      "grad_out_center"_a, "grad_out_radius"_a, "grad_center"_a, "grad_radius"_a);

  def("moe_glu", &warpup::moe_glu, "h"_a, "weights"_a = py::none(), "permutation"_a = py::none(), py::kw_only(),
      "activation"_a = "silu", "a"_a);
  def("moe_glu_backward", &warpup::moe_glu_backward, "h"_a, "weights"_a = py::none(), "permutation"_a = py::none(),
      py::kw_only(), "grad_a"_a, "activation"_a = "silu", "grad_h"_a, "a"_a = py::none(),
      "grad_weights"_a = py::none());
  def("grouped_product", &warpup::grouped_product, "a"_a, "b"_a, "offsets"_a, "a_rows"_a = py::none(),
      "b_rows"_a = py::none(), py::kw_only(), "turned"_a = false, "out"_a);

  def("moe_plan", &warpup::moe_plan, "indices"_a, py::kw_only(), "block"_a = 1, "counts"_a, "offsets"_a,
      "permutation"_a, "inverse"_a, "chunks"_a);
  def("moe_gather", &warpup::moe_gather, "x"_a, "permutation"_a, "inverse"_a, "weights"_a = py::none(),
      "y"_a = py::none(), py::kw_only(), "out"_a, "grad_weights"_a = py::none());
  def("moe_combine", &warpup::moe_combine, "y"_a, "weights"_a = py::none(), "inverse"_a, py::kw_only(), "out"_a);
  def(
      "moe_route",
      [](View logits, Optional bias, Optional replay, Optional mask, Optional bounds, int64_t k,
         const std::string& score, bool over_chosen, bool renormalize, double epsilon, double scale, int64_t groups,
         int64_t kept_groups, int64_t group_top, View weights, View indices, View counts, View mean_score, View z_loss,
         View stats, View lengths, View slot_scores, View slot_counts) {
        warpup::moe_route(logits, bias, replay, mask, bounds, k,
                          {score, over_chosen, renormalize, epsilon, scale, groups, kept_groups, group_top},
                          {weights, indices, counts, mean_score, z_loss, stats, lengths}, slot_scores, slot_counts);
      },
      "logits"_a, "bias"_a = py::none(), "replay"_a = py::none(), "mask"_a = py::none(), "bounds"_a = py::none(),
      py::kw_only(), "k"_a, "score"_a = "softmax", "over_chosen"_a = false, "renormalize"_a = false, "epsilon"_a = 0.0,
      "scale"_a = 1.0, "groups"_a = 0, "kept_groups"_a = 0, "group_top"_a = 0, "weights"_a, "indices"_a, "counts"_a,
      "mean_score"_a, "z_loss"_a, "stats"_a, "lengths"_a, "slot_scores"_a, "slot_counts"_a);
  def(
      "moe_route_backward",
      [](View logits, Optional bounds, const std::string& score, bool over_chosen, bool renormalize, double epsilon,
         double scale, View indices, View stats, View lengths, Optional grad_weights, Optional grad_mean_score,
         Optional grad_z_loss, View grad_logits) {
        warpup::moe_route_backward(logits, bounds, {score, over_chosen, renormalize, epsilon, scale}, indices, stats,
                                   lengths, grad_weights, grad_mean_score, grad_z_loss, grad_logits);
      },
      "logits"_a, "bounds"_a = py::none(), py::kw_only(), "score"_a = "softmax", "over_chosen"_a = false,
      "renormalize"_a = false, "epsilon"_a = 0.0, "scale"_a = 1.0, "indices"_a, "stats"_a, "lengths"_a,
      "grad_weights"_a = py::none(), "grad_mean_score"_a = py::none(), "grad_z_loss"_a = py::none(), "grad_logits"_a);

  const auto parameters = [](Optional mean, Optional var, Optional weight, Optional bias, double eps) {
    return warpup::ChannelParameters{mean, var, weight, bias, eps};
  };
  def(
      "interval_affine",
      [parameters](View center, View radius, Optional clean, Optional mean, Optional var, Optional weight,
                   Optional bias, int64_t source, double eps, bool relu, bool sound, Optional partials, Optional scale,
                   Optional shift, View out_center, View out_radius, Optional out_clean, Optional sum_partials,
                   Optional sums) {
        warpup::interval_affine(center, radius, clean, parameters(mean, var, weight, bias, eps), source, relu, sound,
                                partials, scale, shift, out_center, out_radius, out_clean, sum_partials, sums);
      },
      "center"_a, "radius"_a, "clean"_a = py::none(), py::kw_only(), "mean"_a = py::none(), "var"_a = py::none(),
      "weight"_a = py::none(), "bias"_a = py::none(), "source"_a = -1, "eps"_a = 1e-5, "relu"_a = false,
      "sound"_a = false, "partials"_a = py::none(), "scale"_a = py::none(), "shift"_a = py::none(), "out_center"_a,
      "out_radius"_a, "out_clean"_a = py::none(), "sum_partials"_a = py::none(), "sums"_a = py::none());
  def(
      "interval_affine_backward",
      [parameters](Optional grad_center, Optional grad_radius, Optional grad_clean, View center, View radius,
                   Optional clean, bool from_outputs, Optional mean, Optional var, Optional weight, Optional bias,
                   int64_t source, double eps, bool relu, Optional added, Optional partials, Optional totals,
                   Optional scale, Optional shift, View out_center, View out_radius, Optional out_clean,
                   Optional out_weight, Optional out_bias) {
        warpup::interval_affine_backward({grad_center, grad_radius, grad_clean}, center, radius, clean, from_outputs,
                                         parameters(mean, var, weight, bias, eps), scale, shift, source, relu, added,
                                         partials, totals, out_center, out_radius, out_clean, out_weight, out_bias);
      },
      "grad_center"_a, "grad_radius"_a, "grad_clean"_a = py::none(), py::kw_only(), "center"_a, "radius"_a,
      "clean"_a = py::none(), "from_outputs"_a = false, "mean"_a = py::none(), "var"_a = py::none(),
      "weight"_a = py::none(), "bias"_a = py::none(), "source"_a = -1, "eps"_a = 1e-5, "relu"_a = false,
      "added"_a = py::none(), "partials"_a = py::none(), "totals"_a = py::none(), "scale"_a = py::none(),
      "shift"_a = py::none(), "out_center"_a, "out_radius"_a, "out_clean"_a = py::none(), "out_weight"_a = py::none(),
      "out_bias"_a = py::none());
  def("interval_sign_", &warpup::interval_sign, "gradient"_a, "weight"_a, "base"_a = py::none());
  def("interval_product", &warpup::interval_product, "a_center"_a, "a_radius"_a, "b_center"_a, "b_radius"_a,
      py::kw_only(), "shift"_a, "excess"_a);
  def("interval_product_backward", &warpup::interval_product_backward, "a_center"_a, "a_radius"_a, "b_center"_a,
      "b_radius"_a, "grad_shift"_a, "grad_excess"_a, py::kw_only(), "transposed"_a = false, "out_center"_a,
      "out_radius"_a);
}
