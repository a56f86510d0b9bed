// Exact: a thread an element of the result; tiles of both operands go through shared memory. Sign: a thread four
// elements.
#include "core/launch.cuh"
#include "interval/interval_linear.h"

namespace warpup {
namespace {

constexpr int kTile = 16, kThreads = 256, kEach = 4;

template <class T>
__global__ __launch_bounds__(kTile* kTile) void exact_kernel(const IntervalLinearExactArgs<T> args) {
  __shared__ T ac[kTile][kTile + 1], ar[kTile][kTile + 1], bc[kTile][kTile + 1], br[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int64_t row0 = int64_t(blockIdx.x) * kTile, column0 = int64_t(blockIdx.y) * kTile;
  T shift = 0, excess = 0;
  for (int64_t k0 = 0; k0 < args.width; k0 += kTile) {
    const bool inside = k0 + x < args.width, in_a = inside && row0 + y < args.rows;
    const bool in_b = inside && column0 + y < args.columns;
    const int64_t a = (row0 + y) * args.width + k0 + x, b = (column0 + y) * args.width + k0 + x;
    __syncthreads();
    ac[y][x] = in_a ? args.a_center[a] : T(0), ar[y][x] = in_a ? args.a_radius[a] : T(0);
    bc[y][x] = in_b ? args.b_center[b] : T(0), br[y][x] = in_b ? args.b_radius[b] : T(0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const T m = least_product(ac[y][k], ar[y][k], bc[x][k], br[x][k]);
      excess += m, shift += m * sign_of_product(ac[y][k], bc[x][k]);
    }
  }
  if (row0 + y >= args.rows || column0 + x >= args.columns) return;
  const int64_t at = (row0 + y) * args.columns + column0 + x;
  args.shift[at] = shift, args.excess[at] = excess;
}

template <class T>
__global__ __launch_bounds__(kTile* kTile) void exact_backward_kernel(const IntervalLinearExactBackwardArgs<T> args) {
  __shared__ T bc[kTile][kTile + 1], br[kTile][kTile + 1], gs[kTile][kTile + 1], ge[kTile][kTile + 1];
  const int x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int64_t row0 = int64_t(blockIdx.x) * kTile, k = int64_t(blockIdx.y) * kTile + x;
  const bool mine = row0 + y < args.rows && k < args.width;
  const int64_t at = (row0 + y) * args.width + k;
  const T ac = mine ? args.a_center[at] : T(0), ar = mine ? args.a_radius[at] : T(0);
  T dc = 0, dr = 0;
  for (int64_t j0 = 0; j0 < args.columns; j0 += kTile) {
    const bool in_b = j0 + y < args.columns && k < args.width;
    // gs[r][j]: threads walk along what is contiguous
    const int r = args.transposed ? x : y, j = args.transposed ? y : x;
    const bool in_g = row0 + r < args.rows && j0 + j < args.columns;
    const int64_t b = (j0 + y) * args.width + k;
    const int64_t g = args.transposed ? (j0 + j) * args.rows + row0 + r : (row0 + r) * args.columns + j0 + j;
    __syncthreads();
    bc[y][x] = in_b ? args.b_center[b] : T(0), br[y][x] = in_b ? args.b_radius[b] : T(0);
    gs[r][j] = in_g ? args.grad_shift[g] : T(0), ge[r][j] = in_g ? args.grad_excess[g] : T(0);
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kTile; ++q) least_product_gradient(ac, ar, bc[q][x], br[q][x], gs[y][q], ge[y][q], &dc, &dr);
  }
  if (mine) args.out_center[at] = dc, args.out_radius[at] = dr;
}

template <class T>
__global__ __launch_bounds__(kThreads) void sign_kernel(const IntervalLinearSignArgs<T> args) {
  const int64_t begin = int64_t(blockIdx.x) * kThreads * kEach + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t i = begin + k * kThreads;
    if (i < args.count) args.gradient[i] = signed_sum(args.weight[i], args.gradient[i], args.base ? args.base[i] : T{});
  }
}

// Rows, which may be more than 65,535 tiles, along x.
dim3 tiles(int64_t across, int64_t down) {
  return dim3(static_cast<unsigned>(ceil_div(down, kTile)), static_cast<unsigned>(ceil_div(across, kTile)));
}

}  // namespace

template <class T>
void interval_linear_exact_cuda(const IntervalLinearExactArgs<T>& args, void* stream) {
  launch("interval_linear_exact", exact_kernel<T>, tiles(args.columns, args.rows), dim3(kTile * kTile), stream, args);
}

template <class T>
void interval_linear_exact_backward_cuda(const IntervalLinearExactBackwardArgs<T>& args, void* stream) {
  launch("interval_linear_exact_backward", exact_backward_kernel<T>, tiles(args.width, args.rows), dim3(kTile * kTile),
         stream, args);
}

template <class T>
void interval_linear_sign_cuda(const IntervalLinearSignArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.count, kThreads * kEach)));
  launch("interval_linear_sign", sign_kernel<T>, grid, dim3(kThreads), stream, args);
}

#define INSTANTIATE(T)                                                                   \
  template void interval_linear_exact_cuda<T>(const IntervalLinearExactArgs<T>&, void*); \
  template void interval_linear_exact_backward_cuda<T>(const IntervalLinearExactBackwardArgs<T>&, void*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
template void interval_linear_sign_cuda<float>(const IntervalLinearSignArgs<float>&, void*);
template void interval_linear_sign_cuda<double>(const IntervalLinearSignArgs<double>&, void*);
template void interval_linear_sign_cuda<bfloat16>(const IntervalLinearSignArgs<bfloat16>&, void*);
template void interval_linear_sign_cuda<float16>(const IntervalLinearSignArgs<float16>&, void*);

}  // namespace warpup
