#include <algorithm>
#include <vector>

#include "advantage/role_advantage.h"

namespace warpup {

template <class T>
void role_advantage_cpu(const RoleAdvantageArgs<T>& args) {
  std::vector<double> b(args.state, args.state + args.count);
  for (int64_t i = 0; i < args.rows; ++i) {
    const double r = args.rewards[i];
    double& baseline = b[args.roles[i]];
    const bool absent = r != r;
    args.advantages[i] = absent ? T(0) : static_cast<T>(r - baseline);
    if (!absent) baseline = args.decay * baseline + (1 - args.decay) * r;
  }
  std::copy(b.begin(), b.end(), args.new_state);
}

template void role_advantage_cpu<float>(const RoleAdvantageArgs<float>& args);
template void role_advantage_cpu<double>(const RoleAdvantageArgs<double>& args);

}  // namespace warpup
