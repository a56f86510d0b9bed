// tree_advantage: the value of each node of a forest of partial responses, from the rewards of its leaves. The
// advantages of the edges come from these values by group_advantage, with siblings as the groups.
//
//   V(leaf) = its reward     V(node) = mean of its children's V, those that are NaN left out; NaN where all are
//
// Why      responses that share a beginning form a tree, of any shape: a parent waits for its children, which torch can
//          only do level by level. Here one kernel does it all.
// Layout   the children of a node are children[begin[node], end[node]), a leaf has none; contiguous. Nodes in any
//          order. A node on a cycle, or above one, gets NaN.
// Numerics sums over children in float64 (CPU), float32 or float64 as T (CUDA), in the order of `children`.
// Method   CPU: each node once, after its children, in whatever order the nodes are: O(nodes). CUDA: one block sweeps,
//          each time settling the nodes whose children are settled, until a sweep settles nothing: as many sweeps as the
//          tree is deep, O(nodes * depth); one block, so that no sweep needs a launch.
// Bytes    nodes * (2 sizeof(T) + 24) (a sweep).
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>  // float, double
struct TreeAdvantageArgs {
  int64_t nodes;
  const T* rewards;  // [nodes], read at the leaves
  const int64_t* children;
  const int64_t* begin;
  const int64_t* end;
  T* values;         // [nodes]
  uint8_t* settled;  // [nodes], scratch: 1 where the value is there
};

// Whether all children of the node are settled; if so `value` becomes its value.
template <class Sum, class T>
WARPUP_HD bool value_of(const TreeAdvantageArgs<T>& args, int64_t node, T* value) {
  const int64_t begin = args.begin[node], end = args.end[node];
  Sum sum = 0, n = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t child = args.children[i];
    if (!args.settled[child]) return false;
    const T v = args.values[child];
    if (v == v) sum += v, n += 1;
  }
  *value = begin < end ? static_cast<T>(sum / n) : args.rewards[node];  // 0 / 0: NaN
  return true;
}

template <class T>
void tree_advantage_cpu(const TreeAdvantageArgs<T>& args);
template <class T>
void tree_advantage_cuda(const TreeAdvantageArgs<T>& args, void* stream);

}  // namespace warpup
