// torch ops of masked_moments and masked_whiten: allocate the results, call the entry.
#include "advantage/masked_whiten.h"
#include "advantage/masked_whiten_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor partials_for(const Tensor& x) { return empty({Moments::chunks(x.numel()), Moments::kPartial}, DType::f64, x); }

Tensor masked_moments_op(const Tensor& x, const OptionalTensor& mask, bool skip_nan, int64_t correction) {
  Tensor moments = empty({Moments::kResult}, DType::f64, x);
  const Tensor partials = partials_for(x);
  masked_moments(view(x), view(mask), skip_nan, correction, view(partials), view(moments));
  return moments;
}

Tensor masked_whiten_op(const Tensor& x, const OptionalTensor& mask, bool shift_mean, int64_t correction, double eps) {
  const View v = view(x);
  Tensor out = empty(sizes_of(x), v.dtype, x);
  const Tensor partials = partials_for(x), moments = empty({Moments::kResult}, DType::f64, x);
  masked_whiten(v, view(mask), shift_mean, correction, eps, view(out), view(partials), view(moments));
  return out;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("masked_moments", boxed<masked_moments_op>);
  m.impl("masked_whiten", boxed<masked_whiten_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("masked_moments(Tensor x, Tensor? mask, bool skip_nan, int correction) -> Tensor");
  m.def("masked_whiten(Tensor x, Tensor? mask, bool shift_mean, int correction, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
