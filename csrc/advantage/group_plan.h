// group_plan: rows with arbitrary ids, sorted into groups, for group_advantage.
//
//   order    the rows by ascending id, rows of one id in their former order
//   offsets  group g is order[offsets[g], offsets[g + 1]); from the number of groups on, all are `rows`
//
// Why      a batch names its groups by ids of any kind (hashes of prompts); sorted once, each group is a range.
// Layout   ids contiguous int64 or int32, of any values: they are compared, never used as an index. offsets has
//          rows + 1 entries whatever the ids are, so that nobody has to wait for their number.
// Method   CPU only (on CUDA: a library sort). Stable counting sort of id - min by digits, as many as its range needs,
//          each of at most 11 bits; digits that all ids share are passed over. Ids that come sorted are only scanned.
// Bytes    8 rows (read) + 16 rows (written), + 32 rows each digit.
#pragma once

#include "core/types.h"

namespace warpup {

template <class Id>
struct GroupPlanArgs {
  int64_t rows;
  const Id* ids;
  int64_t* order;    // [rows]
  int64_t* offsets;  // [rows + 1]
};

template <class Id>
void group_plan_cpu(const GroupPlanArgs<Id>& args);

}  // namespace warpup
