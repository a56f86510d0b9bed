#include <algorithm>

#include "advantage/tree_advantage.h"
#include "core/math.h"

namespace warpup {

template <class T>
void tree_advantage_cpu(const TreeAdvantageArgs<T>& args) {
  std::fill(args.values, args.values + args.nodes, kInf<T> - kInf<T>);
  std::fill(args.settled, args.settled + args.nodes, uint8_t{0});
  for (bool progress = true; progress;) {
    progress = false;
    for (int64_t node = args.nodes - 1; node >= 0; --node) {
      if (args.settled[node] || !value_of<double>(args, node, &args.values[node])) continue;
      args.settled[node] = 1;
      progress = true;
    }
  }
}

template void tree_advantage_cpu<float>(const TreeAdvantageArgs<float>& args);
template void tree_advantage_cpu<double>(const TreeAdvantageArgs<double>& args);

}  // namespace warpup
