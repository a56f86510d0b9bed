// One block a row. The logits come once from memory; z then lies in scratch, which the L2 holds, for every further
// pass.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/vec.cuh"
#include "reflection/sample_step_math.h"

namespace warpup {
namespace {

constexpr int kThreads = 512;

template <class Acc>
struct Sums {  // of e^(z - max), of e^((z - max) / T)
  Acc max;
  double one, cold;

  __device__ Sums under(Acc new_max, Acc inv_t) const {
    if (max == new_max || max == -kInf<Acc>) return {new_max, one, cold};
    return {new_max, one * exp(double(max) - new_max), cold * exp((double(max) - new_max) * inv_t)};
  }
};

template <class Acc>
struct Best {
  Acc speed;
  int32_t token;
};

// The sums over the block's row, of values that at(j) gives; the same for all threads.
template <class Acc, class At>
__device__ Sums<Acc> block_sums(int64_t n, Acc inv_t, At at) {
  Sums<Acc> mine{-kInf<Acc>, 0, 0};
  for (int64_t j = threadIdx.x; j < n; j += kThreads) {
    const Acc z = at(j);
    if (z > mine.max) mine = mine.under(z, inv_t);
    if (z == -kInf<Acc>) continue;
    const Acc d = z - mine.max, e = exp_neg(d);
    mine.one += e, mine.cold += inv_t == 1 ? e : exp_neg(d * inv_t);
  }
  return block_reduce<kThreads>(mine, [inv_t](Sums<Acc> a, Sums<Acc> b) {
    const Acc max = a.max > b.max ? a.max : b.max;
    a = a.under(max, inv_t), b = b.under(max, inv_t);
    return Sums<Acc>{max, a.one + b.one, a.cold + b.cold};
  });
}

template <class T>
__global__ __launch_bounds__(kThreads) void sample_step_kernel(const SampleStepArgs<T> args) {
  using Acc = acc_t<T>;
  const int64_t r = blockIdx.x, v = args.vocab;
  const RowPlan<Acc> plan = plan_of(args, r);
  if (!plan.drawn) {
    if (threadIdx.x == 0) finish_nothing(args, r);
    return;
  }
  Acc* z = args.scratch + r * v;
  const auto raw_of = [&](int64_t j) {
    Acc z0 = load(args.logits[r * args.stride + j]);
    if (args.tuned) {
      z0 += plan.beta * (load(args.tuned[r * args.tuned_stride + j]) - load(args.base[r * args.base_stride + j]));
    }
    return z0;
  };
  const Sums<Acc> raw = block_sums(v, plan.inv_t, [&](int64_t j) { return z[j] = raw_of(j); });
  if (!(raw.one > 0)) {
    if (threadIdx.x == 0) finish_without_draw(args, r, plan, raw.one != raw.one);
    return;
  }
  __syncthreads();  // z is written

  double in_set = 0;
  for (int64_t i = threadIdx.x; i < plan.set_size; i += kThreads) {
    const int32_t id = plan.set[i];
    if (id < 0 || id >= v) continue;
    in_set += exp_neg((z[id] - raw.max) * plan.inv_t);
    if (plan.delta != 0) z[id] += plan.delta;
  }
  const auto sum = [](double a, double b) { return a + b; };
  in_set = block_reduce<kThreads>(in_set, sum);

  Acc max = raw.max;
  double all = raw.cold;
  if (plan.delta != 0 || plan.penalised()) {
    const bool penalised = plan.penalised();
    __syncthreads();
    const Sums<Acc> now = block_sums(
        v, plan.inv_t, [&](int64_t j) { return penalised ? z[j] = plan.penalise(z[j], plan.seen[j]) : z[j]; });
    max = now.max, all = now.cold;
    if (max == -kInf<Acc>) {
      if (threadIdx.x == 0) finish_without_draw(args, r, plan, false);
      return;
    }
    __syncthreads();
  }

  Acc least = std::numeric_limits<Acc>::lowest();
  const auto weigh = [&](Acc from, bool with_mass) {
    Weight w{0, 0};
    for (int64_t j = threadIdx.x; j < v; j += kThreads) {
      if (z[j] < from) continue;
      ++w.count;
      if (with_mass) w.mass += exp_neg((z[j] - max) * plan.inv_t);
    }
    return block_reduce<kThreads>(w, [](Weight a, Weight b) { return Weight{a.mass + b.mass, a.count + b.count}; });
  };
  double some = all;
  if (!plan.greedy) {
    if (plan.top_k) {
      least = threshold(
          max, plan.temperature, double(plan.top_k), [&](Acc from) { return weigh(from, false); },
          [](Weight w) { return double(w.count); });
      some = weigh(least, true).mass;
    }
    if (plan.top_p < 1) {
      const Acc nucleus = threshold(
          max, plan.temperature, plan.top_p * some, [&](Acc from) { return weigh(from, true); },
          [](Weight w) { return w.mass; });
      least = nucleus > least ? nucleus : least;
    }
    const Acc relative = max + plan.min_x * plan.temperature;
    least = relative > least ? relative : least;
    if (plan.top_k || plan.top_p < 1 || plan.min_x > -kInf<Acc>) some = weigh(least, true).mass;
  }

  Best<Acc> best{-1, 0x7fffffff};
  const auto better = [](Best<Acc> a, Best<Acc> b) {
    return b.speed > a.speed || (b.speed == a.speed && b.token < a.token) ? b : a;
  };
  for (int64_t j = threadIdx.x; j < v; j += kThreads) {
    if (z[j] < least) continue;
    const Acc speed =
        plan.greedy ? (z[j] == max ? Acc(1) : Acc(0)) : race((z[j] - max) * plan.inv_t, plan.key, uint32_t(j));
    best = better(best, {speed, int32_t(j)});
  }
  best = block_reduce<kThreads>(best, better);
  if (threadIdx.x == 0) {
    const int64_t token = best.token == 0x7fffffff ? 0 : best.token;
    finish_sample(args, r, plan, token, raw_of(token), raw.max, raw.one, (z[token] - max) * plan.inv_t, all, some,
                  in_set / raw.cold);
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
