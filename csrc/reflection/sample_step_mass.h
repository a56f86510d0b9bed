// Top-p on a CPU: the least logit that is kept, by mass in bins, without a sort of the row.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "core/math.h"

namespace warpup {

inline constexpr int32_t kBins = 4096;

// e^x of elements, and the bin of each: of [low, high] in kBins equal parts, counted down from high. What is below low is
// in bin kBins.
template <class Acc>
WARPUP_LOOP void bin_block(const Acc* __restrict z, int64_t n, Acc low, Acc high, Acc per, Acc max, Acc inv_t,
                           Acc* __restrict e, int32_t* __restrict bin) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    e[j] = exp_neg((z[j] - max) * inv_t);
    const Acc at = z[j] >= low ? (high - z[j]) * per : Acc(kBins);
    bin[j] = static_cast<int32_t>(at);
  }
}

// The largest v for which the e^x of the elements >= v, all of them at most `max`, add up to `target`; `low` where those
// >= low do not. One pass finds the bin in which the sum gets there, the next ones look at its elements alone: as bins of
// their own while they are many, then one after the other, the largest first.
template <class Acc>
Acc mass_threshold(const Acc* z, int64_t n, Acc low, Acc max, Acc inv_t, double target) {
  constexpr int64_t kBlock = 1024, kFew = 256;
  alignas(64) Acc e[kBlock];
  alignas(64) int32_t bin[kBlock];
  std::vector<double> mass;
  std::vector<Acc> left, next;
  double above = 0;  // the mass of what is larger than all that is left
  Acc high = max, floor = low;
  while (n > kFew) {
    const Acc per = Acc(kBins - 1) / (high - floor);
    if (!(per > 0 && per < Acc(1e30))) break;  // as good as equal, or infinitely far apart
    const auto each_block = [&](const auto& body) {
      for (int64_t first = 0; first < n; first += kBlock) {
        const int64_t count = std::min(kBlock, n - first);
        bin_block(z + first, count, floor, high, per, max, inv_t, e, bin);
        for (int64_t j = 0; j < count; ++j) body(first + j, j);
      }
    };
    mass.assign(kBins + 1, 0.0);
    each_block([&](int64_t, int64_t j) { mass[bin[j]] += e[j]; });
    int32_t found = 0;
    while (found < kBins && above + mass[found] < target) above += mass[found++];
    if (found == kBins) return floor;
    next.clear();
    each_block([&](int64_t i, int64_t j) {
      if (bin[j] == found) next.push_back(z[i]);
    });
    left.swap(next);
    z = left.data(), n = left.size();
    const auto [least, most] = std::minmax_element(z, z + n);
    if (*least == *most) return *least;
    floor = *least, high = *most;  // so the next bins part them
  }
  std::vector<Acc> sorted(z, z + n);
  std::sort(sorted.begin(), sorted.end(), std::greater<Acc>());
  for (const Acc v : sorted) {
    above += exp_neg((v - max) * inv_t);
    if (above >= target) return v;
  }
  return std::max(low, sorted.back());
}

}  // namespace warpup
