// What the two directions of moe_route do to one token on a GPU: reading its logits, choosing its experts by a warp, and
// what a chosen expert weighs.
#pragma once

#include <bit>
#include <type_traits>

#include "core/reduce.cuh"
#include "moe/moe_route.h"
#include "moe/moe_route_math.h"

namespace warpup {
namespace {

// Float64, which the tests compare with, has loops that are not unrolled: its arrays are in local memory, not
// registers.
template <class Acc, int N>
inline constexpr int kUnroll = sizeof(Acc) == 8 ? 1 : N;

// Calls body(x), x as the pointer to what it is.
template <class Acc, class Body>
__device__ __forceinline__ auto with_type(const void* x, DType type, const Body& body) {
  if constexpr (sizeof(Acc) == 8) {
    return body(static_cast<const double*>(x));
  } else {
    if (type == DType::bf16) return body(static_cast<const bfloat16*>(x));
    if (type == DType::f16) return body(static_cast<const float16*>(x));
    return body(static_cast<const float*>(x));
  }
}

// What the kernels take: `args.logits`, and `grad_logits` of the backward, point to elements of `type`.
template <class Acc>
struct Route {
  MoeRouteArgs<Acc> args;
  DType type;
  __device__ __forceinline__ Acc logit(int64_t t, int64_t e) const {
    const int64_t at = t * args.stride + e;
    return with_type<Acc>(args.logits, type, [at](const auto* x) { return Acc(load(x[at])); });
  }
};

template <class Acc>
struct Candidate {
  Acc key;
  int at, unused;  // a whole number of words whatever Acc is
  // The larger key, of equal ones the first; at < 0: none.
  __device__ __forceinline__ Candidate better(const Candidate& o) const {
    if (at < 0 || o.at < 0) return at < 0 ? o : *this;
    return key > o.key || (key == o.key && at < o.at) ? *this : o;
  }
};

template <class Acc>
__device__ __forceinline__ Candidate<Acc> best_of_warp(Candidate<Acc> mine) {
  return warp_reduce(mine, [](const Candidate<Acc>& a, const Candidate<Acc>& b) { return a.better(b); });
}

template <class Acc>
__device__ __forceinline__ Acc warp_sum(Acc x) {
  return warp_reduce(x, [](Acc a, Acc b) { return a + b; });
}

template <class Acc>
__device__ __forceinline__ Acc warp_max(Acc x) {
  return warp_reduce(x, [](Acc a, Acc b) { return b > a ? b : a; });
}

template <class Acc>
__device__ __forceinline__ Acc score_of(RouteScore kind, Acc z) {
  return kind == RouteScore::sigmoid ? route_score<RouteScore::sigmoid>(z) : route_score<RouteScore::sqrt_softplus>(z);
}

template <class Acc>
__device__ __forceinline__ Acc slope_of(RouteScore kind, Acc z, Acc s) {
  return kind == RouteScore::sigmoid ? route_slope<RouteScore::sigmoid>(z, s)
                                     : route_slope<RouteScore::sqrt_softplus>(z, s);
}

// z: experts lane, lane + 32, ... of a row; the rest -inf.
template <class Acc, int N>
__device__ __forceinline__ void read_row(const Route<Acc>& r, int64_t t, Acc (&z)[N]) {
  with_type<Acc>(r.args.logits, r.type, [&](const auto* x) {
#pragma unroll(kUnroll<Acc, N>)
    for (int i = 0; i < N; ++i) {
      const int e = threadIdx.x % 32 + 32 * i;
      z[i] = e < r.args.experts ? Acc(load(x[t * r.args.stride + e])) : -kInf<Acc>;
    }
  });
}

// The best of the keys whose bit in `open` is set.
template <class Acc, int N>
__device__ __forceinline__ Candidate<Acc> best_open(const Acc (&key)[N], unsigned open) {
  Candidate<Acc> mine{-kInf<Acc>, -1, 0};
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) {
    if (open >> i & 1u) mine = mine.better({key[i], static_cast<int>(threadIdx.x % 32 + 32 * i), 0});
  }
  return best_of_warp(mine);
}

// Clears the bit of an expert in the lane that has it.
__device__ __forceinline__ void close(unsigned& open, int e) {
  if (e >= 0 && e % 32 == static_cast<int>(threadIdx.x % 32)) open &= ~(1u << e / 32);
}

// `open` without the experts of groups that are not kept. Lane g holds group g.
template <class Acc, int N>
__device__ __forceinline__ unsigned keep_groups(const MoeRouteArgs<Acc>& args, const Acc (&key)[N], unsigned open) {
  const int lane = threadIdx.x % 32, size = static_cast<int>(args.experts / args.groups);
  Acc mine = 0;
  for (int g = 0; g < args.groups; ++g) {
    unsigned left = 0;
#pragma unroll(kUnroll<Acc, N>)
    for (int i = 0; i < N; ++i) {
      if ((lane + 32 * i) / size == g) left |= open & 1u << i;
    }
    Acc sum = 0;
    for (int j = 0; j < args.group_top; ++j) {
      const Candidate<Acc> best = best_open(key, left);
      close(left, best.at);
      sum += best.key;
    }
    if (lane == g) mine = sum == sum ? sum : -kInf<Acc>;
  }
  unsigned kept = 0;
  for (int j = 0; j < args.kept_groups; ++j) {
    const bool free = lane < args.groups && !(kept >> lane & 1u);
    kept |= 1u << best_of_warp(Candidate<Acc>{mine, free ? lane : -1, 0}).at;
  }
#pragma unroll(kUnroll<Acc, N>)
  for (int i = 0; i < N; ++i) {
    const int e = lane + 32 * i;
    if (e < args.experts && !(kept >> e / size & 1u)) open &= ~(1u << i);
  }
  return open;
}

// What a chosen expert weighs before it is divided, and the denominator: each lane has a share of the k.
template <class Acc>
struct Chosen {
  const Route<Acc>& route;
  const MoeRouteArgs<Acc>& args;
  int64_t t;
  const int64_t* at;
  Acc max, log_sum, high = 0;

  __device__ __forceinline__ Chosen(const Route<Acc>& r, int64_t t, Acc max, Acc log_sum)
      : route(r), args(r.args), t(t), at(r.args.indices + t * r.args.k), max(max), log_sum(log_sum) {
    if (!args.over_chosen) return;
    high = -kInf<Acc>;
    for (int64_t j = threadIdx.x % 32; j < args.k; j += 32) {
      if (at[j] >= 0) high = z(j) > high ? z(j) : high;
    }
    high = warp_max(high);
  }
  __device__ __forceinline__ Acc z(int64_t j) const { return route.logit(t, at[j]); }
  __device__ __forceinline__ Acc value(int64_t j) const {
    if (args.over_chosen) return exp_neg(z(j) - high);
    if (args.score == RouteScore::softmax) return exp_neg(z(j) - max - log_sum);
    return score_of(args.score, z(j));
  }
  __device__ __forceinline__ bool divided() const { return args.over_chosen || args.renormalize; }
  __device__ __forceinline__ Acc denominator(Acc lane_sum) const {
    return warp_sum(lane_sum) + (args.over_chosen ? Acc(0) : Acc(args.epsilon));
  }
};

}  // namespace
}  // namespace warpup
