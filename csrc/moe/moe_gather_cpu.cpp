// The CPU kernels of moe_gather and moe_combine: a thread takes whole tokens.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "moe/moe_gather.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 512;  // columns whose sums stay in L1 while the copies' rows are added

int64_t grain(int64_t k, int64_t width) {  // tokens
  return std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(k * width, 1));
}

}  // namespace

template <class T>
WARPUP_LOOP void add_scaled(const T* __restrict y, int64_t n, acc_t<T> w, acc_t<T>* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += w * load(y[i]);
}

template <class T>
WARPUP_LOOP void round_block(const acc_t<T>* __restrict from, int64_t n, T* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = store<T>(from[i]);
}

template <class T>
WARPUP_LOOP void scaled_block(const T* __restrict x, int64_t n, acc_t<T> w, T* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = store<T>(w * load(x[i]));
}

// Blocks are added up in double: the sum over a long row keeps its digits.
template <class T>
WARPUP_LOOP void row_dot(const T* __restrict x, const T* __restrict y, int64_t width, acc_t<T>* __restrict out) {
  double total = 0;
  for (int64_t first = 0; first < width; first += kBlock) {
    const int64_t last = width - first < kBlock ? width : first + kBlock;
    acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = first; i < last; ++i) sum += load(x[i]) * load(y[i]);
    total += sum;
  }
  *out = static_cast<acc_t<T>>(total);
}

template <class T>
void moe_gather_cpu(const MoeGatherArgs<T>& args) {
  const int64_t width = args.width;
  const bool streamed = args.rows * width * int64_t(sizeof(T)) >= kStreamed;
  const auto put = [streamed](T* to, const T* from, int64_t n) {
    streamed ? stream_store(to, from, n) : void(std::memcpy(to, from, n * sizeof(T)));
  };
  parallel_for(0, args.tokens, grain(args.k, width), [&](int64_t first, int64_t last) {
    alignas(64) T block[kBlock];
    for (int64_t t = first; t < last; ++t) {
      const T* x = args.x + t * args.x_stride;
      for (int64_t copy = t * args.k; copy < (t + 1) * args.k; ++copy) {
        const int64_t row = args.inverse[copy];
        const bool held = row >= 0 && row < args.rows;
        if (args.grad_weights) args.grad_weights[copy] = 0;
        if (!held) continue;
        if (args.grad_weights) row_dot(x, args.y + row * args.y_stride, width, args.grad_weights + copy);
        T* to = args.out + row * width;
        if (!args.weights) {
          put(to, x, width);
          continue;
        }
        for (int64_t begin = 0; begin < width; begin += kBlock) {
          const int64_t n = std::min(kBlock, width - begin);
          scaled_block(x + begin, n, args.weights[copy], streamed ? block : to + begin);
          if (streamed) stream_store(to + begin, block, n);
        }
      }
    }
    if (streamed) stream_fence();
  });
  parallel_for(0, args.rows, 1024, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      if (args.permutation[s] < 0) std::fill_n(args.out + s * width, width, T{});
    }
  });
}

template <class T>
void moe_combine_cpu(const MoeCombineArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t width = args.width;
  parallel_for(0, args.tokens, grain(args.k, width), [&](int64_t first, int64_t last) {
    alignas(64) Acc sum[kBlock];
    for (int64_t t = first; t < last; ++t) {
      for (int64_t begin = 0; begin < width; begin += kBlock) {
        const int64_t n = std::min(kBlock, width - begin);
        std::fill_n(sum, n, Acc(0));
        for (int64_t copy = t * args.k; copy < (t + 1) * args.k; ++copy) {
          const int64_t row = args.inverse[copy];
          if (row < 0 || row >= args.rows) continue;
          add_scaled(args.y + row * args.y_stride + begin, n, args.weights ? args.weights[copy] : Acc(1), sum);
        }
        round_block(sum, n, args.out + t * width + begin);
      }
    }
  });
}

#define INSTANTIATE(T)                                           \
  template void moe_gather_cpu<T>(const MoeGatherArgs<T>& args); \
  template void moe_combine_cpu<T>(const MoeCombineArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
