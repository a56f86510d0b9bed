// moe_plan: token copies sorted by expert, stable, for tokens that go to k experts each. Experts are few and copies
// many, so counting sorts them in two passes, where a library sorts in several and then searches for the bounds.
//
//   counts[e]     copies of expert e
//   offsets[e]    first row of expert e in the sorted order; each expert's rows padded to a multiple of `block`
//   permutation   row -> copy t * k + j; -1 in rows that hold none (padding, and from offsets[E] on)
//   inverse       copy -> row; -1 for a copy that was dropped (expert -1)
//
// Layout   all contiguous. `rows` is what the worst case needs, copies + experts * (block - 1) rounded down to a
//          multiple of block: nobody waits for the device to know it.
// Method   counting sort: chunks of copies are counted, the counts added up over chunks and experts, then each chunk
//          places its copies in their order. The result is the one stable order, whatever ran where.
//          An expert outside [0, experts) counts as dropped; the binding rejects what is not -1 on the CPU.
// Bytes    2 copies * sizeof(Id) read, 8 (copies + rows) written, 24 chunks * experts of scratch.
#pragma once

#include "core/types.h"

namespace warpup {

struct MoePlanChunks {
  static constexpr int64_t kMost = 256,
                           kLeast = 256;  // chunks (one block of the CUDA kernel adds them up); copies in each
  static int64_t size(int64_t copies) {
    const int64_t even = ((copies + kMost - 1) / kMost + 31) / 32 * 32;
    return even < kLeast ? kLeast : even;
  }
  static int64_t count(int64_t copies) { return (copies + size(copies) - 1) / size(copies); }
};

template <class Id>  // int64_t, int32_t
struct MoePlanArgs {
  int64_t copies, experts, block, rows;
  const Id* experts_of;  // [copies]
  int64_t* counts;       // [experts]
  int64_t* offsets;      // [experts + 1]
  int64_t* permutation;  // [rows]
  int64_t* inverse;      // [copies]
  int64_t* chunks;  // [MoePlanChunks::count, experts], scratch: each chunk's copies by expert, then those before it
};

template <class Id>
void moe_plan_cpu(const MoePlanArgs<Id>& args);
template <class Id>
void moe_plan_cuda(const MoePlanArgs<Id>& args, void* stream);

}  // namespace warpup
