// What both kernels of moe_route compute for one expert, and where sequences and their slots are.
#pragma once

#include "core/math.h"
#include "moe/moe_route.h"

namespace warpup {

template <class Acc>
WARPUP_HD Acc route_sigmoid(Acc z) {
  const Acc e = exp_neg(z < 0 ? z : -z);
  return (z < 0 ? e : Acc(1)) / (1 + e);
}

// The score of an expert that does not depend on the others.
template <RouteScore kScore, class Acc>
WARPUP_HD Acc route_score(Acc z) {
  if constexpr (kScore == RouteScore::sigmoid) return route_sigmoid(z);
  return sqrt((z < 0 ? Acc(0) : z) + log1p_unit(exp_neg(z < 0 ? z : -z)));
}

// Its derivative, from it.
template <RouteScore kScore, class Acc>
WARPUP_HD Acc route_slope(Acc z, Acc s) {
  if constexpr (kScore == RouteScore::sigmoid) return s * (1 - s);
  return s == 0 ? Acc(0) : route_sigmoid(z) / (2 * s);
}

// What scores are divided by for q: where all underflowed q is 0.
template <class Acc>
WARPUP_HD Acc score_total(Acc sum) {
  return sum == 0 ? Acc(1) : sum;
}

template <class T>
WARPUP_HD bool counted(const MoeRouteArgs<T>& args, int64_t t) {
  return !args.mask || args.mask[t];
}

// Bounds as they may come on a GPU, where nobody checked them: held inside the tokens.
template <class T>
WARPUP_HD int64_t route_bound(const MoeRouteArgs<T>& args, int64_t b) {
  if (!args.bounds) return b == 0 ? 0 : args.tokens;
  const int64_t bound = args.bounds[b];
  return bound < 0 ? 0 : bound > args.tokens ? args.tokens : bound;
}

// The sequence of a token.
template <class T>
WARPUP_HD int64_t sequence_of(const MoeRouteArgs<T>& args, int64_t t) {
  int64_t low = 0, high = args.sequences - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (route_bound(args, middle + 1) > t) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The slots of a sequence are [first, last).
template <class T>
WARPUP_HD void slots_of(const MoeRouteArgs<T>& args, int64_t b, int64_t chunk, int64_t* first, int64_t* last) {
  const int64_t begin = route_bound(args, b), end = route_bound(args, b + 1);
  *first = b + begin / chunk;
  *last = begin < end ? b + (end - 1) / chunk + 1 : *first;
}

// The gradient of a score v among the chosen ones, before its own derivative: of weight w = scale v [/ total].
template <class Acc>
WARPUP_HD Acc route_value_gradient(Acc g, Acc g_dot_v, Acc total, Acc scale) {
  return scale / total * (g - g_dot_v / total);
}

}  // namespace warpup
