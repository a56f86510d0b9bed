// The CUDA kernels of moe_route. Forward: a warp takes a chunk of tokens, a lane every 32nd expert, all in registers;
// then two small kernels add up what the chunks found. Backward: a warp a token.
//
// The kernels are compiled for float32 and float64 only. Logits of 16 bits are widened where they are read, by a branch
// that is the same for all threads: one kernel for three dtypes compiles in a third of the time.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "moe/moe_route.h"
#include "moe/moe_route_math.h"
#include "moe/moe_route_rows.cuh"

namespace warpup {
namespace {

constexpr int kWarps = 8, kColumns = 128;

// Token t: its weights and indices, and its share in the sums of its slot.
template <class Acc, int N>
__device__ __forceinline__ void route_token(const Route<Acc>& route, int64_t t, Acc (&sums)[N], int (&counts)[N],
                                            Acc& squares, int& length) {
  const MoeRouteArgs<Acc>& args = route.args;
  const int lane = threadIdx.x % 32;

  // The softmax's maximum and sum, and with them whether the token counts.
  Acc z[N];
  read_row(route, t, z);
  Acc max = -kInf<Acc>, sum = 0;
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) max = z[i] > max ? z[i] : max;
  max = warp_max(max);
  const Acc shift = max == -kInf<Acc> ? Acc(0) : max;
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) sum += exp_neg(z[i] - shift);
  sum = warp_sum(sum);
  const Acc log_sum = sum == 0 || !counted(args, t) ? kInf<Acc> : log_pos(sum);
  if (lane == 0) args.stats[2 * t] = max, args.stats[2 * t + 1] = log_sum;
  int64_t* indices = args.indices + t * args.k;
  Acc* weights = args.weights + t * args.k;
  if (log_sum == kInf<Acc>) {  // the same for the whole warp
    for (int64_t j = lane; j < args.k; j += 32) weights[j] = 0, indices[j] = -1;
    return;
  }

  // The scores, and the token's share in the sums over tokens.
  const bool softmax = args.score == RouteScore::softmax;
  const auto score = [&](int i) { return softmax ? exp_neg(z[i] - max - log_sum) : score_of(args.score, z[i]); };
  Acc s[N], total = 0;
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) {
    s[i] = lane + 32 * i < args.experts ? score(i) : Acc(0);
    total += s[i];
  }
  total = softmax ? Acc(1) : score_total(warp_sum(total));
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) sums[i] += s[i] / total;
  squares += (max + log_sum) * (max + log_sum);
  ++length;

  // The choice.
  if (args.replay) {
    for (int64_t j = lane; j < args.k; j += 32) {
      const int64_t e = args.replay[t * args.k + j];
      indices[j] = e >= 0 && e < args.experts ? e : -1;
    }
  } else {
    const bool by_logit = args.over_chosen || (!args.bias && !args.groups);
    unsigned open = 0;
#pragma unroll(kUnroll<Acc, N>)
    for (int i = 0; i < N; ++i) {
      const int e = lane + 32 * i;
      if (by_logit) s[i] = z[i];
      if (args.bias && e < args.experts) s[i] += args.bias[e];
      if (s[i] != s[i]) s[i] = -kInf<Acc>;
      if (e < args.experts) open |= 1u << i;
    }
    if (args.groups) open = keep_groups(args, s, open);
    for (int64_t j = 0; j < args.k; ++j) {
      const int e = best_open(s, open).at;
      close(open, e);
      if (lane == 0) indices[j] = e;
    }
  }
  __syncwarp();  // the indices are read by all lanes

  // The weights.
  const Chosen<Acc> chosen(route, t, max, log_sum);
  Acc values = 0;
  for (int64_t j = lane; j < args.k; j += 32) {
    if (indices[j] >= 0) values += chosen.value(j);
  }
  const Acc denominator = chosen.denominator(values), scale = static_cast<Acc>(args.scale);
  const Acc factor = chosen.divided() ? scale / denominator : scale;
  for (int64_t j = lane; j < args.k; j += 32) weights[j] = indices[j] < 0 ? Acc(0) : chosen.value(j) * factor;
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t e = indices[j];
#pragma unroll(kUnroll<Acc, N>)
    for (int i = 0; i < N; ++i) counts[i] += e == lane + 32 * i;
  }
}

