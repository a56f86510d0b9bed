// Forward: one block a row, which reads both rows once for their log-sums and again, from L2 where they fit, for the
// terms. Backward: one block a piece of a row, so that few long rows fill the GPU too.
#include <algorithm>

#include "core/launch.cuh"
#include "core/math.h"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "divergence/divergence.h"

namespace warpup {
namespace {

template <class T>
constexpr int kUnroll = sizeof(T) == 8 ? 1 : 2;  // 16-byte loads in flight a thread and side

template <class Acc>
struct Softmax {  // of the z seen so far: max, sum of exp((z - max) / T)
  Acc max, sum;
};

template <class Acc>
struct Sums {
  Acc value, c;
};

struct Add {
  template <class Acc>
  __device__ Sums<Acc> operator()(Sums<Acc> a, Sums<Acc> b) const {
    return {a.value + b.value, a.c + b.c};
  }
};

struct Least {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; }
};

template <class Acc>
__device__ __forceinline__ Acc rescaled(Softmax<Acc> s, Acc max, Acc inv_t) {
  return s.max == max || s.sum == 0 ? s.sum : s.sum * exp_neg((s.max - max) * inv_t);
}

template <class Acc>
struct Combine {
  Acc inv_t;
  __device__ Softmax<Acc> operator()(Softmax<Acc> a, Softmax<Acc> b) const {
    const Acc max = a.max > b.max ? a.max : b.max;
    return {max, rescaled(a, max, inv_t) + rescaled(b, max, inv_t)};
  }
};

template <int kThreads, class T>
__device__ __forceinline__ Softmax<acc_t<T>> sum_row(const T* x, int64_t n, acc_t<T> inv_t) {
  using Acc = acc_t<T>;
  Softmax<Acc> row{-kInf<Acc>, 0};
  walk<2 * kUnroll<T>>(x, n, threadIdx.x, kThreads, [&]<int N>(const Acc(&z)[N], int64_t) {
    Acc max = row.max;
#pragma unroll
    for (int i = 0; i < N; ++i) max = z[i] > max ? z[i] : max;
    row = {max, rescaled(row, max, inv_t)};
    const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma unroll
    for (int i = 0; i < N; ++i) row.sum += exp_neg((z[i] - shift) * inv_t);
  });
  return block_reduce<kThreads>(row, Combine<Acc>{inv_t});
}

// `walk` over two rows at once, in vectors where both are aligned alike: body(values, others, first).
template <int kUnroll, class T, class Body>
__device__ __forceinline__ void walk_both(const T* x, const T* y, int64_t n, int rank, int step, Body body) {
  using Acc = acc_t<T>;
  const bool alike = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(y)) & 15) == 0;
  const int64_t head = alike ? unaligned_head(x, n) : n, vectors = (n - head) / kVec<T>;
  const auto scalars = [&](int64_t begin, int64_t end) {
    for (int64_t j = begin + rank; j < end; j += step) {
      const Acc one[1] = {load(x[j])}, other[1] = {load(y[j])};
      body(one, other, j);
    }
  };
  scalars(0, head);
  for (int64_t v = rank; v < vectors; v += int64_t(step) * kUnroll) {
    uint4 raw[2][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = v + u * int64_t(step);
      if (at < vectors) {
        raw[0][u] = __ldcs(reinterpret_cast<const uint4*>(x + head + at * kVec<T>));
        raw[1][u] = __ldcs(reinterpret_cast<const uint4*>(y + head + at * kVec<T>));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = v + u * int64_t(step);
      if (at >= vectors) break;
      Acc one[kVec<T>], other[kVec<T>];
      unpack<T>(raw[0][u], one);
      unpack<T>(raw[1][u], other);
      body(one, other, head + at * kVec<T>);
    }
  }
  scalars(head + vectors * kVec<T>, n);
}

template <class Args>
__device__ __forceinline__ auto inverse_temperature(const Args& args, int64_t r) {
  return typename Args::Acc(
      1 / (args.temperature ? double(args.temperature[args.temperature_rows.offset(r)]) : args.temperature_scalar));
}

