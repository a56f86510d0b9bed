// Entries of apply_schedule and reflection_state_update: check every argument, choose dtype and device, call the
// kernel.
#pragma once

#include "core/view.h"
#include "reflection/apply_schedule.h"

namespace warpup {

// The tables that all entries of the family share: state [slots, 1 + ring, 10] int32, schedules [slots, 16] float64,
// sets [M] int32, knots [N, 2] float64.
struct TableViews {
  View state, schedules, sets;
  OptionalView knots;
};

// state is written; see reflection/apply_schedule.h.
void reflection_state_update(const TableViews& tables, const View& markers, const View& tokens, const View& slots,
                             const OptionalView& first, const OptionalView& count, const OptionalView& prompt,
                             const OptionalView& rollback);

// logits and delta [rows] float32 are written.
void apply_schedule(const View& logits, const TableViews& tables, const View& slots, const OptionalView& back,
                    const OptionalView& temperature, double temperature_scalar, const View& delta);

// ---- For the entries of sample_step too ----------------------------------------------------------------------------

Tables tables_of(const char* op, const TableViews& views, const Device& device);

// A value a row, int64 [rows]; null where it is not given.
const int64_t* row_integers(const char* op, const char* name, const OptionalView& v, int64_t rows,
                            const Device& device);

// Every row's slot is there, or -1, and its schedule names ids and knots inside of the tables. On a GPU this would
// synchronize: there a row of a slot out of range does nothing.
void check_slots(const char* op, const TableViews& views, const Tables& tables, const int64_t* slots, int64_t rows);

}  // namespace warpup
