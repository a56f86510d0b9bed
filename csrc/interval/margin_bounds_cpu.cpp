#include <algorithm>
#include <vector>

#include "core/extremes.h"
#include "core/math.h"
#include "core/parallel.h"
#include "core/widen.h"
#include "interval/margin_bounds.h"

namespace warpup {
namespace {

constexpr int64_t kClassBlock = 32;  // rows of the weight that stay in L2 while the samples go by
constexpr int64_t kAbreast = 4;      // classes whose sums run side by side: a sample's row is read once for them

// Rows in the accumulator's type: where they lie, or widened.
template <class T>
struct WideRows {
  using Acc = acc_t<T>;
  WideRows(const T* x, int64_t rows, int64_t n, int64_t stride) : data(nullptr), stride(stride) {
    if constexpr (sizeof(T) > 2) {
      data = x;
    } else {
      copy.resize(rows * n);
      for (int64_t i = 0; i < rows; ++i) widen(x + i * stride, n, copy.data() + i * n);
      data = copy.data(), this->stride = n;
    }
  }
  const Acc* operator[](int64_t i) const { return data + i * stride; }

  const Acc* data;
  int64_t stride;
  std::vector<Acc> copy;
};

}  // namespace

template <class Acc, int kCount>
inline __attribute__((always_inline)) void sums_abreast(const Acc* c, const Acc* r, const Acc* own, const Acc* w,
                                                        int64_t stride, int64_t n, Acc* out) {
  Acc s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  const auto term = [&](int64_t k, int64_t j) __attribute__((always_inline)) {
    const Acc d = own[j] - w[k * stride + j];
    return d * c[j] - (d < 0 ? -d : d) * r[j];
  };
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t j = 0; j < n; ++j) {
    s0 += term(0, j);
    if constexpr (kCount > 1) s1 += term(1, j), s2 += term(2, j), s3 += term(3, j);
  }
  out[0] = s0;
  if constexpr (kCount > 1) out[1] = s1, out[2] = s2, out[3] = s3;
}

// out[k] = D[k] . c - |D[k]| . r for `count` rows of the weight.
template <class Acc>
WARPUP_LOOP void margin_sums(const Acc* c, const Acc* r, const Acc* own, const Acc* w, int64_t stride, int64_t count,
                             int64_t n, Acc* out) {
  int64_t k = 0;
  for (; k + kAbreast <= count; k += kAbreast)
    sums_abreast<Acc, kAbreast>(c, r, own, w + k * stride, stride, n, out + k);
  for (; k < count; ++k) sums_abreast<Acc, 1>(c, r, own, w + k * stride, stride, n, out + k);
}

// loss = log(1 + sum exp(-m)), share = exp(-m - loss)
template <class Acc>
WARPUP_LOOP void margin_loss(const Acc* m, int64_t n, Acc* loss, Acc* share) {
  Acc high = 0, sum = 0;
#pragma omp simd reduction(largest : high)
  for (int64_t k = 0; k < n; ++k) high = -m[k] > high ? -m[k] : high;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < n; ++k) sum += share[k] = exp_neg(-m[k] - high);
  sum += exp_neg(-high);
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) share[k] /= sum;
  *loss = high == kInf<Acc> ? high : high + log_pos(sum);
}

template <class T>
void margin_bounds_cpu(const MarginBoundsArgs<T>& args) {
  using Acc = acc_t<T>;
  const int64_t others = args.classes - 1;
  const WideRows<T> weight(args.weight, args.classes, args.width, args.weight_stride);
  const auto bias = [&](int64_t k) { return args.bias ? load(args.bias[k]) : Acc(0); };
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(args.classes * args.width, 1));
  parallel_for(0, args.batch, grain, [&](int64_t first, int64_t last) {
    const WideRows<T> center(args.center + first * args.center_stride, last - first, args.width, args.center_stride);
    const WideRows<T> radius(args.radius + first * args.radius_stride, last - first, args.width, args.radius_stride);
    for (int64_t begin = 0; begin < args.classes; begin += kClassBlock) {
      const int64_t count = std::min(kClassBlock, args.classes - begin);
      for (int64_t i = first; i < last; ++i) {
        const int64_t y = args.labels[i];
        Acc sums[kClassBlock];
        margin_sums(center[i - first], radius[i - first], weight[y], weight[begin], weight.stride, count, args.width,
                    sums);
        Acc* bounds = args.bounds + i * others;
        for (int64_t k = begin; k < begin + count; ++k) {
          if (k != y) bounds[k - (k > y)] = sums[k - begin] + (bias(y) - bias(k));
        }
      }
    }
    for (int64_t i = first; args.loss && i < last; ++i) {
      margin_loss(args.bounds + i * others, others, args.loss + i, args.share + i * others);
    }
  });
}

// Vectors as wide as this file's instruction set has them: of wider ones g++ makes a comparison or a choice one element
// at a time.
#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

// A tile is two vectors wide: what a sample adds up over the classes stays in registers.
template <class Acc>
inline constexpr int64_t kMarginTile = 2 * kVectorBytes / sizeof(Acc);

