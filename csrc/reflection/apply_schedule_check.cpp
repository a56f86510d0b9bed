#include "reflection/apply_schedule_check.h"

#include "core/dispatch.h"
#include "core/option_check.h"

namespace warpup {

Tables tables_of(const char* op, const TableViews& v, const Device& device) {
  const Argument state(op, "state", v.state);
  state.dtype({DType::i32}).on(device).dims(3).contiguous();
  if (v.state.sizes[2] != kFields || v.state.sizes[1] < 2) {
    fail(op, ": state must have shape (slots, 1 + ring, ", kFields, "), got ", shape_of(v.state));
  }
  const int64_t slots = v.state.sizes[0];
  Argument(op, "schedules", v.schedules).dtype({DType::f64}).on(device).shape({slots, kSchedule}).contiguous();
  Argument(op, "sets", v.sets).dtype({DType::i32}).on(device).dims(1).contiguous();
  if (v.knots) {
    Argument(op, "knots", *v.knots).dtype({DType::f64}).on(device).dims(2).shape({v.knots->sizes[0], 2}).contiguous();
  }
  return {slots,
          v.state.sizes[1] - 1,
          data<int32_t>(v.state),
          data<const Schedule>(v.schedules),
          data<const int32_t>(v.sets),
          data<const double>(v.knots)};
}

const int64_t* row_integers(const char* op, const char* name, const OptionalView& v, int64_t rows,
                            const Device& device) {
  if (!v) return nullptr;
  Argument(op, name, *v).dtype({DType::i64}).on(device).shape({rows}).contiguous();
  return data<const int64_t>(*v);
}

void check_slots(const char* op, const TableViews& v, const Tables& t, const int64_t* slots, int64_t rows) {
  if (v.state.device.cuda) return;
  const double sets = v.sets.numel(), knots = v.knots ? v.knots->sizes[0] : 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (slots[r] < -1 || slots[r] >= t.slots) {
      fail(op, ": slots[", r, "] = ", slots[r], " is outside [-1, ", t.slots, ")");
    }
    if (slots[r] < 0) continue;
    const Schedule& s = t.schedules[slots[r]];
    const auto within = [](double begin, double size, double all) {
      return begin >= 0 && size >= 0 && begin + size <= all;
    };
    if (!within(s.set, s.set_size, sets) || (v.knots && !within(s.knots, s.knots_size, knots))) {
      fail(op, ": the schedule of slot ", slots[r], " names ids or knots outside of its tables");
    }
  }
}

void reflection_state_update(const TableViews& tables, const View& markers, const View& tokens, const View& slots,
                             const OptionalView& first, const OptionalView& count, const OptionalView& prompt,
                             const OptionalView& rollback) {
  const char* op = "reflection_state_update_";
  const Device& device = tables.state.device;
  const Argument arg(op, "tokens", tokens);
  arg.dtype({DType::i64, DType::i32}).on(device).dims(2);
  const auto run = [&]<class T>() {
    ReflectionStateUpdateArgs<T> args{};
    args.tables = tables_of(op, tables, device);
    Argument(op, "markers", markers).dtype({DType::i32}).on(device).shape({kMarkers, 2, kMarker + 1}).contiguous();
    args.markers = data<const int32_t>(markers);
    args.rows = tokens.sizes[0], args.width = tokens.sizes[1];
    args.tokens = data<const T>(tokens);
    args.stride = tokens.strides[0], args.step = tokens.strides[1];
    args.slots = row_integers(op, "slots", slots, args.rows, device);
    args.first = row_integers(op, "first", first, args.rows, device);
    args.count = row_integers(op, "count", count, args.rows, device);
    args.prompt = row_integers(op, "prompt", prompt, args.rows, device);
    args.rollback = row_integers(op, "rollback", rollback, args.rows, device);
    check_slots(op, tables, args.tables, args.slots, args.rows);
    for (int64_t r = 0; !device.cuda && r < args.rows; ++r) {
      if (args.slots[r] < 0) continue;
      const int64_t begin = args.first ? args.first[r] : 0, n = args.count ? args.count[r] : args.width - begin;
      if (begin < 0 || n < 0 || begin + n > args.width) {
        fail(op, ": row ", r, " has tokens [", begin, ", ", begin + n, ") of ", args.width);
      }
      const int64_t drop = args.rollback ? args.rollback[r] : 0;
      const int32_t* header = args.tables.state + args.slots[r] * (1 + args.tables.ring) * kFields;
      const bool anew = args.prompt && args.prompt[r] >= 0;
      if (anew && drop > 0) {
        fail(op, ": rollback[", r, "] = ", drop, " beside prompt[", r, "] = ", args.prompt[r],
             ": a slot that begins anew has no tokens to take back; give 0");
      }
      if (drop < 0 || (!anew && drop > header[0] - header[3])) {
        fail(op, ": rollback[", r, "] = ", drop, ", at most ", header[0] - header[3], " of ", header[0],
             " tokens can be taken back; rebuild the slot from all of its tokens");
      }
    }
    WARPUP_RUN(reflection_state_update, T, device, args);
  };
  tokens.dtype == DType::i64 ? run.template operator()<int64_t>() : run.template operator()<int32_t>();
}

void apply_schedule(const View& logits, const TableViews& tables, const View& slots, const OptionalView& back,
                    const OptionalView& temperature, double temperature_scalar, const View& delta) {
  const char* op = "apply_schedule_";
  Argument(op, "logits", logits).dims(2).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    const Device& device = logits.device;
    ApplyScheduleArgs<T> args{};
    args.tables = tables_of(op, tables, device);
    args.rows = logits.sizes[0], args.vocab = logits.sizes[1], args.stride = logits.strides[0];
    args.logits = data<T>(logits);
    args.slots = row_integers(op, "slots", slots, args.rows, device);
    args.back = row_integers(op, "back", back, args.rows, device);
    check_slots(op, tables, args.tables, args.slots, args.rows);
    if (temperature) {
      Argument(op, "temperature", *temperature).dtype({DType::f32}).on(device).shape({args.rows}).contiguous();
    }
    if (!temperature) finite_option<float>(op, "temperature", temperature_scalar);
    args.temperature = data<const float>(temperature);
    args.temperature_scalar = temperature_scalar;
    Argument(op, "delta", delta).dtype({DType::f32}).on(device).shape({args.rows}).contiguous();
    args.delta = data<float>(delta);
    WARPUP_RUN(apply_schedule, T, device, args);
  });
}

}  // namespace warpup
