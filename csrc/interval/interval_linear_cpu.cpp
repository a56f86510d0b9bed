#include <algorithm>

#include "core/parallel.h"
#include "interval/interval_linear.h"

namespace warpup {
namespace {

constexpr int64_t kColumns = 4;   // share the loads of a row
constexpr int64_t kWidth = 1024;  // a piece of a gradient row in L1

template <class T>
WARPUP_LOOP void exact_row(const IntervalLinearExactArgs<T>& args, int64_t row) {
  const T *ac = args.a_center + row * args.width, *ar = args.a_radius + row * args.width;
  for (int64_t j = 0; j < args.columns; j += kColumns) {
    const int64_t last = args.columns - 1;
    const T *bc[kColumns], *br[kColumns];
    for (int64_t q = 0; q < kColumns; ++q) {
      const int64_t at = std::min(j + q, last) * args.width;  // past the last column: the last again
      bc[q] = args.b_center + at, br[q] = args.b_radius + at;
    }
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0, m0 = 0, m1 = 0, m2 = 0, m3 = 0;
    const auto add = [](T xc, T xr, T yc, T yr, T& s, T& m) __attribute__((always_inline)) {
      const T least = least_product(xc, xr, yc, yr);
      m += least, s += least * sign_of_product(xc, yc);
    };
#pragma omp simd reduction(+ : s0, s1, s2, s3, m0, m1, m2, m3)
    for (int64_t k = 0; k < args.width; ++k) {
      add(ac[k], ar[k], bc[0][k], br[0][k], s0, m0), add(ac[k], ar[k], bc[1][k], br[1][k], s1, m1);
      add(ac[k], ar[k], bc[2][k], br[2][k], s2, m2), add(ac[k], ar[k], bc[3][k], br[3][k], s3, m3);
    }
    const T s[] = {s0, s1, s2, s3}, m[] = {m0, m1, m2, m3};
    for (int64_t q = 0; q < std::min(kColumns, args.columns - j); ++q) {
      args.shift[row * args.columns + j + q] = s[q], args.excess[row * args.columns + j + q] = m[q];
    }
  }
}

template <class T>
WARPUP_LOOP void exact_gradient_row(const IntervalLinearExactBackwardArgs<T>& args, int64_t row) {
  const int64_t step = args.transposed ? args.rows : 1, start = args.transposed ? row : row * args.columns;
  static constexpr T none[kWidth] = {};
  T dc[kWidth], dr[kWidth];
  for (int64_t k0 = 0; k0 < args.width; k0 += kWidth) {
    const int64_t n = std::min(kWidth, args.width - k0), at = row * args.width + k0;
    const T *ac = args.a_center + at, *ar = args.a_radius + at;
    std::fill_n(dc, n, T(0)), std::fill_n(dr, n, T(0));
    for (int64_t j = 0; j < args.columns; j += kColumns) {
      const T *bc[kColumns], *br[kColumns];
      T gs[kColumns], ge[kColumns];
      for (int64_t q = 0; q < kColumns; ++q) {
        const bool there = j + q < args.columns;  // past the last column: zeros
        const int64_t b = (j + q) * args.width + k0, g = start + (j + q) * step;
        bc[q] = there ? args.b_center + b : none, br[q] = there ? args.b_radius + b : none;
        gs[q] = there ? T(args.grad_shift[g]) : T(0), ge[q] = there ? T(args.grad_excess[g]) : T(0);
      }
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        T c = dc[k], r = dr[k];
        const T xc = ac[k], xr = ar[k];
        least_product_gradient(xc, xr, bc[0][k], br[0][k], gs[0], ge[0], &c, &r);
        least_product_gradient(xc, xr, bc[1][k], br[1][k], gs[1], ge[1], &c, &r);
        least_product_gradient(xc, xr, bc[2][k], br[2][k], gs[2], ge[2], &c, &r);
        least_product_gradient(xc, xr, bc[3][k], br[3][k], gs[3], ge[3], &c, &r);
        dc[k] = c, dr[k] = r;
      }
    }
    std::copy_n(dc, n, args.out_center + at), std::copy_n(dr, n, args.out_radius + at);
  }
}

template <class Args>
int64_t rows_at_once(const Args& args) {
  return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, args.columns * args.width));
}

template <class T>
WARPUP_LOOP void sign_range(const IntervalLinearSignArgs<T>& args, int64_t first, int64_t last) {
  const T *w = args.weight, *base = args.base;
  T* g = args.gradient;
  if (base) {
#pragma omp simd
    for (int64_t i = first; i < last; ++i) g[i] = signed_sum(w[i], g[i], base[i]);
  } else {
#pragma omp simd
    for (int64_t i = first; i < last; ++i) g[i] = signed_sum(w[i], g[i], T{});
  }
}

}  // namespace

template <class T>
void interval_linear_exact_cpu(const IntervalLinearExactArgs<T>& args) {
  parallel_for(0, args.columns ? args.rows : 0, rows_at_once(args), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) exact_row(args, row);
  });
}

template <class T>
void interval_linear_exact_backward_cpu(const IntervalLinearExactBackwardArgs<T>& args) {
  parallel_for(0, args.rows, rows_at_once(args), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) exact_gradient_row(args, row);
  });
}

template <class T>
void interval_linear_sign_cpu(const IntervalLinearSignArgs<T>& args) {
  parallel_for(0, args.count, 1 << 15, [&](int64_t first, int64_t last) { sign_range(args, first, last); });
}

#define INSTANTIATE(T)                                                           \
  template void interval_linear_exact_cpu<T>(const IntervalLinearExactArgs<T>&); \
  template void interval_linear_exact_backward_cpu<T>(const IntervalLinearExactBackwardArgs<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
template void interval_linear_sign_cpu<float>(const IntervalLinearSignArgs<float>&);
template void interval_linear_sign_cpu<double>(const IntervalLinearSignArgs<double>&);
template void interval_linear_sign_cpu<bfloat16>(const IntervalLinearSignArgs<bfloat16>&);
template void interval_linear_sign_cpu<float16>(const IntervalLinearSignArgs<float16>&);

}  // namespace warpup