template <class Args>
__device__ __forceinline__ bool masked(const Args& args, int64_t r) {
  return args.mask && args.mask[args.mask_rows.offset(r)] == 0;
}

template <class T, int N>
__device__ __forceinline__ void put(T* dz, const acc_t<T> (&out)[N], bool aligned) {
  if constexpr (N == kVec<T>) {
    if (aligned) return store_vec(dz, out);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) dz[i] = store<T>(out[i]);
}

// ---- divergence -----------------------------------------------------------------------------------------------------

// The teacher's value at an index, after the swap of two entries (none where both indices are -1).
template <class Acc>
struct Swap {
  int64_t top = -1, y = -1;
  Acc at_top = 0, at_y = 0;
  __device__ Acc operator()(int64_t j, Acc t) const { return j == top ? at_y : j == y ? at_top : t; }
};

template <class T, Divergence kind, int kThreads>
__global__ __launch_bounds__(kThreads) void divergence_kernel(const DivergenceArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x, n = args.vocab;
  const T* x_s = args.student + args.student_rows.offset(r);
  const T* x_t = args.teacher + args.teacher_rows.offset(r);
  DivergenceRow<Acc> row;
  const Acc inv_t = row.inv_t = inverse_temperature(args, r);
  row.beta = static_cast<Acc>(args.beta);
  bool empty = masked(args, r);  // the same for the whole block, like all that decides below
  if (!empty && kind != Divergence::binary) {
    const auto sum_s = sum_row<kThreads>(x_s, n, inv_t), sum_t = sum_row<kThreads>(x_t, n, inv_t);
    empty = sum_s.sum == 0 || sum_t.sum == 0;
    row = divergence_row(row_side(sum_s.max, sum_s.sum), row_side(sum_t.max, sum_t.sum), inv_t, row.beta, Acc(0));
  }
  bool invalid = !(inv_t > 0);
  Swap<Acc> swap;
  Sums<Acc> sums{0, 0};
  if (!empty) {
    if (kind == Divergence::forward && args.targets) {
      int64_t top = n;
      for (int64_t j = threadIdx.x; j < n && top == n; j += kThreads) top = load(x_t[j]) == row.t.max ? j : n;
      swap.top = block_reduce<kThreads>(top, Least{});
      swap.y = args.targets[args.targets_rows.offset(r)];
      invalid = invalid || swap.y < 0 || swap.y >= n || swap.top == n;  // there is no maximum where there is NaN
      if (!invalid) swap.at_top = row.t.max, swap.at_y = load(x_t[swap.y]);
    }
    walk_both<kUnroll<T>>(x_s, x_t, n, threadIdx.x, kThreads,
                          [&]<int N>(const Acc(&a)[N], const Acc(&b)[N], int64_t first) {
#pragma unroll
                            for (int i = 0; i < N; ++i) {
                              const Acc z_t = kind == Divergence::forward ? swap(first + i, b[i]) : b[i];
                              const auto term = divergence_term<kind>(row, a[i], z_t);
                              sums.value += term.value, sums.c += term.c;
                            }
                          });
    sums = block_reduce<kThreads>(sums, Add{});
  }
  if (threadIdx.x != 0) return;
  const Acc nan = kInf<Acc> - kInf<Acc>;
  Acc* stats = args.stats + kDivergenceStats * r;
  args.value[r] = empty ? Acc(0) : invalid ? nan : sums.value;
  stats[0] = empty ? Acc(0) : row.s.max;
  stats[1] = empty ? Acc(0) : invalid ? nan : row.s.sum;
  stats[2] = empty ? Acc(0) : row.t.max;
  stats[3] = empty ? Acc(0) : row.t.sum;
  stats[4] = sums.c;
  stats[5] = empty ? Acc(0) : static_cast<Acc>(swap.top);
}

