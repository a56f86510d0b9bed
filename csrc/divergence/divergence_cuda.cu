// Forward: one block a row, which reads both rows once for their log-sums and again, from L2 where they fit, for the
// terms. Backward: one block a piece of a row, so that few long rows fill the GPU too.
#include "divergence/divergence.h"
#include "divergence/divergence_rows.cuh"

namespace warpup {
namespace {

// A kind known when the kernel is compiled, so that a token costs what its own formula needs; of logits as they are.
template <Divergence kind>
struct Fixed {
  static constexpr bool kSoftmax = kind != Divergence::binary, kSwap = kind == Divergence::forward;
  static constexpr int kVectors = kSoftmax ? 2 : 1;  // in flight in the backward: two sigmoids take many registers
  template <class T>
  static constexpr int kForwardVectors = kUnroll<T>;
  template <class Acc>
  __device__ __forceinline__ typename LogitForm<Acc>::Point form(const LogitForm<Acc>&, Acc x) const {
    return {x, Acc(1)};
  }
  template <class Acc>
  __device__ __forceinline__ DivergenceTerm<Acc> term(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) const {
    return divergence_term<kind>(row, z_s, z_t);
  }
  template <class Acc>
  __device__ __forceinline__ Acc slope(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) const {
    return divergence_slope<kind>(row, z_s, z_t);
  }
};

// A kind chosen at each token, out of line, and a form: for float64, which tests and oracles take, and for models that
// scale or cap their logits, one kernel instead of six.
struct Chosen {
  static constexpr bool kSoftmax = true, kSwap = true;
  static constexpr int kVectors = 1;
  template <class T>
  static constexpr int kForwardVectors = 1;  // over a call out of line, what else is in flight goes to the stack
  Divergence kind;

  template <class Body>
  __device__ __forceinline__ auto choose(const Body& body) const {  // dispatch_divergence, on the device
    switch (kind) {
      case Divergence::forward:
        return body.template operator()<Divergence::forward>();
      case Divergence::reverse:
        return body.template operator()<Divergence::reverse>();
      case Divergence::jeffreys:
        return body.template operator()<Divergence::jeffreys>();
      case Divergence::jsd:
        return body.template operator()<Divergence::jsd>();
      case Divergence::symmetric_ce:
        return body.template operator()<Divergence::symmetric_ce>();
      default:
        return body.template operator()<Divergence::binary>();
    }
  }
  template <class Acc>
  __device__ __forceinline__ typename LogitForm<Acc>::Point form(const LogitForm<Acc>& form, Acc x) const {
    return form.at(x);
  }
  template <class Acc>
  __attribute__((noinline)) __device__ DivergenceTerm<Acc> term(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) const {
    return choose([&]<Divergence which>() { return divergence_term<which>(row, z_s, z_t); });
  }
  template <class Acc>
  __attribute__((noinline)) __device__ Acc slope(const DivergenceRow<Acc>& row, Acc z_s, Acc z_t) const {
    return choose([&]<Divergence which>() { return divergence_slope<which>(row, z_s, z_t); });
  }
};

struct Least {
  __device__ int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; }
};

// `walk` over two rows at once, in vectors where both are aligned alike: body(values, others, first).
template <int kUnroll, class T, class Body>
__device__ __forceinline__ void walk_both(const T* x, const T* y, int64_t n, int rank, int step, Body body) {
  using Acc = acc_t<T>;
  const bool alike = ((reinterpret_cast<intptr_t>(x) ^ reinterpret_cast<intptr_t>(y)) & 15) == 0;
  const int64_t head = alike ? unaligned_head(x, n) : n, vectors = (n - head) / kVec<T>, inner = vectors * kVec<T>;
  for (int64_t i = rank; i < n - inner; i += step) {
    const int64_t j = i < head ? i : i + inner;
    const Acc one[1] = {load(x[j])}, other[1] = {load(y[j])};
    body(one, other, j);
  }
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
}

// The teacher's value at an index, after the swap of two entries (none where both indices are -1).
template <class Acc>
struct Swap {
  int64_t top = -1, y = -1;
  Acc at_top = 0, at_y = 0;
  __device__ Acc operator()(int64_t j, Acc t) const { return j == top ? at_y : j == y ? at_top : t; }
};

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class T, class Kind>
__global__ __launch_bounds__(kMaxThreads) void divergence_kernel(const DivergenceArgs<T> args, const Kind kind) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x, n = args.vocab;
  const T* x_s = args.student + args.student_rows.offset(r);
  const T* x_t = args.teacher + args.teacher_rows.offset(r);
  const auto student = [&](Acc x) { return kind.form(args.student_form, x).z; };
  const auto teacher = [&](Acc x) { return kind.form(args.teacher_form, x).z; };
  // The softmax's sums of both rows.
  DivergenceRow<Acc> row;
  const Acc inv_t = row.inv_t = inverse_temperature(args, r);
  row.beta = static_cast<Acc>(args.beta);
  bool empty = !counts(args, r);  // the same for the whole block, like all that decides below
  if (!empty && Kind::kSoftmax && args.kind != Divergence::binary) {
    const auto sum_s = sum_row(x_s, n, inv_t, student), sum_t = sum_row(x_t, n, inv_t, teacher);
    empty = sum_s.sum == 0 || sum_t.sum == 0;
    row = divergence_row(row_side(sum_s.max, sum_s.sum), row_side(sum_t.max, sum_t.sum), inv_t, row.beta, Acc(0));
  }
  bool invalid = !(inv_t > 0);
  Swap<Acc> swap;
  Sums<Acc> sums{0, 0};
  if (!empty) {
    // The first of the teacher's largest logits, for the swap.
    if (Kind::kSwap && args.targets) {
      int64_t top = n;
      for (int64_t j = threadIdx.x; j < n && top == n; j += blockDim.x)
        top = teacher(load(x_t[j])) == row.t.max ? j : n;
      swap.top = block_reduce_up_to<kMaxThreads>(top, Least{});
      swap.y = args.targets[r];
      invalid = invalid || swap.y < 0 || swap.y >= n || swap.top == n;  // there is no maximum where there is NaN
      if (!invalid) swap.at_top = row.t.max, swap.at_y = teacher(load(x_t[swap.y]));
    }
    // The terms.
    walk_both<Kind::template kForwardVectors<T>>(
        x_s, x_t, n, threadIdx.x, blockDim.x, [&]<int N>(const Acc(&a)[N], const Acc(&b)[N], int64_t first) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const Acc z_s = student(a[i]), z_t = teacher(b[i]);
            const auto term = kind.term(row, z_s, Kind::kSwap ? swap(first + i, z_t) : z_t);
            sums.value += term.value, sums.c += term.c;
          }
        });
    sums = block_reduce_up_to<kMaxThreads>(sums, Add{});
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

