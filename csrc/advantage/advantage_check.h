// Entries of the advantage family: check every argument, choose dtype and device, call the twin.
#pragma once

#include <string>

#include "advantage/group_advantage.h"
#include "advantage/group_plan.h"
#include "advantage/masked_whiten.h"
#include "advantage/reverse_scan.h"
#include "advantage/role_advantage.h"
#include "advantage/tree_values.h"
#include "core/dispatch.h"

namespace warpup {

namespace detail {

// The kernels of this family compute in the type they read; callers widen 16-bit rewards first.
template <class Body>
void dispatch_wide(const char* op, const char* name, DType dtype, const Body& body) {
  if (dtype == DType::f32) return body.template operator()<float>();
  if (dtype == DType::f64) return body.template operator()<double>();
  fail(op, ": ", name, " must be float32 or float64, got ", name_of(dtype));
}

// Names to the enumerators 0, 1, ... in this order.
template <class Enum>
Enum choice(const char* op, const char* argument, const std::string& got, std::initializer_list<const char*> known) {
  int32_t i = 0;
  std::string list;
  for (const char* name : known) {
    if (got == name) return static_cast<Enum>(i);
    list += (i++ ? ", " : "") + std::string(name);
  }
  fail(op, ": ", argument, " must be one of ", list, "; got '", got, "'");
}

inline int64_t stride_of(const View& v) { return v.sizes[0] > 1 ? v.strides[0] : 1; }

inline int32_t check_correction(const char* op, int64_t correction) {
  if (correction != 0 && correction != 1) fail(op, ": correction must be 0 or 1, got ", correction);
  return static_cast<int32_t>(correction);
}

// On CUDA these would synchronise; there the kernels cope with any contents.
inline void check_offsets(const char* op, const View& offsets, int64_t rows) {
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

inline void check_indices(const char* op, const char* name, const View& indices, int64_t limit) {
  if (indices.device.cuda) return;
  for (int64_t i = 0; i < indices.sizes[0]; ++i) {
    const int64_t index = data<const int64_t>(indices)[i];
    if (index < 0 || index >= limit) fail(op, ": ", name, "[", i, "] = ", index, " is outside [0, ", limit, ")");
  }
}

}  // namespace detail

// advantages and, where given, the statistics (all or none) are written; see advantage/group_advantage.h. Groups are
// `group_size` rows each or given by `offsets`. `batch` is the result of masked_moments(rewards), for scale batch_std.
inline void group_advantage(const View& rewards, const OptionalView& offsets, const OptionalView& order,
                            const OptionalView& lengths, const OptionalView& batch, int64_t group_size,
                            const std::string& baseline, const std::string& scale, double eps, int64_t correction,
                            const std::string& singleton, const View& advantages, const OptionalView& count,
                            const OptionalView& mean, const OptionalView& std, const OptionalView& mean_abs,
                            const OptionalView& zero_variance) {
  const char* op = "group_advantage";
  Argument(op, "rewards", rewards).dims(1);
  detail::dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    GroupAdvantageArgs<T> args{};
    const int64_t rows = args.rows = rewards.sizes[0];
    args.rewards = data<const T>(rewards);
    args.rewards_stride = detail::stride_of(rewards);
    args.baseline = detail::choice<Baseline>(op, "baseline", baseline,
                                             {"mean", "leave_one_out", "length_weighted", "runner_up", "none"});
    args.scale = detail::choice<Scale>(op, "scale", scale, {"std", "batch_std", "leave_one_out_std", "none"});
    args.singleton_raw = detail::choice<int32_t>(op, "singleton", singleton, {"zero", "raw"}) == 1;
    args.correction = detail::check_correction(op, correction);
    if (!(eps >= 0)) fail(op, ": eps must be at least 0, got ", eps);
    args.eps = eps;
    if (offsets) {
      Argument(op, "offsets", *offsets).dtype({DType::i64}).on(rewards.device).dims(1).contiguous();
      args.groups = offsets->sizes[0] - 1;
      if (args.groups < (rows > 0 ? 1 : 0)) {
        fail(op, ": offsets must have groups + 1 entries, got shape ", shape_of(*offsets), " for ", rows, " rewards");
      }
      detail::check_offsets(op, *offsets, rows);
      args.offsets = data<const int64_t>(*offsets);
    } else {
      if (group_size < 1) fail(op, ": the group size must be at least 1, got ", group_size);
      if (rows % group_size != 0) fail(op, ": ", rows, " rewards cannot be divided into groups of ", group_size);
      args.group_size = group_size;
      args.groups = rows / group_size;
    }
    if (order) {
      Argument(op, "order", *order).dtype({DType::i64}).on(rewards.device).shape({rows}).contiguous();
      detail::check_indices(op, "order", *order, rows);
      args.order = data<const int64_t>(*order);
    }
    if (args.baseline == Baseline::length_weighted) {
      if (!lengths) fail(op, ": lengths are needed for baseline length_weighted");
      Argument(op, "lengths", *lengths).dtype({rewards.dtype}).on(rewards.device).shape({rows});
      args.lengths = data<const T>(*lengths);
      args.lengths_stride = detail::stride_of(*lengths);
    }
    if (args.scale == Scale::batch_std) {
      if (!batch) fail(op, ": batch (the moments of all rewards) is needed for scale batch_std");
      Argument(op, "batch", *batch).dtype({DType::f64}).on(rewards.device).shape({Moments::kResult}).contiguous();
      args.batch = data<const double>(*batch);
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

#ifndef WARPUP_HOST_CUDA  // has a CPU twin only
// order (N,) and offsets (N + 1,) are written; see advantage/group_plan.h.
inline void group_plan(const View& ids, const View& order, const View& offsets) {
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

// x (and returns, with values) are written; see advantage/reverse_scan.h.
inline void reverse_scan(const View& rewards, const OptionalView& values, const View& mask,
                         const OptionalView& bootstrap, double gamma, double decay, bool cut, const View& x,
                         const OptionalView& returns) {
  const char* op = "reverse_scan";
  Argument(op, "rewards", rewards).dims(2).unit_stride_last();
  detail::dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const auto like_rewards = [&](const char* name, const View& v, DType dtype) {
      Argument(op, name, v).dtype({dtype}).on(rewards.device).shape_like(rewards, 2).unit_stride_last();
    };
    ReverseScanArgs<T> args{};
    args.rows = rewards.sizes[0], args.length = rewards.sizes[1];
    args.rewards = data<const T>(rewards), args.rewards_stride = rewards.strides[0];
    like_rewards("mask", mask, DType::u8);
    args.mask = data<const uint8_t>(mask), args.mask_stride = mask.strides[0];
    if (values) {
      like_rewards("values", *values, rewards.dtype);
      args.values = data<const T>(*values), args.values_stride = values->strides[0];
    }
    if (bootstrap) {
      Argument(op, "bootstrap", *bootstrap).dtype({rewards.dtype}).on(rewards.device).shape({args.rows}).contiguous();
      args.bootstrap = data<const T>(*bootstrap);
    }
    args.gamma = gamma, args.decay = decay, args.cut = cut;
    like_rewards("x", x, rewards.dtype);
    Argument(op, "x", x).contiguous();
    args.x = data<T>(x);
    if (returns) {
      if (!values) fail(op, ": returns need values");
      like_rewards("returns", *returns, rewards.dtype);
      Argument(op, "returns", *returns).contiguous();
      args.returns = data<T>(*returns);
    }
    WARPUP_RUN(reverse_scan, T, rewards.device, args);
  });
}

// advantages (N,) and new_state (roles,) are written; see advantage/role_advantage.h.
inline void role_advantage(const View& rewards, const View& roles, const View& state, double decay,
                           const View& advantages, const View& new_state) {
  const char* op = "role_advantage";
  Argument(op, "rewards", rewards).dims(1).contiguous();
  detail::dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const int64_t rows = rewards.sizes[0];
    Argument(op, "roles", roles).dtype({DType::i64}).on(rewards.device).shape({rows}).contiguous();
    Argument(op, "baseline_state", state).dtype({rewards.dtype}).on(rewards.device).dims(1).contiguous();
    const int64_t count = state.sizes[0];
    if (rows > 0 && count == 0) fail(op, ": baseline_state has no role, yet there are ", rows, " rewards");
    detail::check_indices(op, "roles", roles, count);
    if (!(decay >= 0 && decay <= 1)) fail(op, ": decay must be in [0, 1], got ", decay);
    Argument(op, "advantages", advantages).dtype({rewards.dtype}).on(rewards.device).shape({rows}).contiguous();
    Argument(op, "new_state", new_state).dtype({rewards.dtype}).on(rewards.device).shape({count}).contiguous();
    const RoleAdvantageArgs<T> args{rows,
                                    count,
                                    data<const T>(rewards),
                                    data<const int64_t>(roles),
                                    data<const T>(state),
                                    decay,
                                    data<T>(advantages),
                                    data<T>(new_state)};
    WARPUP_RUN(role_advantage, T, rewards.device, args);
  });
}

namespace detail {

template <class T>
MaskedMomentsArgs<T> moments_args(const char* op, const View& x, const OptionalView& mask, bool skip_nan,
                                  int64_t correction, const View& partials, const View& moments) {
  const int64_t count = x.numel();
  if (mask) Argument(op, "mask", *mask).dtype({DType::u8}).on(x.device).shape_like(x, x.dims).contiguous();
  Argument(op, "partials", partials)
      .dtype({DType::f64})
      .on(x.device)
      .shape({Moments::chunks(count), Moments::kPartial})
      .contiguous();
  Argument(op, "moments", moments).dtype({DType::f64}).on(x.device).shape({Moments::kResult}).contiguous();
  return {count,
          data<const T>(x),
          data<const uint8_t>(mask),
          skip_nan,
          check_correction(op, correction),
          data<double>(partials),
          data<double>(moments)};
}

}  // namespace detail

// moments (4,) float64 are written, partials (Moments::chunks, 5) float64 are scratch; see advantage/masked_whiten.h.
inline void masked_moments(const View& x, const OptionalView& mask, bool skip_nan, int64_t correction,
                           const View& partials, const View& moments) {
  const char* op = "masked_moments";
  Argument(op, "x", x).contiguous();
  detail::dispatch_wide(op, "x", x.dtype, [&]<class T>() {
    const auto args = detail::moments_args<T>(op, x, mask, skip_nan, correction, partials, moments);
    WARPUP_RUN(masked_moments, T, x.device, args);
  });
}

// out (the shape of x; may be x itself) and moments are written, partials are scratch.
inline void masked_whiten(const View& x, const OptionalView& mask, bool shift_mean, int64_t correction, double eps,
                          const View& out, const View& partials, const View& moments) {
  const char* op = "masked_whiten";
  Argument(op, "x", x).contiguous();
  detail::dispatch_wide(op, "x", x.dtype, [&]<class T>() {
    if (!(eps >= 0)) fail(op, ": eps must be at least 0, got ", eps);
    Argument(op, "out", out).dtype({x.dtype}).on(x.device).shape_like(x, x.dims).contiguous();
    const MaskedWhitenArgs<T> args{detail::moments_args<T>(op, x, mask, false, correction, partials, moments),
                                   shift_mean, eps, data<T>(out)};
    WARPUP_RUN(masked_whiten, T, x.device, args);
  });
}

// values (M,) are written, settled (M,) is scratch; see advantage/tree_values.h.
inline void tree_values(const View& rewards, const View& children, const View& begin, const View& end,
                        const View& values, const View& settled) {
  const char* op = "tree_values";
  Argument(op, "rewards", rewards).dims(1).contiguous();
  detail::dispatch_wide(op, "rewards", rewards.dtype, [&]<class T>() {
    const int64_t nodes = rewards.sizes[0];
    const auto index = [&](const char* name, const View& v, int64_t limit) {
      Argument(op, name, v).dtype({DType::i64}).on(rewards.device).shape({nodes}).contiguous();
      detail::check_indices(op, name, v, limit);
      return data<const int64_t>(v);
    };
    TreeValuesArgs<T> args{};
    args.nodes = nodes;
    args.rewards = data<const T>(rewards);
    args.children = index("children", children, nodes);
    args.begin = index("begin", begin, nodes + 1);
    args.end = index("end", end, nodes + 1);
    Argument(op, "values", values).dtype({rewards.dtype}).on(rewards.device).shape({nodes}).contiguous();
    args.values = data<T>(values);
    Argument(op, "settled", settled).dtype({DType::u8}).on(rewards.device).shape({nodes}).contiguous();
    args.settled = data<uint8_t>(settled);
    WARPUP_RUN(tree_values, T, rewards.device, args);
  });
}

}  // namespace warpup
