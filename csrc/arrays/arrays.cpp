// The pybind11 module: build information, and every entry on arrays of any framework, outputs given by the caller.
// Nothing here knows torch; torch tensors come in through DLPack like all others.
#include "arrays/arrays.h"

#include <pybind11/stl.h>

#include "core/cpu.h"
#include "core/parallel.h"
#include "moe/grouped_product_check.h"
#include "moe/moe_gather_check.h"
#include "moe/moe_glu_check.h"
#include "moe/moe_route_check.h"
#include "policy/policy_loss_check.h"

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
  py::class_<warpup::PolicyOptions>(m, "PolicyOptions")
      .def(py::init<std::vector<int64_t>, std::vector<double>>(), "choices"_a, "numbers"_a);
  def("policy_loss", &warpup::policy_loss, "logp"_a, "old_logp"_a, "advantages"_a, "mask"_a, "ref_logp"_a = py::none(),
      "weights"_a = py::none(), "penalty"_a = py::none(), "ref_kl"_a = py::none(), "entropy"_a = py::none(),
      "cu_seqlens"_a = py::none(), "denominator"_a = py::none(), py::kw_only(), "options"_a, "loss"_a, "metrics"_a,
      "row_state"_a, "partials"_a);
  def("policy_loss_backward", &warpup::policy_loss_backward, "logp"_a, "old_logp"_a, "advantages"_a, "mask"_a,
      "ref_logp"_a = py::none(), "weights"_a = py::none(), "penalty"_a = py::none(), "ref_kl"_a = py::none(),
      "entropy"_a = py::none(), "cu_seqlens"_a = py::none(), py::kw_only(), "options"_a, "row_state"_a, "grad_loss"_a,
      "grad_logp"_a, "grad_ref_kl"_a = py::none(), "grad_entropy"_a = py::none());

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
}
