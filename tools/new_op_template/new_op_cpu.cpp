#include "core/parallel.h"
#include "new_family/new_op.h"

namespace warpup {

template <class T>
void new_op_cpu(const NewOpArgs<T>& args) {
  using Acc = acc_t<T>;
  const Acc scale = static_cast<Acc>(args.scale);
  parallel_for(0, args.count, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) args.out[i] = store<T>(scale * load(args.x[i]));
  });
}

template void new_op_cpu<float>(const NewOpArgs<float>& args);
template void new_op_cpu<double>(const NewOpArgs<double>& args);
template void new_op_cpu<bfloat16>(const NewOpArgs<bfloat16>& args);
template void new_op_cpu<float16>(const NewOpArgs<float16>& args);

}  // namespace warpup
