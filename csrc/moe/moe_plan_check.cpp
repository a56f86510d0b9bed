#include "moe/moe_plan_check.h"

#include "core/dispatch.h"
#include "moe/moe_plan.h"

namespace warpup {

int64_t moe_plan_rows(int64_t copies, int64_t experts, int64_t block) {
  constexpr int64_t kLargest = int64_t(1) << 20;  // no tile of a kernel has more rows; and nothing overflows
  if (block < 1 || block > kLargest) fail("moe_plan: block must be 1 to ", kLargest, ", got ", block);
  return (copies + experts * (block - 1)) / block * block;
}

void moe_plan(const View& indices, int64_t block, const View& counts, const View& offsets, const View& permutation,
              const View& inverse, const View& chunks) {
  const char* op = "moe_plan";
  Argument(op, "indices", indices).dtype({DType::i64, DType::i32}).dims(2).contiguous();
  const Device& device = indices.device;
  const auto run = [&]<class Id>() {
    MoePlanArgs<Id> args{};
    const auto output = [&](const char* name, const View& v, std::initializer_list<int64_t> shape) {
      Argument(op, name, v).dtype({DType::i64}).on(device).shape(shape).contiguous();
      return data<int64_t>(v);
    };
    Argument(op, "counts", counts).dims(1);
    args.copies = indices.numel(), args.experts = counts.sizes[0], args.block = block;
    if (args.experts < 1) fail(op, ": num_experts must be at least 1, got ", args.experts);
    args.rows = moe_plan_rows(args.copies, args.experts, block);
    args.experts_of = data<const Id>(indices);
    args.counts = output("counts", counts, {args.experts});
    args.offsets = output("offsets", offsets, {args.experts + 1});
    args.permutation = output("permutation", permutation, {args.rows});
    args.inverse = output("inverse", inverse, {indices.sizes[0], indices.sizes[1]});
    args.chunks = output("chunks", chunks, {MoePlanChunks::count(args.copies), args.experts});
    for (int64_t i = 0; !device.cuda && i < args.copies; ++i) {  // on a GPU this would synchronize
      const int64_t e = args.experts_of[i];
      if (e < -1 || e >= args.experts) {
        fail(op, ": indices[", i / indices.sizes[1], ", ", i % indices.sizes[1], "] = ", e, " is outside [-1, ",
             args.experts, ")");
      }
    }
    WARPUP_RUN(moe_plan, Id, device, args);
  };
  indices.dtype == DType::i64 ? run.template operator()<int64_t>() : run.template operator()<int32_t>();
}

}  // namespace warpup
