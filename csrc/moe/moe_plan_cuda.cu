// Three launches: a warp a chunk counts, one block adds up, a warp a chunk places. No atomics: equal experts among 32
// copies find each other, and one of them counts for all.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "moe/moe_plan.h"

namespace warpup {
namespace {

constexpr int kScanThreads = 256;

template <class Id, bool kPlace>
__global__ __launch_bounds__(32) void moe_plan_chunk_kernel(const MoePlanArgs<Id> args, int64_t size) {
  const int lane = threadIdx.x;
  const int64_t begin = int64_t(blockIdx.x) * size;
  const int64_t end = args.copies - begin < size ? args.copies : begin + size;
  int64_t* at = args.chunks + int64_t(blockIdx.x) * args.experts;
  if constexpr (!kPlace) {
    for (int64_t e = lane; e < args.experts; e += 32) at[e] = 0;
    __syncwarp();
  }
  for (int64_t first = begin; first < end; first += 32) {  // the whole warp stays together
    const int64_t i = first + lane;
    long long e = -1;
    if (i < end) e = args.experts_of[i];
    const bool valid = e >= 0 && e < args.experts;
    const unsigned peers = __match_any_sync(kFullWarp, valid ? e : -1);
    const int rank = __popc(peers & ((1u << lane) - 1));
    const int64_t before = valid ? at[e] : 0;
    __syncwarp();
    if (valid && rank == 0) at[e] = before + __popc(peers);
    __syncwarp();
    if constexpr (kPlace) {
      if (valid) args.permutation[args.offsets[e] + before + rank] = i;
      if (i < end) args.inverse[i] = valid ? args.offsets[e] + before + rank : -1;
    }
  }
}

template <class Id>
__global__ __launch_bounds__(kScanThreads) void moe_plan_scan_kernel(const MoePlanArgs<Id> args, int64_t chunks) {
  __shared__ int64_t ends[kScanThreads];
  const int thread = threadIdx.x;
  int64_t carry = 0;
  if (thread == 0) args.offsets[0] = 0;
  for (int64_t first = 0; first < args.experts; first += kScanThreads) {
    const int64_t e = first + thread;
    int64_t count = 0;
    if (e < args.experts) {
#pragma unroll 4
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t here = args.chunks[c * args.experts + e];
        args.chunks[c * args.experts + e] = count;
        count += here;
      }
      args.counts[e] = count;
    }
    int64_t end = ceil_div(count, args.block) * args.block;
    for (int step = 1; step < kScanThreads; step *= 2) {
      ends[thread] = end;
      __syncthreads();
      if (thread >= step) end += ends[thread - step];
      __syncthreads();
    }
    ends[thread] = end;
    __syncthreads();
    if (e < args.experts) args.offsets[e + 1] = carry + end;
    carry += ends[kScanThreads - 1];
    __syncthreads();
  }
}

__global__ __launch_bounds__(256) void moe_plan_clear_kernel(int64_t rows, int64_t* permutation) {
  const int64_t s = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (s < rows) permutation[s] = -1;
}

}  // namespace

template <class Id>
void moe_plan_cuda(const MoePlanArgs<Id>& args, void* stream) {
  const int64_t size = MoePlanChunks::size(args.copies), chunks = MoePlanChunks::count(args.copies);
  const dim3 grid(static_cast<unsigned>(chunks)), rows(static_cast<unsigned>(ceil_div(args.rows, 256)));
  launch("moe_plan_clear", moe_plan_clear_kernel, rows, dim3(256), stream, args.rows, args.permutation);
  launch("moe_plan_count", moe_plan_chunk_kernel<Id, false>, grid, dim3(32), stream, args, size);
  launch("moe_plan_scan", moe_plan_scan_kernel<Id>, dim3(1), dim3(kScanThreads), stream, args, chunks);
  launch("moe_plan_place", moe_plan_chunk_kernel<Id, true>, grid, dim3(32), stream, args, size);
}

template void moe_plan_cuda<int64_t>(const MoePlanArgs<int64_t>& args, void* stream);
template void moe_plan_cuda<int32_t>(const MoePlanArgs<int32_t>& args, void* stream);

}  // namespace warpup
