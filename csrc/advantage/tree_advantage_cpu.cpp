#include <algorithm>
#include <vector>

#include "advantage/tree_advantage.h"
#include "core/math.h"

namespace warpup {

template <class T>
void tree_advantage_cpu(const TreeAdvantageArgs<T>& args) {
  std::fill(args.values, args.values + args.nodes, kInf<T> - kInf<T>);
  std::fill(args.settled, args.settled + args.nodes, uint8_t{0});
  struct Visit {
    int64_t node, next;  // next of its children to look at
  };
  std::vector<Visit> path;  // from a node down to the one whose children are looked at
  std::vector<uint8_t> visited(args.nodes);
  const auto visit = [&](int64_t node) {
    visited[node] = 1;
    path.push_back({node, args.begin[node]});
  };
  for (int64_t first = 0; first < args.nodes; ++first) {
    if (!visited[first]) visit(first);
    while (!path.empty()) {
      Visit& at = path.back();
      while (at.next < args.end[at.node] && args.settled[args.children[at.next]]) ++at.next;
      if (at.next >= args.end[at.node]) {
        value_of<double>(args, at.node, &args.values[at.node]);
        args.settled[at.node] = 1;
        path.pop_back();
      } else if (const int64_t child = args.children[at.next]; visited[child]) {
        path.pop_back();  // a child that is never settled, or one on the path itself: a cycle
      } else {
        visit(child);
      }
    }
  }
}

template void tree_advantage_cpu<float>(const TreeAdvantageArgs<float>& args);
template void tree_advantage_cpu<double>(const TreeAdvantageArgs<double>& args);

}  // namespace warpup
