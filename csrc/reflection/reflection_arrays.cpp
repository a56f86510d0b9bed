#include "arrays/arrays.h"
#include "reflection/apply_schedule_check.h"
#include "reflection/sample_step_check.h"

namespace warpup {

namespace {

using In = const View&;
using Optional = const OptionalView&;

}  // namespace

WARPUP_ARRAYS(m) {
  m.def(
      "reflection_state_update_",
      "Follows requests through the tokens [B, W] that they took: state [S, 1 + ring, 10] is written at their slots.",
      [](In state, In schedules, In sets, In markers, In tokens, In slots, Optional first, Optional count,
         Optional prompt, Optional rollback) {
        reflection_state_update({state, schedules, sets, {}}, markers, tokens, slots, first, count, prompt, rollback);
      },
      "state"_w, "schedules"_a, "sets"_a, "markers"_a, "tokens"_a, "slots"_a, "first"_a = py::none(),
      "count"_a = py::none(), "prompt"_a = py::none(), "rollback"_a = py::none());
  m.def(
      "apply_schedule_",
      "Adds each request's delta to the logits [B, V] of its reflection tokens, in place: logits and delta [B] are "
      "written.",
      [](In logits, In state, In schedules, In sets, In knots, In slots, Optional back, Optional temperature,
         double temperature_scalar, In delta) {
        apply_schedule(logits, {state, schedules, sets, knots}, slots, back, temperature, temperature_scalar, delta);
      },
      "logits"_w, "state"_a, "schedules"_a, "sets"_a, "knots"_a, "slots"_a, "back"_a = py::none(),
      "temperature"_a = py::none(), py::kw_only(), "temperature_scalar"_a = 1.0, "delta"_w);
  m.def(
      "sample_step",
      "Draws each request's next token from its logits [B, V]: token, logp_raw, logp, kept, p_r, delta, temperature, "
      "least and most [B] are written; scratch [B, V] is needed on a GPU.",
      [](In logits, Optional tuned, Optional base, In state, In schedules, In sets, In knots, In sampling, In slots,
         Optional back, Optional seen, Optional counts, Optional bias, int64_t stream, double scale, double softcap,
         Optional scratch, In token, In logp_raw, In logp, In kept, In p_r, In delta, In temperature, In least,
         In most) {
        sample_step(logits, tuned, base, {state, schedules, sets, knots}, sampling, slots, back, seen, counts, bias,
                    stream, {scale, softcap}, scratch,
                    {token, logp_raw, logp, kept, p_r, delta, temperature, least, most});
      },
      "logits"_a, "tuned"_a = py::none(), "base"_a = py::none(), py::kw_only(), "state"_a, "schedules"_a, "sets"_a,
      "knots"_a, "sampling"_a, "slots"_a, "back"_a = py::none(), "seen"_a = py::none(), "counts"_a = py::none(),
      "bias"_a = py::none(), "stream"_a = 0, "scale"_a = 1.0, "softcap"_a = 0.0, "scratch"_w = py::none(), "token"_w,
      "logp_raw"_w, "logp"_w, "kept"_w, "p_r"_w, "delta"_w, "temperature"_w, "least"_w, "most"_w);
}

}  // namespace warpup