template <class T, Divergence kind, int kThreads>
__global__ __launch_bounds__(kThreads) void divergence_backward_kernel(const DivergenceBackwardArgs<T> args,
                                                                       int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const DivergenceArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x_s = f.student + f.student_rows.offset(r) + begin;
  const T* x_t = f.teacher + f.teacher_rows.offset(r);
  T* dz = args.grad_student + args.grad_student_rows.offset(r) + begin;
  const Acc* stats = f.stats + kDivergenceStats * r;
  const Acc g = args.grad_value[args.grad_value_rows.offset(r)];
  const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
  DivergenceRow<Acc> row;
  row.inv_t = inv_t;
  if constexpr (kind != Divergence::binary) {
    row = divergence_row(row_side(stats[0], stats[1]), row_side(stats[2], stats[3]), inv_t, static_cast<Acc>(f.beta),
                         stats[4]);
  }
  const bool zero = stats[1] == 0 || g == 0;
  Swap<Acc> swap;
  if (kind == Divergence::forward && f.targets && !zero && stats[1] == stats[1]) {
    const int64_t top = static_cast<int64_t>(stats[5]), y = f.targets[f.targets_rows.offset(r)];
    swap = {top - begin, y - begin, load(x_t[top]), load(x_t[y])};
  }
  const bool aligned = ((reinterpret_cast<intptr_t>(x_s) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  constexpr int kVectors = kind == Divergence::binary ? 1 : kUnroll<T>;  // two sigmoids take many registers
  walk_both<kVectors>(x_s, x_t + begin, n, threadIdx.x, kThreads,
                      [&]<int N>(const Acc(&a)[N], const Acc(&b)[N], int64_t first) {
                        Acc out[N];
#pragma unroll
                        for (int i = 0; i < N; ++i) {
                          const Acc z_t = kind == Divergence::forward ? swap(first + i, b[i]) : b[i];
                          const Acc slope = divergence_slope<kind>(row, a[i], z_t);
                          out[i] = zero ? Acc(0) : factor * slope;
                        }
                        put(dz + first, out, aligned);
                      });
}

// ---- topk_divergence ------------------------------------------------------------------------------------------------

template <class T, int kThreads>
__global__ __launch_bounds__(kThreads) void topk_divergence_kernel(const TopkDivergenceArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x;
  const T* x = args.student + args.student_rows.offset(r);
  const int64_t* ids = args.ids + args.ids_rows.offset(r);
  const Acc* logp = args.logp + args.logp_rows.offset(r);
  const Acc inv_t = inverse_temperature(args, r), nan = kInf<Acc> - kInf<Acc>;
  Softmax<Acc> sum{0, 0};
  if (!masked(args, r)) sum = sum_row<kThreads>(x, args.vocab, inv_t);
  const bool empty = sum.sum == 0;
  const auto s = row_side(sum.max, sum.sum);
  Sums<Acc> sums{0, 0};
  for (int64_t k = threadIdx.x; k < args.k && !empty; k += kThreads) {
    const bool inside = ids[k] >= 0 && ids[k] < args.vocab && inv_t > 0;
    const Acc log_s = inside ? s(load(x[ids[k]]), inv_t).x - s.log : nan, log_t = logp[k];
    if (log_t == -kInf<Acc> || log_s == -kInf<Acc>) continue;
    const Acc p = exp_neg(log_t);
    sums.value += p * (log_t - log_s), sums.c += inside ? p : nan;
  }
  sums = block_reduce<kThreads>(sums, Add{});
  if (threadIdx.x != 0) return;
  args.value[r] = sums.value;
  Acc* stats = args.stats + kTopkStats * r;
  stats[0] = empty ? Acc(0) : sum.max, stats[1] = sum.sum, stats[2] = sums.c;
}

template <class T, int kThreads>
__global__ __launch_bounds__(kThreads) void topk_divergence_backward_kernel(const TopkDivergenceBackwardArgs<T> args,
                                                                            int64_t piece, int64_t pieces) {
  using Acc = acc_t<T>;
  const TopkDivergenceArgs<T>& f = args.forward;
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x = f.student + f.student_rows.offset(r) + begin;
  T* dz = args.grad_student + args.grad_student_rows.offset(r) + begin;
  const Acc* stats = f.stats + kTopkStats * r;
  const auto s = row_side(stats[0], stats[1]);
  const Acc listed = stats[2], g = args.grad_value[args.grad_value_rows.offset(r)];
  const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
  const bool zero = s.sum == 0 || g == 0;
  const bool aligned = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  walk<1>(x, n, threadIdx.x, kThreads, [&]<int N>(const Acc(&z)[N], int64_t first) {
    Acc out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = zero ? Acc(0) : factor * listed * s(z[i], inv_t).p;
    put(dz + first, out, aligned);
  });
  if (zero) return;
  __syncthreads();  // the listed tokens of this piece are written again
  const int64_t* ids = f.ids + f.ids_rows.offset(r);
  const Acc* logp = f.logp + f.logp_rows.offset(r);
  for (int64_t k = threadIdx.x; k < f.k; k += kThreads) {
    const int64_t j = ids[k] - begin;
    if (j < 0 || j >= n) continue;
    const auto token = s(load(x[j]), inv_t);
    if (token.x == -kInf<Acc>) continue;
    Acc p = 0;  // of all entries with this id: a token listed twice counts twice, and both write the same
    for (int64_t i = 0; i < f.k; ++i) p += ids[i] == ids[k] ? exp_neg(logp[i]) : Acc(0);
    dz[j] = store<T>(factor * (token.p * listed - p));
  }
}

// ---- launchers ------------------------------------------------------------------------------------------------------

constexpr int kBackwardThreads = 256;

template <class T>
int64_t piece_of(int64_t vocab) {
  return std::min<int64_t>(std::max<int64_t>(vocab, 1), kBackwardThreads * kVec<T> * kUnroll<T> * 2);
}

}  // namespace

template <class T>
void divergence_cuda(const DivergenceArgs<T>& args, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.student_rows.count));
  dispatch_divergence(args.kind, [&]<Divergence kind>() {
    if (args.vocab <= 4096) {  // a large block would wait on its own reductions
      launch("divergence", divergence_kernel<T, kind, 128>, grid, dim3(128), stream, args);
    } else {
      launch("divergence", divergence_kernel<T, kind, 512>, grid, dim3(512), stream, args);
    }
  });
}

