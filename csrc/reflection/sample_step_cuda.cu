// One block a row. The logits are read from memory once; z is then in scratch, which the L2 cache holds, for every
// further pass.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "reflection/sample_step_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 512;
constexpr int kListed = 2048;  // candidates in shared memory: 16 KB of values and ids in float32, four a thread

template <class Acc>
struct Sums {  // of e^(z - max), of e^((z - max) / T)
  Acc max;
  double one, cold;

  __device__ Sums rescaled(Acc new_max, Acc inv_t) const {
    if (max == new_max || max == -kInf<Acc>) return {new_max, one, cold};
    return {new_max, one * exp(double(max) - new_max), cold * exp((double(max) - new_max) * inv_t)};
  }
};

// The filters that take a search, in their order: the first two are top_h's.
enum Filter : int { kLargest, kEntropy, kTopK, kTopP, kTypical, kFilters };

template <class Acc>
struct Best {
  Acc speed;
  int32_t token;
};

// The sum over the threads before this one; all threads must arrive.
__device__ __forceinline__ int32_t block_exclusive_sum(int32_t value, int32_t* total) {
  __shared__ int32_t warps[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t sum = value;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const int32_t before = __shfl_up_sync(kFullWarp, sum, by);
    if (lane >= by) sum += before;
  }
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  int32_t earlier = 0, all = 0;
  for (int w = 0; w < kThreads / 32; ++w) earlier += w < warp ? warps[w] : 0, all += warps[w];
  *total = all;
  return earlier + sum - value;
}

// The sums over the block's row, of values that at(j) gives; the same for all threads, but for the thread's own
// maximum.
template <class Acc, class At>
__device__ Sums<Acc> block_sums(int64_t n, Acc inv_t, Acc* thread_max, At at) {
  Sums<Acc> mine{-kInf<Acc>, 0, 0};
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    const Acc z = at(j);
    if (z > mine.max) mine = mine.rescaled(z, inv_t);
    if (z == -kInf<Acc>) continue;
    const Acc d = z - mine.max, e = exp_neg(d);
    mine.one += e, mine.cold += inv_t == 1 ? e : exp_neg(d * inv_t);
  }
  *thread_max = mine.max;
  return block_reduce<kThreads>(mine, [inv_t](Sums<Acc> a, Sums<Acc> b) {
    const Acc max = a.max > b.max ? a.max : b.max;
    a = a.rescaled(max, inv_t), b = b.rescaled(max, inv_t);
    return Sums<Acc>{max, a.one + b.one, a.cold + b.cold};
  });
}

