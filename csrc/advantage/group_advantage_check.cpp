#include "advantage/group_advantage_check.h"

#include "advantage/group_advantage.h"
#include "advantage/group_plan.h"
#include "advantage/masked_whiten.h"
#include "advantage/masked_whiten_check.h"
#include "core/dispatch.h"

namespace warpup {

namespace {

// Names to the enumerators 0, 1, ... in this order.
template <class Enum>
Enum choice(const char* op, const char* argument, std::string_view got, std::initializer_list<const char*> known) {
  int32_t i = 0;
  for (const char* name : known) {
    if (got == name) return static_cast<Enum>(i);
    ++i;
  }
  std::string list;
  for (const char* name : known) list += (list.empty() ? "" : ", ") + std::string(name);
  fail(op, ": ", argument, " must be one of ", list, "; got '", got, "'");
}

int64_t stride_of(const View& v) { return v.sizes[0] > 1 ? v.strides[0] : 1; }

// On CUDA this would synchronize; there the kernel copes with any contents.
void check_offsets(const char* op, const View& offsets, int64_t rows) {
  if (offsets.device.cuda) return;
  const int64_t *o = data<const int64_t>(offsets), groups = offsets.sizes[0] - 1;
  for (int64_t g = 0; g < groups; ++g) {
    if (o[g] > o[g + 1]) {
      fail(op, ": offsets must not descend, got offsets[", g, "] = ", o[g], " and offsets[", g + 1, "] = ", o[g + 1]);
    }
  }
  if (o[0] != 0 || o[groups] != rows) {
    fail(op, ": offsets must begin with 0 and end with the number of rewards, ", rows, "; got ", o[0], " and ",
         o[groups]);
  }
}

}  // namespace

void group_advantage(const View& rewards, const OptionalView& offsets, const OptionalView& order,
                     const OptionalView& lengths, const OptionalView& batch, int64_t group_size,
                     std::string_view baseline, std::string_view scale, double eps, int64_t correction,
                     std::string_view singleton, const View& advantages, const OptionalView& count,
                     const OptionalView& mean, const OptionalView& std, const OptionalView& mean_abs,
                     const OptionalView& zero_variance) {
  const char* op = "group_advantage";
  Argument(op, "rewards", rewards).dims(1);
  dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    GroupAdvantageArgs<T> args{};
    const int64_t rows = args.rows = rewards.sizes[0];
    args.rewards = data<const T>(rewards);
    args.rewards_stride = stride_of(rewards);

    args.baseline =
        choice<Baseline>(op, "baseline", baseline, {"mean", "leave_one_out", "length_weighted", "runner_up", "none"});
    args.scale = choice<Scale>(op, "scale", scale, {"std", "batch_std", "leave_one_out_std", "none"});
    args.singleton_raw = choice<int32_t>(op, "singleton", singleton, {"zero", "raw"}) == 1;
    args.correction = check_correction(op, correction);
    if (!(eps >= 0)) fail(op, ": eps must be at least 0, got ", eps);
    args.eps = eps;

    if (offsets) {
      Argument(op, "offsets", *offsets).dtype({DType::i64}).on(rewards.device).dims(1).contiguous();
      args.groups = offsets->sizes[0] - 1;
      if (args.groups < (rows > 0 ? 1 : 0)) {
        fail(op, ": offsets must have groups + 1 entries, got shape ", shape_of(*offsets), " for ", rows, " rewards");
      }
      check_offsets(op, *offsets, rows);
      if (group_size != 0) fail(op, ": give either offsets or the group size, got both");
      args.offsets = data<const int64_t>(*offsets);
    } else {
      if (group_size < 1) fail(op, ": the group size must be at least 1, got ", group_size);
      if (rows % group_size != 0) fail(op, ": ", rows, " rewards cannot be divided into groups of ", group_size);
      args.group_size = group_size;
      args.groups = rows / group_size;
    }
    if (order) {
      const Argument arg(op, "order", *order);
      arg.dtype({DType::i64}).on(rewards.device).shape({rows}).contiguous().indices(rows);
      args.order = data<const int64_t>(*order);
    }
    if (args.baseline == Baseline::length_weighted) {
      if (!lengths) fail(op, ": lengths are needed for baseline length_weighted");
      Argument(op, "lengths", *lengths).dtype({rewards.dtype}).on(rewards.device).shape({rows});
      args.lengths = data<const T>(*lengths);
      args.lengths_stride = stride_of(*lengths);
    } else if (lengths) {
      fail(op, ": lengths belong to baseline length_weighted, not to ", baseline);
    }
    if (args.scale == Scale::batch_std) {
      if (!batch) fail(op, ": batch (the moments of all rewards) is needed for scale batch_std");
      Argument(op, "batch", *batch).dtype({DType::f64}).on(rewards.device).shape({Moments::kResult}).contiguous();
      args.batch = data<const double>(*batch);
    } else if (batch) {
      fail(op, ": batch belongs to scale batch_std, not to ", scale);
    }

    const auto out = [&](const char* name, const View& v, DType dtype, int64_t length) {
      Argument(op, name, v).dtype({dtype}).on(rewards.device).shape({length}).contiguous();
      return v.data;
    };
    args.advantages = static_cast<T*>(out("advantages", advantages, rewards.dtype, rows));
    if (count || mean || std || mean_abs || zero_variance) {
      if (!(count && mean && std && mean_abs && zero_variance)) fail(op, ": give all five statistics, or none");
      args.count = static_cast<int64_t*>(out("count", *count, DType::i64, args.groups));
      args.mean = static_cast<T*>(out("mean", *mean, rewards.dtype, args.groups));
      args.std = static_cast<T*>(out("std", *std, rewards.dtype, args.groups));
      args.mean_abs = static_cast<T*>(out("mean_abs", *mean_abs, rewards.dtype, args.groups));
      args.zero_variance = static_cast<uint8_t*>(out("zero_variance", *zero_variance, DType::u8, args.groups));
    }
    WARPUP_RUN(group_advantage, T, rewards.device, args);
  });
}

#ifndef WARPUP_HOST_CUDA  // has a CPU kernel only
void group_plan(const View& ids, const View& order, const View& offsets) {
  const char* op = "group_plan";
  Argument(op, "ids", ids).dtype({DType::i64, DType::i32}).dims(1).contiguous();
  if (ids.device.cuda) fail(op, ": on a GPU, sort with the framework's own stable sort");
  const int64_t rows = ids.sizes[0];
  Argument(op, "order", order).dtype({DType::i64}).on(ids.device).shape({rows}).contiguous();
  Argument(op, "offsets", offsets).dtype({DType::i64}).on(ids.device).shape({rows + 1}).contiguous();
  const auto run = [&]<class Id>() {
    group_plan_cpu<Id>({rows, data<const Id>(ids), data<int64_t>(order), data<int64_t>(offsets)});
  };
  ids.dtype == DType::i64 ? run.template operator()<int64_t>() : run.template operator()<int32_t>();
}
#endif

}  // namespace warpup
