// grouped_product: the products of an expert, in bfloat16, rows sorted by group.
//
//   rows     out[s] = a[s] @ b[e]       s of group e's rows [offsets[e], offsets[e + 1])
//   turned   out[s] = a[s] @ b[e]^T
//   weights  out[e] = sum_s a[s]^T b[s]
//
// Layout   a [., width] and, for weights, b [., columns] with rows of unit stride; row s is at a_rows[s] (b_rows[s]) if
//          given, else at s. For rows b is [groups, width, columns], turned [groups, columns, width], out [rows,
//          columns]; rows of out that are in no group are 0. For weights out is [groups, width, columns]; of an empty
//          group it is 0.
// Numerics products summed in float32, two at a time, and rounded once; where the CPU has AVX512-BF16 numbers below
//          1e-38 count as 0.
// Method   CPU only. b is packed in pairs along the sum, 64 columns side by side, a in pairs, 6 rows side by side; the
//          sums of a tile of 6 by 64 stay in registers. A thread takes whole tiles, so its number changes no bit, and
//          threads meet once, not once a group. b and the result of weights are larger than the cache and used for a
//          few rows only, so the next part of b is fetched while a tile is computed, and results go past the cache.
//          Where turned b meets few rows, packing it would cost a third of the sums: its rows go by as they lie, 8 at a
//          time, and a is what is packed, up to 48 columns.
//          One thread of a Zen 5, 48 rows a group, GFLOP/s of 537: turned 465 (oneDNN 333), rows 424 (257), weights
//          344 into new memory (283 into memory that is there).
// Bytes    a, b and out once.
#pragma once

#include "core/types.h"

namespace warpup {

struct GroupedProductArgs {
  bool weights, turned;
  int64_t rows, groups, width, columns;
  const bfloat16 *a, *b;
  int64_t a_stride, b_stride, b_group;
  const int64_t *offsets, *a_rows, *b_rows;  // the last two may be null
  bfloat16* out;
};

void grouped_product_cpu(const GroupedProductArgs& args);

}  // namespace warpup
