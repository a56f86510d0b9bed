// The loops of sample_step's CPU kernel over a row of logits, each compiled by itself. What they are for is decided in
// sample_step_cpu.cpp.
#pragma once

#include "core/extremes.h"
#include "reflection/sample_step_math.h"

namespace warpup {

inline constexpr int64_t kRun = 1024;    // added up in Acc: longer sums lose digits
inline constexpr int64_t kStripe = 128;  // elements that one maximum stands for

template <class T>
WARPUP_LOOP void add_difference(const T* __restrict tuned, const T* __restrict base, int64_t n, acc_t<T> beta,
                                acc_t<T>* __restrict z) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] += beta * (load(tuned[j]) - load(base[j]));
}

template <class Acc>
WARPUP_LOOP void penalize_row(const RowPlan<Acc>& plan, int64_t n, Acc* __restrict z) {
  const Acc by = plan.repetition, inverse = 1 / by, presence = plan.presence;
  const uint8_t* seen = plan.seen;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const Acc scaled = z[j] > 0 ? z[j] * inverse : z[j] * by;
    const Acc less = seen[j] & 2 ? presence : Acc(0);
    z[j] = (seen[j] ? scaled : z[j]) - less;
  }
}

template <class Acc>
WARPUP_LOOP void add_bias(const float* __restrict bias, int64_t n, Acc* __restrict z) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] += bias[j];
}

template <class Acc>
WARPUP_LOOP void take_counts(const int32_t* __restrict counts, int64_t n, Acc frequency, Acc* __restrict z) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] -= frequency * Acc(counts[j]);
}

template <class Acc>
WARPUP_LOOP void row_max(const Acc* __restrict z, int64_t n, Acc* __restrict out) {
  Acc high = -kInf<Acc>;
#pragma omp simd reduction(largest : high)
  for (int64_t j = 0; j < n; ++j) high = z[j] > high ? z[j] : high;
  *out = high;
}

// The maximum of each stripe.
template <class Acc>
WARPUP_LOOP void stripe_max(const Acc* __restrict z, int64_t n, Acc* __restrict out) {
  for (int64_t first = 0; first < n; first += kStripe) {
    const int64_t last = n - first < kStripe ? n : first + kStripe;
    Acc high = -kInf<Acc>;
#pragma omp simd reduction(largest : high)
    for (int64_t j = first; j < last; ++j) high = z[j] > high ? z[j] : high;
    out[first / kStripe] = high;
  }
}

// Sum of e^x.
template <class Acc>
WARPUP_LOOP void mass_of(const Acc* __restrict z, int64_t n, Acc max, Acc inv_t, double* __restrict out) {
  double mass = 0;
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t last = n - first < kRun ? n : first + kRun;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < last; ++j) sum += exp_neg((z[j] - max) * inv_t);
    mass += sum;
  }
  *out = mass;
}

// The same of the elements >= least alone, and how many they are.
template <class Acc>
WARPUP_LOOP void mass_from(const Acc* __restrict z, int64_t n, Acc least, Acc max, Acc inv_t, Weight* __restrict out) {
  double mass = 0;
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t last = n - first < kRun ? n : first + kRun;
    Acc sum = 0;
    int32_t some = 0;
#pragma omp simd reduction(+ : sum, some)
    for (int64_t j = first; j < last; ++j) {
      const Acc e = exp_neg((z[j] - max) * inv_t);
      sum += z[j] >= least ? e : Acc(0);
      some += z[j] >= least;
    }
    mass += sum, count += some;
  }
  *out = {mass, count};
}

// Sums of e^x and of x e^x.
template <class Acc>
WARPUP_LOOP void moments_of(const Acc* __restrict z, int64_t n, Acc max, Acc inv_t, Moments* __restrict out) {
  double mass = 0, shifted = 0;
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t last = n - first < kRun ? n : first + kRun;
    Acc sum = 0, moved = 0;
#pragma omp simd reduction(+ : sum, moved)
    for (int64_t j = first; j < last; ++j) {
      const Acc x = (z[j] - max) * inv_t, e = exp_neg(x);
      sum += e, moved += e != 0 ? e * x : Acc(0);
    }
    mass += sum, shifted += moved;
  }
  *out = {mass, shifted};
}

template <class Acc>
WARPUP_LOOP void nearness_of(const Acc* __restrict z, int64_t n, Acc mean, Acc* __restrict key) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) key[j] = nearness(z[j], mean);
}

template <class Acc>
WARPUP_LOOP void count_from(const Acc* __restrict z, int64_t n, Acc least, int64_t* __restrict out) {
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += 1 << 20) {
    const int64_t last = n - first < (1 << 20) ? n : first + (1 << 20);
    int32_t some = 0;
#pragma omp simd reduction(+ : some)
    for (int64_t j = first; j < last; ++j) some += z[j] >= least;
    count += some;
  }
  *out = count;
}

template <class Acc, bool kListed>
WARPUP_LOOP void race_block(const Acc* __restrict z, const int32_t* __restrict ids, int64_t begin, int64_t n, Acc max,
                            Acc inv_t, RandomKey key, Acc* __restrict speed) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t token = kListed ? uint32_t(ids[j]) : uint32_t(begin + j);
    speed[j] = race((z[j] - max) * inv_t, key, token);
  }
}

}  // namespace warpup
