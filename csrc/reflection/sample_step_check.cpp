#include "reflection/sample_step_check.h"

#include <utility>

#include "core/dispatch.h"
#include "core/option_check.h"
#include "reflection/sample_step.h"

namespace warpup {

void sample_step(const View& logits, const OptionalView& tuned, const OptionalView& base, const TableViews& tables,
                 const View& sampling, const View& slots, const OptionalView& back, const OptionalView& seen,
                 const OptionalView& counts, const OptionalView& bias, int64_t stream, const LogitFormOptions& form,
                 const OptionalView& scratch, const SampledViews& out) {
  const char* op = "sample_step";
  Argument(op, "logits", logits).dims(2).unit_stride_last();
  if (tuned.has_value() != base.has_value()) fail(op, ": tuned and base are given together, or neither");
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = logits.device;
    SampleStepArgs<T> args{};
    args.tables = tables_of(op, tables, device);
    args.rows = logits.sizes[0], args.vocab = logits.sizes[1], args.stride = logits.strides[0];
    args.logits = data<const T>(logits);
    const auto beside = [&](const char* name, const OptionalView& v, const T** pointer, int64_t* stride) {
      if (!v) return;
      const Argument arg(op, name, *v);
      arg.dtype({logits.dtype}).on(device).shape({args.rows, args.vocab}).unit_stride_last();
      *pointer = data<const T>(*v), *stride = v->strides[0];
    };
    beside("tuned", tuned, &args.tuned, &args.tuned_stride);
    beside("base", base, &args.base, &args.base_stride);
    Argument(op, "sampling", sampling)
        .dtype({DType::f64})
        .on(device)
        .shape({args.tables.slots, kSampling})
        .contiguous();
    args.sampling = data<const Sampling>(sampling);
    args.slots = row_integers(op, "slots", slots, args.rows, device);
    args.back = row_integers(op, "back", back, args.rows, device);
    check_slots(op, tables, args.tables, args.slots, args.rows);
    if (args.vocab == 0 && args.rows > 0) fail(op, ": logits has no vocabulary to draw from");
    for (int64_t r = 0; !device.cuda && r < args.rows; ++r) {
      if (args.slots[r] < 0) continue;
      const Sampling& s = args.sampling[args.slots[r]];
      for (const double t : {s.think, s.answer, s.code}) {
        if (t != 0) divisor_option<Acc>(op, "temperature", t, ", which is not 0, in slot ", args.slots[r]);
      }
      divisor_option<Acc>(op, "repetition", s.repetition, " in slot ", args.slots[r]);
      finite_option<Acc>(op, "presence", s.presence), finite_option<Acc>(op, "beta", s.beta);
      if (!(s.top_p >= 0)) fail(op, ": top_p must be at least 0, got ", s.top_p, " in slot ", args.slots[r]);
      finite_option<Acc>(op, "frequency", s.frequency);
      for (const auto& [name, value] :
           {std::pair{"top_h", s.top_h}, {"typical", s.typical}, {"epsilon", s.epsilon}, {"eta", s.eta}}) {
        if (!(value >= 0 && value <= 1))
          fail(op, ": ", name, " must be in [0, 1], got ", value, " in slot ", args.slots[r]);
      }
      if (!counts && s.frequency != 0) {
        fail(op, ": slot ", args.slots[r], " has a frequency penalty, which needs counts, got None");
      }
      if (!seen && (s.repetition != 1 || s.presence != 0)) {
        fail(op, ": slot ", args.slots[r], " has a repetition or presence penalty, which needs seen, got None");
      }
      if (!tuned && s.beta != 1) {
        fail(op, ": slot ", args.slots[r], " has beta ", s.beta, ", which scales tuned - base, got None");
      }
    }
    if (seen) {
      Argument(op, "seen", *seen).dtype({DType::u8}).on(device).shape({args.tables.slots, args.vocab}).contiguous();
    }
    args.seen = data<const uint8_t>(seen);
    const auto of_slots = [&]<class V>(const char* name, const OptionalView& v, const V** pointer) {
      if (!v) return;
      Argument(op, name, *v).dtype({dtype_of<V>()}).on(device).shape({args.tables.slots, args.vocab}).contiguous();
      *pointer = data<const V>(*v);
    };
    of_slots("counts", counts, &args.counts), of_slots("bias", bias, &args.bias);
    args.stream = stream;
    args.form = logit_form<Acc>(op, form);
    if (scratch) {
      Argument(op, "scratch", *scratch).dtype({dtype_of<Acc>()}).on(device).shape({args.rows, args.vocab}).contiguous();
    } else if (runs_cuda(device)) {
      fail(op, ": the GPU needs scratch");
    }
    args.scratch = data<Acc>(scratch);
    const auto output = [&]<class V>(const char* name, const View& v, V** pointer) {
      Argument(op, name, v).dtype({dtype_of<V>()}).on(device).shape({args.rows}).contiguous();
      *pointer = data<V>(v);
    };
    output("token", out.token, &args.token);
    output("logp_raw", out.logp_raw, &args.logp_raw), output("logp", out.logp, &args.logp);
    output("kept", out.kept, &args.kept), output("p_r", out.p_r, &args.p_r);
    output("delta", out.delta, &args.delta), output("temperature", out.temperature, &args.temperature);
    output("least", out.least, &args.least), output("most", out.most, &args.most);
    WARPUP_RUN(sample_step, T, device, args);
  });
}

}  // namespace warpup
