// Entries of group_advantage and group_plan: check every argument, choose dtype and device, call the kernel.
#pragma once

#include <string_view>

#include "core/view.h"

namespace warpup {

// advantages and, where given, the statistics (all or none) are written; see advantage/group_advantage.h. Groups are
// `group_size` rows each or given by `offsets`. `batch` is the result of masked_moments(rewards), for scale batch_std.
void group_advantage(const View& rewards, const OptionalView& offsets, const OptionalView& order,
                     const OptionalView& lengths, const OptionalView& batch, int64_t group_size,
                     std::string_view baseline, std::string_view scale, double eps, int64_t correction,
                     std::string_view singleton, const View& advantages, const OptionalView& count,
                     const OptionalView& mean, const OptionalView& std, const OptionalView& mean_abs,
                     const OptionalView& zero_variance);

// order (rows,) and offsets (rows + 1,) are written; see advantage/group_plan.h.
void group_plan(const View& ids, const View& order, const View& offsets);

}  // namespace warpup