template <class T>
void divergence_backward_cuda(const DivergenceBackwardArgs<T>& args, void* stream) {
  const int64_t piece = piece_of<T>(args.forward.vocab), pieces = ceil_div(args.forward.vocab, piece);
  dispatch_divergence(args.forward.kind, [&]<Divergence kind>() {
    launch("divergence_backward", divergence_backward_kernel<T, kind, kBackwardThreads>,
           dim3(static_cast<unsigned>(args.forward.student_rows.count * pieces)), dim3(kBackwardThreads), stream, args,
           piece, pieces);
  });
}

template <class T>
void topk_divergence_cuda(const TopkDivergenceArgs<T>& args, void* stream) {
  launch("topk_divergence", topk_divergence_kernel<T, 256>, dim3(static_cast<unsigned>(args.student_rows.count)),
         dim3(256), stream, args);
}

template <class T>
void topk_divergence_backward_cuda(const TopkDivergenceBackwardArgs<T>& args, void* stream) {
  const int64_t piece = piece_of<T>(args.forward.vocab), pieces = ceil_div(args.forward.vocab, piece);
  launch("topk_divergence_backward", topk_divergence_backward_kernel<T, kBackwardThreads>,
         dim3(static_cast<unsigned>(args.forward.student_rows.count * pieces)), dim3(kBackwardThreads), stream, args,
         piece, pieces);
}

#define INSTANTIATE(T)                                                                            \
  template void divergence_cuda<T>(const DivergenceArgs<T>& args, void* stream);                  \
  template void divergence_backward_cuda<T>(const DivergenceBackwardArgs<T>& args, void* stream); \
  template void topk_divergence_cuda<T>(const TopkDivergenceArgs<T>& args, void* stream);         \
  template void topk_divergence_backward_cuda<T>(const TopkDivergenceBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