template <class T, class Kind>
__global__ __launch_bounds__(kBackwardThreads) void divergence_backward_kernel(const DivergenceBackwardArgs<T> args,
                                                                               const Kind kind, int64_t piece,
                                                                               int64_t pieces) {
  using Acc = acc_t<T>;
  const DivergenceArgs<T>& f = args.forward;
  // The piece [begin, begin + n) of row r, and the constants of that row.
  const int64_t r = blockIdx.x / pieces, begin = blockIdx.x % pieces * piece;
  const int64_t n = f.vocab - begin < piece ? f.vocab - begin : piece;
  const T* x_s = f.student + f.student_rows.offset(r) + begin;
  const T* x_t = f.teacher + f.teacher_rows.offset(r);
  T* dz = args.grad_student + args.grad_student_rows.offset(r) + begin;
  const Acc* stats = f.stats + kDivergenceStats * r;
  const Acc g = args.grad_value[r];
  const Acc inv_t = inverse_temperature(f, r), factor = g * inv_t;
  DivergenceRow<Acc> row;
  row.inv_t = inv_t;
  if (Kind::kSoftmax && f.kind != Divergence::binary) {
    row = divergence_row(row_side(stats[0], stats[1]), row_side(stats[2], stats[3]), inv_t, static_cast<Acc>(f.beta),
                         stats[4]);
  }
  const bool zero = stats[1] == 0 || g == 0;
  const auto teacher = [&](Acc x) { return kind.form(f.teacher_form, x).z; };
  Swap<Acc> swap;
  if (Kind::kSwap && f.targets && !zero && stats[1] == stats[1]) {
    const int64_t top = static_cast<int64_t>(stats[5]), y = f.targets[r];
    swap = {top - begin, y - begin, teacher(load(x_t[top])), teacher(load(x_t[y]))};
  }
  const bool aligned = ((reinterpret_cast<intptr_t>(x_s) ^ reinterpret_cast<intptr_t>(dz)) & 15) == 0;
  walk_both<Kind::kVectors>(x_s, x_t + begin, n, threadIdx.x, kBackwardThreads,
                            [&]<int N>(const Acc(&a)[N], const Acc(&b)[N], int64_t first) {
                              Acc out[N];
#pragma unroll
                              for (int i = 0; i < N; ++i) {
                                const auto [z_s, formed] = kind.form(f.student_form, a[i]);
                                const Acc z_t = teacher(b[i]);
                                const Acc slope = kind.slope(row, z_s, Kind::kSwap ? swap(first + i, z_t) : z_t);
                                out[i] = zero ? Acc(0) : factor * slope * formed;
                              }
                              store_all(dz + first, out, aligned);
                            });
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <class T, class Kind>
void start(const DivergenceArgs<T>& args, Kind kind, void* stream) {
  launch("divergence", divergence_kernel<T, Kind>, dim3(static_cast<unsigned>(args.student_rows.count)),
         dim3(threads_for(args.vocab)), stream, args, kind);
}

template <class T, class Kind>
void start_backward(const DivergenceBackwardArgs<T>& args, Kind kind, void* stream) {
  const int64_t piece = piece_of<T>(args.forward.vocab), pieces = ceil_div(args.forward.vocab, piece);
  launch("divergence_backward", divergence_backward_kernel<T, Kind>,
         dim3(static_cast<unsigned>(args.forward.student_rows.count * pieces)), dim3(kBackwardThreads), stream, args,
         kind, piece, pieces);
}

}  // namespace

template <class T>
void divergence_cuda(const DivergenceArgs<T>& args, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (args.student_form.plain() && args.teacher_form.plain()) {
      return dispatch_divergence(args.kind, [&]<Divergence kind>() { start(args, Fixed<kind>{}, stream); });
    }
  }
  start(args, Chosen{args.kind}, stream);
}

template <class T>
void divergence_backward_cuda(const DivergenceBackwardArgs<T>& args, void* stream) {
  const DivergenceArgs<T>& f = args.forward;
  if constexpr (sizeof(T) < 8) {
    if (f.student_form.plain() && f.teacher_form.plain()) {
      return dispatch_divergence(f.kind, [&]<Divergence kind>() { start_backward(args, Fixed<kind>{}, stream); });
    }
  }
  start_backward(args, Chosen{f.kind}, stream);
}

#define INSTANTIATE(T)                                                           \
  template void divergence_cuda<T>(const DivergenceArgs<T>& args, void* stream); \
  template void divergence_backward_cuda<T>(const DivergenceBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