template <class Acc, int N>
__global__ __launch_bounds__(32, N <= 8 ? 16 : 8) void moe_route_kernel(const Route<Acc> route, int64_t chunk) {
  const MoeRouteArgs<Acc>& args = route.args;
  const int lane = threadIdx.x;
  const int64_t c = blockIdx.x, columns = args.experts + 1;
  const int64_t end = args.tokens - c * chunk < chunk ? args.tokens : (c + 1) * chunk;
  int64_t t = c * chunk;
  for (int64_t b = sequence_of(args, t); t < end && b < args.sequences; ++b) {
    Acc sums[N] = {}, squares = 0;
    int counts[N] = {}, length = 0;
    const int64_t bound = b + 1 < args.sequences ? route_bound(args, b + 1) : args.tokens,
                  stop = bound < end ? bound : end;
    for (; t < stop; ++t) route_token(route, t, sums, counts, squares, length);
    const int64_t at = (c + b) * columns;
#pragma unroll(kUnroll<Acc, N>)
    for (int i = 0; i < N; ++i) {
      const int e = lane + 32 * i;
      if (e < args.experts) args.slot_scores[at + e] = sums[i], args.slot_counts[at + e] = counts[i];
    }
    if (lane == 0) args.slot_scores[at + args.experts] = squares, args.slot_counts[at + args.experts] = length;
  }
}

// What the chunks found of a sequence, added up: a block for some of its experts.
template <class Acc>
__global__ __launch_bounds__(kColumns) void moe_route_sum_kernel(const MoeRouteArgs<Acc> args, int64_t chunk,
                                                                 int64_t blocks) {
  const int64_t b = blockIdx.x / blocks, e = blockIdx.x % blocks * kColumns + threadIdx.x, columns = args.experts + 1;
  if (e >= columns) return;
  int64_t first, last, count = 0, length = 0;
  slots_of(args, b, chunk, &first, &last);
  double sum = 0;
  for (int64_t at = first * columns; at < last * columns; at += columns) {
    sum += args.slot_scores[at + e];
    count += args.slot_counts[at + e];
    length += args.slot_counts[at + args.experts];
  }
  if (e == args.experts) {
    args.lengths[b] = length;
  } else {
    args.counts[b * args.experts + e] = count;
    args.mean_score[b * args.experts + e] = static_cast<Acc>(sum / (length > 0 ? length : 1));
  }
}

struct Total {
  double squares;
  int64_t length;
};

// Of all sequences, in one block: the z-loss and the number of tokens.
template <class Acc>
__global__ __launch_bounds__(kColumns) void moe_route_total_kernel(const MoeRouteArgs<Acc> args, int64_t chunk) {
  Total mine{0, 0};
  for (int64_t b = threadIdx.x; b < args.sequences; b += kColumns) {
    int64_t first, last;
    slots_of(args, b, chunk, &first, &last);
    for (int64_t at = first * (args.experts + 1) + args.experts; first < last; ++first, at += args.experts + 1) {
      mine.squares += args.slot_scores[at], mine.length += args.slot_counts[at];
    }
  }
  mine = block_reduce<kColumns>(
      mine, [](const Total& a, const Total& b) { return Total{a.squares + b.squares, a.length + b.length}; });
  if (threadIdx.x != 0) return;
  args.lengths[args.sequences] = mine.length;
  *args.z_loss = static_cast<Acc>(mine.squares / (mine.length > 0 ? mine.length : 1));
}

