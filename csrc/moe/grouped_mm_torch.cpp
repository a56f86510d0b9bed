// torch op of grouped_mm's CPU kernel, which python/warpup/moe/grouped_mm.py calls: allocates the result, calls the
// entry.
#include <algorithm>

#include "moe/grouped_mm_check.h"
#include "torch/torch.h"

#ifndef WARPUP_HOST_CUDA  // there is a CPU kernel only

namespace warpup {
namespace {

Tensor grouped_mm_op(const Tensor& a, const Tensor& b, const Tensor& offsets, const OptionalTensor& a_rows,
                     const OptionalTensor& b_rows, std::string layout) {
  const View v = view(a), w = view(b);
  const auto size = [](const View& x, int d) { return d < x.dims ? x.sizes[d] : 0; };  // wrong ones: the entry tells
  const int64_t columns = layout == "nt" ? size(w, 1) : size(w, w.dims - 1);
  const int64_t groups = std::max<int64_t>(offsets.numel() - 1, 0), rows = a_rows ? a_rows->numel() : size(v, 0);
  Tensor out = layout == "tn" ? empty({groups, size(v, 1), columns}, v.dtype, a) : empty({rows, columns}, v.dtype, a);
  grouped_mm(v, w, view(offsets), view(a_rows), view(b_rows), layout, view(out));
  return out;
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("grouped_mm_cpu(Tensor a, Tensor b, Tensor offsets, Tensor? a_rows, Tensor? b_rows, str layout) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { m.impl("grouped_mm_cpu", warpup::boxed<warpup::grouped_mm_op>); }

#endif
