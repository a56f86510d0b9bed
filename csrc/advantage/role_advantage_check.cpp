#include "advantage/role_advantage_check.h"

#include "advantage/role_advantage.h"
#include "core/dispatch.h"

namespace warpup {

void role_advantage(const View& rewards, const View& roles, const View& state, double decay, const View& advantages,
                    const View& new_state) {
  const char* op = "role_advantage";
  Argument(op, "rewards", rewards).dims(1).contiguous();
  if (!(decay >= 0 && decay <= 1)) fail(op, ": decay must be in [0, 1], got ", decay);
  dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const auto vector = [&](const char* name, const View& v, DType dtype, int64_t length) {
      return Argument(op, name, v).dtype({dtype}).on(rewards.device).shape({length}).contiguous();
    };
    RoleAdvantageArgs<T> args{};
    args.rows = rewards.sizes[0];
    args.rewards = data<const T>(rewards);
    Argument(op, "baseline_state", state).dtype({rewards.dtype}).on(rewards.device).dims(1).contiguous();
    args.state = data<const T>(state);
    args.count = state.sizes[0];
    if (args.rows > 0 && args.count == 0) {
      fail(op, ": baseline_state has no role, yet there are ", args.rows, " rewards");
    }
    vector("roles", roles, DType::i64, args.rows).indices(args.count);
    args.roles = data<const int64_t>(roles);
    args.decay = decay;
    vector("advantages", advantages, rewards.dtype, args.rows);
    args.advantages = data<T>(advantages);
    vector("new_state", new_state, rewards.dtype, args.count);
    args.new_state = data<T>(new_state);
    WARPUP_RUN(role_advantage, T, rewards.device, args);
  });
}

}  // namespace warpup
