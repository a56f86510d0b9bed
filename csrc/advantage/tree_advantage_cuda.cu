// One block, which sweeps over the nodes from the last to the first, 1024 at a time: first all look at their children,
// then all write, so that nobody reads what another thread is writing.
#include "advantage/tree_advantage.h"
#include "core/launch.cuh"
#include "core/math.h"

namespace warpup {
namespace {

constexpr int kThreads = 1024;

template <class T>
__global__ __launch_bounds__(kThreads) void tree_advantage_kernel(const TreeAdvantageArgs<T> args) {
  for (int64_t node = threadIdx.x; node < args.nodes; node += kThreads) {
    args.values[node] = kInf<T> - kInf<T>;
    args.settled[node] = 0;
  }
  __syncthreads();
  bool progress = true;
  while (__syncthreads_or(progress)) {
    progress = false;
    for (int64_t first = (args.nodes - 1) / kThreads * kThreads; first >= 0; first -= kThreads) {
      const int64_t node = first + threadIdx.x;
      T value = 0;
      const bool ready = node < args.nodes && !args.settled[node] && value_of<T>(args, node, &value);
      __syncthreads();
      if (ready) {
        args.values[node] = value;
        args.settled[node] = 1;
        progress = true;
      }
      __syncthreads();
    }
  }
}

}  // namespace

template <class T>
void tree_advantage_cuda(const TreeAdvantageArgs<T>& args, void* stream) {
  const dim3 grid(args.nodes > 0 ? 1 : 0);
  launch("tree_advantage", tree_advantage_kernel<T>, grid, dim3(kThreads), stream, args);
}

template void tree_advantage_cuda<float>(const TreeAdvantageArgs<float>& args, void* stream);
template void tree_advantage_cuda<double>(const TreeAdvantageArgs<double>& args, void* stream);

}  // namespace warpup