template <class T>
__global__ __launch_bounds__(kThreads, 1) void sample_step_kernel(const SampleStepArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x, v = args.vocab;
  __shared__ RowPlan<Acc> plan;  // as are the sums below, which only the last lines read: registers are short
  if (threadIdx.x == 0) plan = plan_of(args, r);
  __syncthreads();
  if (!plan.drawn) {
    if (threadIdx.x == 0) finish_nothing(args, r);
    return;
  }
  // Read the row once: combined into scratch, with its maximum and the sums of e^z as it is and at the temperature.
  Acc* z = args.scratch + r * v;
  const auto raw_of = [&](int64_t j) {
    Acc z0 = args.form(load(args.logits[r * args.stride + j]));
    if (args.tuned) {
      z0 += plan.beta * (load(args.tuned[r * args.tuned_stride + j]) - load(args.base[r * args.base_stride + j]));
    }
    return z0;
  };
  Acc thread_max;
  const Sums<Acc> raw = block_sums(v, plan.inv_t, &thread_max, [&](int64_t j) { return z[j] = raw_of(j); });
  if (!(raw.one > 0)) {
    if (threadIdx.x == 0) finish_without_draw(args, r, plan, raw.one != raw.one);
    return;
  }
  __syncthreads();  // z is written

  // The schedule, and the mass that its tokens had before.
  double in_set = 0;
  for (int64_t i = threadIdx.x; i < plan.set_size; i += kThreads) {
    const int32_t id = plan.set[i];
    if (id < 0 || id >= v) continue;
    in_set += exp_neg((z[id] - raw.max) * plan.inv_t);
    if (plan.delta != 0) z[id] += plan.delta;
  }
  const auto sum = [](double a, double b) { return a + b; };
  in_set = block_reduce<kThreads>(in_set, sum);
  __shared__ double raw_sum, p_r;
  __shared__ Acc raw_max;
  if (threadIdx.x == 0) raw_max = raw.max, raw_sum = raw.one, p_r = in_set / raw.cold;

  // The bias and the penalties, and the sums again where something changed.
  Acc max = raw.max;
  double all = raw.cold;
  if (plan.moves()) {
    __syncthreads();
    const Sums<Acc> now = block_sums(v, plan.inv_t, &thread_max, [&](int64_t j) { return z[j] = plan.moved(z[j], j); });
    max = now.max, all = now.cold;
    if (!(now.one > 0)) {
      if (threadIdx.x == 0) finish_without_draw(args, r, plan, now.one != now.one);
      return;
    }
    __syncthreads();
  }

  // A first bound for the filters. Most leave a small part of the vocabulary; what is not below the bound is listed in
  // shared memory, where the passes of the search are fast. The bound must not be above the threshold: of top-k it is
  // the k-th largest of the threads' own maxima, of top-p what is too small even for all such elements to matter.
  __shared__ Acc listed[kListed];
  __shared__ int32_t ids[kListed];
  constexpr Acc kLowest = std::numeric_limits<Acc>::lowest();
  const bool filtered = plan.filtered();
  const int64_t largest = plan.top_h > 0 ? (kTopH < v ? kTopH : 0) : plan.top_k;
  Acc bound = kLowest;
  if (filtered && largest && largest <= kThreads) {
    const auto count = [&](Acc from) {
      return Weight{0, block_reduce<kThreads>(int32_t(thread_max >= from), [](int a, int b) { return a + b; })};
    };
    bound = threshold(max, plan.temperature, double(largest), count, [](Weight w) { return double(w.count); }).at;
  } else if (filtered && !largest && plan.top_p < 1 && !(plan.top_h > 0)) {
    const double share = 0.5 * (1 - plan.top_p) * all / double(v);
    bound = share > 0 ? max + plan.temperature * Acc(log(share)) : kLowest;
  }
  int64_t n = v;
  bool in_list = false;
  if (bound > kLowest) {
    int32_t mine = 0;
    for (int64_t j = threadIdx.x; j < v; j += kThreads) mine += z[j] >= bound;
    int32_t total;
    int32_t at = block_exclusive_sum(mine, &total);
    in_list = total <= kListed;
    if (in_list) {
      n = total;
      for (int64_t j = threadIdx.x; mine > 0 && j < v; j += kThreads) {
        if (z[j] >= bound) listed[at] = z[j], ids[at++] = int32_t(j);
      }
      __syncthreads();
    }
  }
  const Acc* left = in_list ? listed : z;

  // The filters in their order. least and most hold what is left; typical looks at the distance from `mean`.
  Acc least = kLowest, most = kInf<Acc>, mean = Acc(0);
  const auto is_left = [&](Acc value) { return value >= least && value <= most && value > -kInf<Acc>; };
  const auto moments = [&] {
    Moments m{0, 0};
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      const Acc x = (left[j] - max) * plan.inv_t, e = is_left(left[j]) ? exp_neg(x) : Acc(0);
      if (e != 0) m.mass += e, m.shifted += e * x;
    }
    return block_reduce<kThreads>(m,
                                  [](Moments a, Moments b) { return Moments{a.mass + b.mass, a.shifted + b.shifted}; });
  };
  const auto weigh = [&](Acc from, Filter filter, Moments whole) {
    Weight w{0, 0};
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      if (!is_left(left[j]) || (filter == kTypical ? nearness(left[j], mean) : left[j]) < from) continue;
      ++w.count;
      if (filter == kLargest || filter == kTopK) continue;
      const Acc x = (left[j] - max) * plan.inv_t, e = exp_neg(x);
      w.mass += filter != kEntropy ? double(e) : whole.minus_p_log_p(x, e);
    }
    return block_reduce<kThreads>(w, [](Weight a, Weight b) { return Weight{a.mass + b.mass, a.count + b.count}; });
  };
  const auto lower = [](Acc a, Acc b) { return b < a ? b : a; };
  const auto higher = [](Acc a, Acc b) { return b > a ? b : a; };
  // The bounds of what is left among the elements that `stays` tells.
  const auto tighten = [&](auto stays) {
    Acc low = kInf<Acc>, high = -kInf<Acc>;
    for (int64_t j = threadIdx.x; j < n; j += kThreads) {
      if (is_left(left[j]) && stays(left[j])) low = lower(low, left[j]), high = higher(high, left[j]);
    }
    low = block_reduce<kThreads>(low, lower), high = block_reduce<kThreads>(high, higher);
    least = low, most = high;
  };
  double some = all;  // what is left; at first also what the list has not
