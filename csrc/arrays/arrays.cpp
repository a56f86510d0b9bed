// The pybind11 module: build information, and every entry on arrays of any framework, outputs given by the caller.
// Nothing here knows torch; torch tensors come in through DLPack like all others.
#include "arrays/arrays.h"

#include <pybind11/stl.h>

#include "core/instruction_set.h"
#include "core/parallel.h"

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
  m.doc() =
      "warpup kernels on DLPack arrays; outputs are given by the caller. See csrc/<family>/<op>.h for each contract.";
  m.def("build_info", &warpup::build_info);
  warpup::Arrays arrays(m);
  for (const auto add : warpup::registrations()) add(arrays);
}
