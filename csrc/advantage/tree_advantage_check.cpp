#include "advantage/tree_advantage_check.h"

#include "advantage/tree_advantage.h"
#include "core/dispatch.h"

namespace warpup {

void tree_advantage(const View& rewards, const View& children, const View& begin, const View& end, const View& values,
                    const View& settled) {
  const char* op = "tree_advantage";
  Argument(op, "rewards", rewards).dims(1).contiguous();
  dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const auto node = [&](const char* name, const View& v, DType dtype) {
      return Argument(op, name, v).dtype({dtype}).on(rewards.device).shape({rewards.sizes[0]}).contiguous();
    };
    TreeAdvantageArgs<T> args{};
    args.nodes = rewards.sizes[0];
    args.rewards = data<const T>(rewards);
    node("children", children, DType::i64).indices(args.nodes);
    node("begin", begin, DType::i64).indices(args.nodes + 1);
    node("end", end, DType::i64).indices(args.nodes + 1);
    args.children = data<const int64_t>(children);
    args.begin = data<const int64_t>(begin), args.end = data<const int64_t>(end);
    node("values", values, rewards.dtype);
    args.values = data<T>(values);
    node("settled", settled, DType::u8);
    args.settled = data<uint8_t>(settled);
    WARPUP_RUN(tree_advantage, T, rewards.device, args);
  });
}

}  // namespace warpup