// One sample's part in a tile of columns; weight and grad_weight [classes, kMarginTile]; box = c, r; grads = dc, dr.
template <class Acc>
WARPUP_LOOP void margin_tile(const Acc* weight, int64_t classes, int64_t y, const Acc* grad_bounds, const Acc* box,
                             Acc* grad_weight, Acc* grads) {
  typedef Acc Lanes __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t kTile = kMarginTile<Acc>, kLanes = kTile / 2;
  Lanes own[2], c[2], r[2], dc[2] = {}, dr[2] = {}, total[2] = {};
  __builtin_memcpy(own, weight + y * kTile, sizeof own);
  __builtin_memcpy(c, box, sizeof c);
  __builtin_memcpy(r, box + kTile, sizeof r);
  double sum = 0;
  for (int64_t k = 0, at = 0; k < classes; ++k) {
    if (k == y) continue;
    const Acc g = grad_bounds[at++];
    sum += g;
    for (int v = 0; v < 2; ++v) {
      const int64_t offset = k * kTile + v * kLanes;
      Lanes w, dw;
      __builtin_memcpy(&w, weight + offset, sizeof w);
      __builtin_memcpy(&dw, grad_weight + offset, sizeof dw);
      const Lanes d = own[v] - w, zero = {};
      const Lanes part = g * (d > 0 ? r[v] : d < 0 ? -r[v] : zero);
      dc[v] += g * d;
      dr[v] -= g * (d < 0 ? -d : d);
      total[v] -= part;
      dw += part - g * c[v];
      __builtin_memcpy(grad_weight + offset, &dw, sizeof dw);
    }
  }
  for (int v = 0; v < 2; ++v) {
    Lanes dw;
    __builtin_memcpy(&dw, grad_weight + y * kTile + v * kLanes, sizeof dw);
    dw += total[v] + static_cast<Acc>(sum) * c[v];
    __builtin_memcpy(grad_weight + y * kTile + v * kLanes, &dw, sizeof dw);
  }
  __builtin_memcpy(grads, dc, sizeof dc);
  __builtin_memcpy(grads + kTile, dr, sizeof dr);
}

template <class T>
void margin_bias_gradient(const MarginBoundsBackwardArgs<T>& args, const acc_t<T>* grad_bounds) {
  const MarginBoundsArgs<T>& f = args.forward;
  std::vector<double> sums(f.classes);
  for (int64_t i = 0; i < f.batch; ++i) {
    const acc_t<T>* g = grad_bounds + i * (f.classes - 1);
    const int64_t y = f.labels[i];
    double total = 0;
    for (int64_t k = 0; k < y; ++k) sums[k] -= g[k], total += g[k];
    for (int64_t k = y; k < f.classes - 1; ++k) sums[k + 1] -= g[k], total += g[k];
    sums[y] += total;
  }
  for (int64_t k = 0; k < f.classes; ++k) args.grad_bias[k] = store<T>(static_cast<acc_t<T>>(sums[k]));
}

// Threads share out the columns, so that each has the weight's gradient of its own to itself.
template <class T>
void margin_bounds_backward_cpu(const MarginBoundsBackwardArgs<T>& args) {
  using Acc = acc_t<T>;
  constexpr int64_t kTile = kMarginTile<Acc>;
  const MarginBoundsArgs<T>& f = args.forward;

  // The gradient of each bound, that of the loss in it; of the bias, which needs nothing else.
  const Acc* grad_bounds = args.grad_bounds;
  std::vector<Acc> combined;
  if (args.grad_loss) {
    combined.resize(f.batch * (f.classes - 1));
    for (int64_t i = 0, at = 0; i < f.batch; ++i) {
      for (int64_t k = 0; k < f.classes - 1; ++k) combined[at++] = margin_gradient(args, i, k);
    }
    grad_bounds = combined.data();
  }
  margin_bias_gradient(args, grad_bounds);

  // Columns in tiles, each by one thread: all samples and classes of a tile, so that no sum is shared.
  const int64_t tile_work = std::max<int64_t>(f.batch * f.classes * kTile, 1);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / tile_work);
  parallel_for(0, (f.width + kTile - 1) / kTile, grain, [&](int64_t first, int64_t last) {
    std::vector<Acc> weight(f.classes * kTile), grad_weight(f.classes * kTile);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, n = std::min(kTile, f.width - begin);
      std::fill(grad_weight.begin(), grad_weight.end(), Acc(0));
      for (int64_t k = 0; k < f.classes; ++k) {
        for (int64_t j = 0; j < n; ++j) weight[k * kTile + j] = load(f.weight[k * f.weight_stride + begin + j]);
      }
      for (int64_t i = 0; i < f.batch; ++i) {
        Acc box[2 * kTile] = {}, grads[2 * kTile];
        for (int64_t j = 0; j < n; ++j) {
          box[j] = load(f.center[i * f.center_stride + begin + j]);
          box[kTile + j] = load(f.radius[i * f.radius_stride + begin + j]);
        }
        margin_tile(weight.data(), f.classes, f.labels[i], grad_bounds + i * (f.classes - 1), box, grad_weight.data(),
                    grads);
        for (int64_t j = 0; j < n; ++j) {
          args.grad_center[i * f.width + begin + j] = store<T>(grads[j]);
          args.grad_radius[i * f.width + begin + j] = store<T>(grads[kTile + j]);
        }
      }
      for (int64_t k = 0; k < f.classes; ++k) {
        for (int64_t j = 0; j < n; ++j)
          args.grad_weight[k * f.width + begin + j] = store<T>(grad_weight[k * kTile + j]);
      }
    }
  });
}

#define INSTANTIATE(T)                                                 \
  template void margin_bounds_cpu<T>(const MarginBoundsArgs<T>& args); \
  template void margin_bounds_backward_cpu<T>(const MarginBoundsBackwardArgs<T>& args);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
#undef INSTANTIATE

}  // namespace warpup
