// torch op of sample_step: allocates the results, calls the entry.
#include "core/dispatch.h"
#include "reflection/sample_step_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using SampleResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SampleResult sample_step_op(const Tensor& logits, const Tensor& state, const Tensor& schedules, const Tensor& sets,
                            const Tensor& knots, const Tensor& sampling, const Tensor& slots,
                            const OptionalTensor& tuned, const OptionalTensor& base, const OptionalTensor& back,
                            const OptionalTensor& seen, const OptionalTensor& counts, const OptionalTensor& bias,
                            int64_t stream, double scale, double softcap) {
  const View z = view(logits);
  Argument("sample_step", "logits", z).dims(2);
  const DType acc = accumulator_of(logits);
  const auto row = [&](DType dtype) { return empty({z.sizes[0]}, dtype, logits); };
  Tensor token = row(DType::i64), logp_raw = row(acc), logp = row(acc), kept = row(acc), p_r = row(acc);
  Tensor delta = row(DType::f32), temperature = row(DType::f32), least = row(acc), most = row(acc);
  const OptionalTensor scratch =
      runs_cuda(z.device) ? OptionalTensor(empty({z.sizes[0], z.sizes[1]}, acc, logits)) : std::nullopt;
  sample_step(z, view(tuned), view(base), {view(state), view(schedules), view(sets), view(knots)}, view(sampling),
              view(slots), view(back), view(seen), view(counts), view(bias), stream, {scale, softcap}, view(scratch),
              {view(token), view(logp_raw), view(logp), view(kept), view(p_r), view(delta), view(temperature),
               view(least), view(most)});
  return results(token, logp_raw, logp, kept, p_r, delta, temperature, least, most);
}

void implement(torch::stable::detail::StableLibrary& m) { m.impl("sample_step", boxed<sample_step_op>); }

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "sample_step(Tensor logits, Tensor state, Tensor schedules, Tensor sets, Tensor knots, Tensor sampling, "
      "Tensor slots, Tensor? tuned=None, Tensor? base=None, Tensor? back=None, Tensor? seen=None, Tensor? counts=None, "
      "Tensor? bias=None, int stream=0, float scale=1.0, float softcap=0.0) -> (Tensor token, Tensor logp_raw, "
      "Tensor logp, Tensor kept, Tensor p_r, Tensor delta, Tensor temperature, Tensor least, Tensor most)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
