// grouped_product: the two products of a group's backward whose layout library products are slow at, in bfloat16.
//
//   rows     out[s]    = a[s] @ b[e]        s of group e's rows [offsets[e], offsets[e + 1])      the gradient of rows
//   weights  out[e, :] = sum_s a[s]^T b[s]                                                     the gradient of weights
//
// Layout   a [., width] and, for weights, b [., columns] with rows of unit stride; row s is at a_rows[s] (b_rows[s]) if
//          given, else at s. For rows b is [groups, width, columns], out [S, columns]; rows of out that are in no group
//          are 0. For weights out is [groups, width, columns]; of an empty group it is 0.
// Numerics products summed in float32, two at a time, and rounded once; where the CPU has AVX512-BF16 numbers below
//          1e-38 count as 0.
// Method   CPU only. b's rows are packed in pairs, 64 columns side by side, a's in pairs, 6 side by side; a tile of 6
// by
//          64 sums stays in registers. With 48 rows a group, a library's product spends its time on packing for rows,
//          and on stores that miss the cache for weights (here: whole lines past it). A thread takes whole tiles.
// Bytes    a, b and out once.
#pragma once

#include "core/types.h"

namespace warpup {

struct GroupedProductArgs {
  bool weights;
  int64_t rows, groups, width, columns;
  const bfloat16 *a, *b;
  int64_t a_stride, b_stride, b_group;
  const int64_t *offsets, *a_rows, *b_rows;  // the last two may be null
  bfloat16* out;
};

void grouped_product_cpu(const GroupedProductArgs& args);

}  // namespace warpup
