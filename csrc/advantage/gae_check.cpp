#include "advantage/gae_check.h"

#include "advantage/gae.h"
#include "core/dispatch.h"

namespace warpup {

void gae(const View& rewards, const OptionalView& values, const View& mask, const OptionalView& bootstrap, double gamma,
         double decay, bool cut, const View& advantages, const OptionalView& returns) {
  const char* op = "gae";
  Argument(op, "rewards", rewards).dims(2).unit_stride_last();
  if (!(gamma >= 0 && gamma <= 1)) fail(op, ": gamma must be in [0, 1], got ", gamma);
  if (!(decay >= 0 && decay <= gamma)) fail(op, ": decay (gamma lam) must be in [0, gamma], got ", decay);
  dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const auto like_rewards = [&](const char* name, const View& v, DType dtype) {
      return Argument(op, name, v).dtype({dtype}).on(rewards.device).shape_like(rewards, 2);
    };
    GaeArgs<T> args{};
    args.rows = rewards.sizes[0], args.length = rewards.sizes[1];
    args.rewards = data<const T>(rewards), args.rewards_stride = rewards.strides[0];
    like_rewards("mask", mask, DType::u8).unit_stride_last();
    args.mask = data<const uint8_t>(mask), args.mask_stride = mask.strides[0];
    if (values) {
      like_rewards("values", *values, rewards.dtype).unit_stride_last();
      args.values = data<const T>(*values), args.values_stride = values->strides[0];
    }
    if (bootstrap) {
      Argument(op, "bootstrap", *bootstrap).dtype({rewards.dtype}).on(rewards.device).shape({args.rows}).contiguous();
      args.bootstrap = data<const T>(*bootstrap);
    }
    args.gamma = gamma, args.decay = decay, args.cut = cut;
    like_rewards("advantages", advantages, rewards.dtype).contiguous();
    args.advantages = data<T>(advantages);
    if (returns) {
      if (!values) fail(op, ": returns need values");
      like_rewards("returns", *returns, rewards.dtype).contiguous();
      args.returns = data<T>(*returns);
    }
    WARPUP_RUN(gae, T, rewards.device, args);
  });
}

}  // namespace warpup
