// The pybind11 module: build information, and every entry on arrays of any framework, outputs given by the caller.
// Nothing here knows torch; torch tensors come in through DLPack like all others.
#include "bind/dlpack.h"

#include <pybind11/stl.h>

#include "bind/logprob.h"
#include "core/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace warpup {

void parallel_for_impl(int64_t begin, int64_t end, int64_t grain, void (*body)(const void*, int64_t, int64_t),
                       const void* context) {
#ifdef _OPENMP
  const int64_t n = end - begin, chunks = std::min<int64_t>(omp_get_max_threads(), (n + grain - 1) / grain);
  if (chunks > 1 && !omp_in_parallel()) {
#pragma omp parallel for num_threads(chunks) schedule(static)
    for (int64_t c = 0; c < chunks; ++c) body(context, begin + n * c / chunks, begin + n * (c + 1) / chunks);
    return;
  }
#endif
  (void)grain;
  body(context, begin, end);
}

namespace {

// What `WARPUP_CLONES` resolves to on this machine.
const char* cpu_capability() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2, FMA)";
  return "x86-64";
#else
  return "default";
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = WARPUP_VERSION;
  info["cpu"] = cpu_capability();
  info["compiler"] = WARPUP_COMPILER;
#ifdef WARPUP_WITH_CUDA
  info["cuda_archs"] = WARPUP_CUDA_ARCHS;
  info["cuda_toolkit"] = WARPUP_CUDA_TOOLKIT;
#else
  info["cuda_archs"] = py::none();
  info["cuda_toolkit"] = py::none();
#endif
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["torch_headers"] = WARPUP_TORCH_HEADERS;
  return info;
}

}  // namespace
}  // namespace warpup

PYBIND11_MODULE(WARPUP_MODULE, m) {
  m.doc() = "warpup kernels on DLPack arrays; outputs are given by the caller. See csrc/<family>/<op>.h for each contract.";
  m.def("build_info", &warpup::build_info);

  m.def("token_logprob", &warpup::token_logprob, "logits"_a, "targets"_a, "temperature"_a = py::none(), py::kw_only(),
        "temperature_scalar"_a = 1.0, "ignore_index"_a = -100, "logp"_a, "entropy"_a = py::none(), "stats"_a);
  m.def("token_logprob_backward", &warpup::token_logprob_backward, "logits"_a, "targets"_a, "temperature"_a = py::none(),
        py::kw_only(), "temperature_scalar"_a = 1.0, "ignore_index"_a = -100, "stats"_a, "entropy"_a = py::none(),
        "grad_logp"_a = py::none(), "grad_entropy"_a = py::none(), "grad_logits"_a);
}