template <class Acc, int N>
__global__ __launch_bounds__(32 * kWarps) void moe_route_backward_kernel(const MoeRouteBackwardArgs<Acc> args,
                                                                         DType type) {
  const Route<Acc> route{args.forward, type};
  const MoeRouteArgs<Acc>& f = args.forward;
  const int64_t t = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (t >= f.tokens) return;
  const int lane = threadIdx.x % 32;
  const auto write = [&](const Acc* values) {  // of experts lane, lane + 32, ...; null: zeros
    with_type<Acc>(args.grad_logits, type, [&](const auto* first) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(first)>>;
      T* out = const_cast<T*>(first) + t * f.experts;
#pragma unroll(kUnroll<Acc, N>)
      for (int i = 0; i < N; ++i) {
        if (lane + 32 * i < f.experts) out[lane + 32 * i] = values ? store<T>(values[i]) : T{};
      }
    });
  };

  // A token that counts for nothing has no gradient.
  const Acc max = f.stats[2 * t], log_sum = f.stats[2 * t + 1];
  if (log_sum == kInf<Acc>) return write(nullptr);

  // The scores again, and what comes from their mean (G) and from the z-loss.
  const bool softmax = f.score == RouteScore::softmax;
  Acc z[N];
  read_row(route, t, z);
  const int64_t all = f.lengths[f.sequences], b = args.grad_mean_score ? sequence_of(f, t) : 0;
  const Acc share = args.grad_mean_score ? Acc(1) / f.lengths[b] : Acc(0);
  const Acc pull = args.grad_z_loss ? 2 * *args.grad_z_loss / all * (max + log_sum) : Acc(0);
  Acc g[N], s[N], total = 0, mean = 0;
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) {
    const int e = lane + 32 * i;
    const bool there = e < f.experts;
    g[i] = args.grad_mean_score && there ? args.grad_mean_score[b * f.experts + e] * share : Acc(0);
    s[i] = !there ? Acc(0) : softmax ? exp_neg(z[i] - max - log_sum) : score_of(f.score, z[i]);
    total += s[i];
  }
  total = softmax ? Acc(1) : score_total(warp_sum(total));

  // What comes from the weights to the chosen experts.
  const Chosen<Acc> chosen(route, t, max, log_sum);
  const Acc* gw = args.grad_weights ? args.grad_weights + t * f.k : nullptr;
  Acc sum = 0, weighted = 0;
  for (int64_t j = lane; gw && j < f.k; j += 32) {
    if (chosen.at[j] >= 0) sum += chosen.value(j), weighted += gw[j] * chosen.value(j);
  }
  sum = chosen.divided() ? chosen.denominator(sum) : Acc(1), weighted = chosen.divided() ? warp_sum(weighted) : Acc(0);
  const auto add_chosen = [&](const auto& slope) {
    for (int64_t j = 0; gw && j < f.k; ++j) {
      const int64_t e = chosen.at[j];
      if (e < 0) continue;
      const Acc dv = route_value_gradient(gw[j], weighted, sum, static_cast<Acc>(f.scale)) * slope(j);
#pragma unroll(kUnroll<Acc, N>)
      for (int i = 0; i < N; ++i) g[i] += e == lane + 32 * i ? dv : Acc(0);
    }
  };

  // Through the scores to the logits.
  const bool through = softmax && !f.over_chosen;  // the same softmax as the mean scores
  if (through) add_chosen([](int64_t) { return Acc(1); });
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) mean += g[i] * s[i];
  mean = warp_sum(mean);
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) {
    if (softmax) {
      g[i] = s[i] * (g[i] - mean + pull);
    } else {
      g[i] = slope_of(f.score, z[i], s[i]) * (g[i] - mean / total) / total;
      if (pull != 0) g[i] += pull * exp_neg(z[i] - max - log_sum);
    }
  }
  if (!through) {
    add_chosen([&](int64_t j) { return softmax ? chosen.value(j) : slope_of(f.score, chosen.z(j), chosen.value(j)); });
  }
  write(g);
}

// Calls body with the experts that a lane holds: the fewer, the more registers are left for other warps. Float64 has
// one kernel for all.
template <class Acc, class Body>
void with_width(int64_t experts, const Body& body) {
  if constexpr (sizeof(Acc) == 4) {
    if (experts <= 64) return body.template operator()<2>();
    if (experts <= 128) return body.template operator()<4>();
    if (experts <= 256) return body.template operator()<8>();
  }
  body.template operator()<kMaxExperts / 32>();
}

}  // namespace

template <class T>
void moe_route_cuda(const MoeRouteArgs<T>& args, void* stream) {
  using Acc = acc_t<T>;
  const int64_t chunk = RouteChunks::size(args.tokens), blocks = ceil_div(args.experts + 1, kColumns);
  const Route<Acc> route{std::bit_cast<MoeRouteArgs<Acc>>(args), dtype_of<T>()};
  with_width<Acc>(args.experts, [&]<int N>() {
    const dim3 grid(static_cast<unsigned>(RouteChunks::count(args.tokens)));
    launch("moe_route", moe_route_kernel<Acc, N>, grid, dim3(32), stream, route, chunk);
  });
  launch("moe_route_sum", moe_route_sum_kernel<Acc>, dim3(static_cast<unsigned>(args.sequences * blocks)),
         dim3(kColumns), stream, route.args, chunk, blocks);
  launch("moe_route_total", moe_route_total_kernel<Acc>, dim3(1), dim3(kColumns), stream, route.args, chunk);
}

template <class T>
void moe_route_backward_cuda(const MoeRouteBackwardArgs<T>& args, void* stream) {
  using Acc = acc_t<T>;
  const auto same = std::bit_cast<MoeRouteBackwardArgs<Acc>>(args);
  with_width<Acc>(args.forward.experts, [&]<int N>() {
    const dim3 grid(static_cast<unsigned>(ceil_div(args.forward.tokens, kWarps)));
    launch("moe_route_backward", moe_route_backward_kernel<Acc, N>, grid, dim3(32 * kWarps), stream, same,
           dtype_of<T>());
  });
}

#define INSTANTIATE(T)                                                        \
  template void moe_route_cuda<T>(const MoeRouteArgs<T>& args, void* stream); \
  template void moe_route_backward_cuda<T>(const MoeRouteBackwardArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
