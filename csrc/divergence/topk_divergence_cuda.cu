// Forward: one block a row, one read of the student's; the K listed tokens are fetched once its log-sum is there.
// Backward: one block a piece of a row, which writes the softmax, then the listed tokens of that piece again.
#include "divergence/divergence_rows.cuh"
#include "divergence/topk_divergence.h"

namespace warpup {
namespace {

template <class T>
__global__ __launch_bounds__(kMaxThreads) void topk_divergence_kernel(const TopkDivergenceArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const T* x = args.student + args.student_rows.offset(r);
  const int64_t* ids = args.ids + args.ids_rows.offset(r);
  const Acc* logp = args.logp + args.logp_rows.offset(r);
  const Acc inv_t = inverse_temperature(args, r), nan = kInf<Acc> - kInf<Acc>;
  RowSum<Acc> sum{0, 0};
  if (counts(args, r)) sum = sum_row(x, args.vocab, inv_t);
  const bool empty = sum.sum == 0;
  const auto s = row_side(sum.max, sum.sum);
  Sums<Acc> sums{0, 0};
  for (int64_t k = threadIdx.x; k < args.k && !empty; k += blockDim.x) {
    const bool inside = ids[k] >= 0 && ids[k] < args.vocab && inv_t > 0;
    const Acc log_s = inside ? s(load(x[ids[k]]), inv_t).x - s.log : nan, log_t = logp[k];
    if (log_t == -kInf<Acc> || log_s == -kInf<Acc>) continue;
    const Acc p = exp_neg(log_t);
    sums.value += p * (log_t - log_s), sums.c += inside ? p : nan;
  }
  sums = block_reduce_up_to<kMaxThreads>(sums, Add{});
  if (threadIdx.x != 0) return;
  args.value[r] = sums.value;
  Acc* stats = args.stats + kTopkStats * r;
  stats[0] = empty ? Acc(0) : sum.max, stats[1] = sum.sum, stats[2] = sums.c;
}

template <class T>
__global__ __launch_bounds__(kBackwardThreads) void topk_divergence_backward_kernel(
    const TopkDivergenceBackwardArgs<T> args, int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.student + f.student_rows.offset(r) + begin;
  T* dz = args.grad_student + args.grad_student_rows.offset(r) + begin;
  const Acc* stats = f.stats + kTopkStats * r;
  const auto s = row_side(stats[0], stats[1]);
  const Acc listed = stats[2], g = args.grad_value[r];
  const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
  const bool zero = s.sum == 0 || g == 0;
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  walk<1>(x, n, threadIdx.x, kBackwardThreads, [&]<int N>(const Acc(&z)[N], int64_t first) {
    Acc out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = zero ? Acc(0) : factor * listed * s(z[i], inv_t).p;
    store_all(dz + first, out, aligned);
  });
  if (zero) return;
  __syncthreads();  // the listed tokens of this piece are written again
  const int64_t* ids = f.ids + f.ids_rows.offset(r);
  const Acc* logp = f.logp + f.logp_rows.offset(r);
  for (int64_t k = threadIdx.x; k < f.k; k += kBackwardThreads) {
    const int64_t j = ids[k] - begin;
    if (j < 0 || j >= n) continue;
    const auto token = s(load(x[j]), inv_t);
    if (token.x == -kInf<Acc>) continue;
    Acc p = 0;  // of all entries with this id: a token listed twice counts twice, and both write the same
    for (int64_t i = 0; i < f.k; ++i) p += ids[i] == ids[k] ? exp_neg(logp[i]) : Acc(0);
    dz[j] = store<T>(factor * (token.p * listed - p));
  }
}

}  // namespace

template <class T>
void topk_divergence_cuda(const TopkDivergenceArgs<T>& args, void* stream) {
  launch("topk_divergence", topk_divergence_kernel<T>, dim3(static_cast<unsigned>(args.student_rows.count)), dim3(256),
         stream, args);
}

template <class T>
void topk_divergence_backward_cuda(const TopkDivergenceBackwardArgs<T>& args, void* stream) {
  const int64_t piece = piece_of<T>(args.forward.vocab), pieces = ceil_div(args.forward.vocab, piece);
  launch("topk_divergence_backward", topk_divergence_backward_kernel<T>,
         dim3(static_cast<unsigned>(args.forward.student_rows.count * pieces)), dim3(kBackwardThreads), stream, args,
         piece, pieces);
}

#define INSTANTIATE(T)                                                                    \
  template void topk_divergence_cuda<T>(const TopkDivergenceArgs<T>& args, void* stream); \
  template void topk_divergence_backward_cuda<T>(const TopkDivergenceBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
