// torch ops of apply_schedule_ and reflection_state_update_: allocate the results, call the entry.
#include "reflection/apply_schedule_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

void reflection_state_update_op(Tensor state, const Tensor& schedules, const Tensor& sets, const Tensor& markers,
                                const Tensor& tokens, const Tensor& slots, const OptionalTensor& first,
                                const OptionalTensor& count, const OptionalTensor& prompt,
                                const OptionalTensor& rollback) {
  reflection_state_update({view(state), view(schedules), view(sets), {}}, view(markers), view(tokens), view(slots),
                          view(first), view(count), view(prompt), view(rollback));
}

Tensor apply_schedule_op(Tensor logits, const Tensor& state, const Tensor& schedules, const Tensor& sets,
                         const Tensor& knots, const Tensor& slots, const OptionalTensor& back,
                         const OptionalTensor& temperature, double temperature_scalar) {
  const View z = view(logits);
  Argument("apply_schedule_", "logits", z).dims(2);
  Tensor delta = empty({z.sizes[0]}, DType::f32, logits);
  apply_schedule(z, {view(state), view(schedules), view(sets), view(knots)}, view(slots), view(back), view(temperature),
                 temperature_scalar, view(delta));
  return delta;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("reflection_state_update_", boxed<reflection_state_update_op>);
  m.impl("apply_schedule_", boxed<apply_schedule_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "reflection_state_update_(Tensor(a!) state, Tensor schedules, Tensor sets, Tensor markers, Tensor tokens, "
      "Tensor slots, Tensor? first, Tensor? count, Tensor? prompt, Tensor? rollback) -> ()");
  m.def(
      "apply_schedule_(Tensor(a!) logits, Tensor state, Tensor schedules, Tensor sets, Tensor knots, Tensor slots, "
      "Tensor? back, Tensor? temperature, float temperature_scalar) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