#pragma unroll 1      // one search in the code for all filters: several take more registers than there are
  for (int i = 0; i < kFilters && filtered; ++i) {
    const Filter filter = Filter(i);
    double target = 0;
    Moments whole{1, 0};
    Acc high = max;
    if (filter == kLargest) {
      if (!(plan.top_h > 0) || v <= kTopH) continue;
      target = double(kTopH);
    } else if (filter == kEntropy) {
      if (!(plan.top_h > 0) || plan.top_h >= 1) continue;
      whole = moments();
      target = beyond(plan.top_h, whole);
    } else if (filter == kTopK) {
      if (!plan.top_k) continue;
      target = double(plan.top_k);
    } else if (filter == kTopP) {
      if (plan.top_p >= 1) continue;
      target = plan.top_p * some;
    } else {
      if (plan.min_x > -kInf<Acc>) least = higher(least, max + plan.min_x * plan.temperature);
      if (!(plan.typical > 0)) continue;
      const Moments m = moments();
      target = plan.typical * m.mass, mean = max + plan.temperature * Acc(m.mean());
      high = -kInf<Acc>;
      for (int64_t j = threadIdx.x; j < n; j += kThreads) {
        if (is_left(left[j])) high = higher(high, nearness(left[j], mean));
      }
      high = block_reduce<kThreads>(high, higher);
    }
    const bool counts = filter == kLargest || filter == kTopK;
    const Cut<Acc> cut = threshold(
        high, plan.temperature, target, [&](Acc from) { return weigh(from, filter, whole); },
        [counts](Weight w) { return counts ? double(w.count) : w.mass; });
    if (filter == kTypical) {
      tighten([&](Acc value) { return nearness(value, mean) >= cut.at; });
    } else {
      least = higher(least, filter == kEntropy ? lower(max, cut.above) : cut.at);
    }
    some = moments().mass;
  }
#pragma unroll 1
  for (int by_entropy = 0; by_entropy < 2 && filtered; ++by_entropy) {
    const double epsilon = by_entropy ? plan.eta : plan.epsilon;
    if (!(epsilon > 0)) continue;
    const Acc cut = max + plan.temperature * Acc(cut_of(epsilon, moments(), by_entropy));
    const Acc limit = most;
    tighten([](Acc) { return true; });  // most: the largest that is left, which stays
    least = higher(least, lower(cut, most)), most = limit;
  }
  if (filtered) some = moments().mass;

  // The draw: the fastest in a race of exponentials; at temperature 0 the first of the largest.
  Best<Acc> best{-1, 0x7fffffff};
  Acc lowest = max;  // of those that are kept
  const auto better = [](Best<Acc> a, Best<Acc> b) {
    return b.speed > a.speed || (b.speed == a.speed && b.token < a.token) ? b : a;
  };
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    if (filtered && !is_left(left[j])) continue;
    lowest = left[j] < lowest ? left[j] : lowest;
    const int32_t token = in_list ? ids[j] : int32_t(j);
    const Acc greedy = left[j] == max ? Acc(1) : Acc(0);
    const Acc speed = plan.greedy ? greedy : race((left[j] - max) * plan.inv_t, plan.key, uint32_t(token));
    best = better(best, {speed, token});
  }
  best = block_reduce<kThreads>(best, better);
  if (filtered) {
    lowest = block_reduce<kThreads>(lowest, lower);
  } else {
    lowest = plan.greedy ? max : -kInf<Acc>;
  }
  if (threadIdx.x == 0) {
    const int64_t token = best.token == 0x7fffffff ? 0 : best.token;
    finish_sample(args, r, plan, token, raw_of(token), raw_max, raw_sum, (z[token] - max) * plan.inv_t, all, some, p_r,
                  lowest, most);
  }
}

}  // namespace

template <class T>
void sample_step_cuda(const SampleStepArgs<T>& args, void* stream) {
  launch("sample_step", sample_step_kernel<T>, dim3(unsigned(args.rows)), dim3(kThreads), stream, args);
}

#define INSTANTIATE(T) template void sample_step_cuda<T>(const SampleStepArgs<T>& args, void* stream);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
