// The entry of moe_plan: checks every argument, chooses dtype and device, calls the kernel. See moe_plan.h.
#pragma once

#include "core/view.h"

namespace warpup {

// Rows that moe_plan sorts copies into, in the worst case.
int64_t moe_plan_rows(int64_t copies, int64_t experts, int64_t block);

// counts (E,), offsets (E + 1,), permutation (moe_plan_rows,), inverse (T, k) int64 are written; chunks
// (MoePlanChunks::count, E) int64 is scratch.
void moe_plan(const View& indices, int64_t block, const View& counts, const View& offsets, const View& permutation,
              const View& inverse, const View& chunks);

}  // namespace warpup
