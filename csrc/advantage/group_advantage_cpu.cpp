#include <algorithm>

#include "advantage/group_advantage_math.h"
#include "core/parallel.h"

namespace warpup {
namespace {

constexpr int64_t kGrain = 4096;  // rows a task, about 20 us

struct OneThread {
  template <class T>
  using Sum = double;
  static constexpr int rank = 0, size = 1;
  template <class V, class Op>
  V reduce(const V& value, Op) const {
    return value;
  }
};

}  // namespace

template <class T>
void group_advantage_cpu(const GroupAdvantageArgs<T>& args) {
  if (args.group_size > 0) {
    const int64_t grain = std::max<int64_t>(1, kGrain / args.group_size), n = args.group_size;
    parallel_for(0, args.groups, grain, [&args, n](int64_t first, int64_t last) {
      for (int64_t g = first; g < last; ++g) group_advantage_of(args, g, g * n, (g + 1) * n, true, OneThread{});
    });
    return;
  }
  // Shared out by rows, not by groups: sizes differ, and a plan from ids ends in empty groups. A group belongs to the
  // range that has its first row; those that begin at the very end are empty and go with the last range.
  const int64_t rows = args.rows;
  parallel_for(0, std::max<int64_t>(rows, 1), kGrain, [&args, rows](int64_t first, int64_t last) {
    const int64_t* o = args.offsets;
    int64_t g = std::lower_bound(o, o + args.groups, first) - o;
    for (; g < args.groups && (o[g] < last || last >= rows); ++g) {
      if (o[g] == rows && args.count == nullptr) break;
      group_advantage_of(args, g, o[g], o[g + 1], true, OneThread{});
    }
  });
}

#define INSTANTIATE(T) template void group_advantage_cpu<T>(const GroupAdvantageArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace warpup
