// The loops of grouped_mm's CPU kernel in float32: panels of both operands are converted as they are packed. See
// grouped_mm_tiles.h for what each of them does.
#include <algorithm>
#include <cstring>

#include "moe/grouped_mm_tiles.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace warpup {
namespace {

// A tile's sums fill the registers but for a row of b and an element of a: 24 of 32, or 12 of 16.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kWidth = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kVectors = 4;
#else
constexpr int kWidth = 4, kVectors = 2;
#endif
constexpr int kColumns = kWidth * kVectors;
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));

#ifdef __AVX2__
template <class T>
inline __m256 load8(const T* x) {
  if constexpr (std::is_same_v<T, float>) {
    return _mm256_loadu_ps(x);
  } else {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    if constexpr (std::is_same_v<T, float16>) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
}

// to[d * stride + i] = rows[i][first + d] for 8 rows, a null one is 0, and d in [0, 8).
template <class T>
inline void transpose8(const T* const (&rows)[8], int64_t first, float* to, int64_t stride) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = rows[i] ? load8(rows[i] + first) : _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2)
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // then r[i + c] has columns c and 4 + c of rows i to i + 3
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44), r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44), r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(to + c * stride, _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(to + (4 + c) * stride, _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
  }
}
#endif

// 8 neighbors as float32.
template <class T>
inline void widen8(const T* x, float* to) {
#ifdef __AVX2__
  _mm256_storeu_ps(to, load8(x));
#else
  for (int i = 0; i < 8; ++i) to[i] = load(x[i]);
#endif
}

// to[d * stride + i] = rows[i][first + d] for n <= 8 rows, 0 in those up to `width`, and d in [0, depth). Up to 8 floats
// are written at each d; stride >= width.
template <class T>
void transpose(const T* const* rows, int64_t n, int width, int64_t first, int64_t depth, float* to, int64_t stride) {
  int64_t d = 0;
#ifdef __AVX2__
  const T* eight[8];
  for (int64_t i = 0; i < 8; ++i) eight[i] = i < n ? rows[i] : nullptr;
  for (; d + 8 <= depth; d += 8) transpose8(eight, first + d, to + d * stride, stride);
#endif
  for (; d < depth; ++d) {
    for (int64_t i = 0; i < width; ++i) to[d * stride + i] = i < n ? load(rows[i][first + d]) : 0.0f;
  }
}

template <class T>
void pack(const T* const* rows, int64_t depth, int64_t first, int64_t n, void* packed) {
  float* to = static_cast<float*>(packed);
  for (int64_t d = 0; d < depth; ++d, to += kColumns) {
    const T* row = rows[d] + first;
    if (n == kColumns) {
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; j += 8) widen8(row + j, to + j);
    } else {
      for (int64_t j = 0; j < kColumns; ++j) to[j] = j < n ? load(row[j]) : 0.0f;
    }
  }
}

template <class T>
void pack_transposed(const T* const* rows, int64_t n, int64_t first, int64_t depth, void* packed) {
  float* to = static_cast<float*>(packed);
  for (int64_t j = 0; j < kColumns; j += 8) {
    transpose(rows + std::min(j, n), std::clamp<int64_t>(n - j, 0, 8), 8, first, depth, to + j, kColumns);
  }
}

template <class T>
void pack_a(bool transposed, const T* const* rows, int64_t m, int64_t depth, void* packed) {
  float* to = static_cast<float*>(packed);
  for (int64_t i = 0; i < m; i += kRows, to += kRows * depth) {
    if (!transposed) {  // the two rows too many of one step are overwritten by the next
      transpose(rows + i, std::min<int64_t>(kRows, m - i), kRows, 0, depth, to, kRows);
      continue;
    }
    for (int64_t d = 0; d < depth; ++d) {
      const T* row = rows[d] + i;
      if (i + 8 <= m) {
        widen8(row, to + d * kRows);
      } else {
        for (int64_t r = 0; r < kRows; ++r) to[d * kRows + r] = i + r < m ? load(row[r]) : 0.0f;
      }
    }
  }
}

inline Vector load_vector(const float* x) {
  Vector v;
  std::memcpy(&v, x, sizeof(v));
  return v;
}

// Loops over a tile are unrolled in full: only then its sums stay in registers.
template <class Body>
WARPUP_HD void for_tile(const Body& body) {
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) body(i, j);
  }
}

template <class T>
void tile(const void* packed_a, const void* packed_b, int64_t depth, const Parts& parts, T* out, int64_t stride, bool,
          const Ahead<T>& ahead) {
  const float *a = static_cast<const float*>(packed_a), *b = static_cast<const float*>(packed_b);
  Vector sums[kRows][kVectors];
  const float* from = parts.from;
  for_tile([&](int i, int j) { sums[i][j] = from ? load_vector(from + i * kColumns + j * kWidth) : Vector{}; });

  // The sum. What comes after this tile is fetched meanwhile, its pieces spread evenly over the steps.
  const int64_t step = depth / (ahead.count + 1);
  for (int64_t piece = 0, d = 0; piece <= ahead.count; ++piece) {
    if (piece < ahead.count) {
      const char* next = reinterpret_cast<const char*>(ahead.piece(piece));
      for (int64_t line = 0; line < ahead.piece_bytes; line += 64) __builtin_prefetch(next + line, 0, 2);
    }
    for (const int64_t end = piece < ahead.count ? d + step : depth; d < end; ++d) {
      Vector other[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) other[j] = load_vector(b + d * kColumns + j * kWidth);
      for_tile([&](int i, int j) { sums[i][j] += a[d * kRows + i] * other[j]; });
    }
  }

  // To the next part of the sum as they are, or rounded to the result.
  float complete[kRows * kColumns];
  float* to = parts.to ? parts.to : complete;
  for_tile([&](int i, int j) { std::memcpy(to + i * kColumns + j * kWidth, &sums[i][j], sizeof(Vector)); });
  if (parts.to) return;
  for (int i = 0; i < kRows; ++i) {
    T rounded[kColumns];
#pragma omp simd
    for (int j = 0; j < kColumns; ++j) rounded[j] = store<T>(complete[i * kColumns + j]);
    std::memcpy(out + i * stride, rounded, sizeof(rounded));
  }
}

// ---- Few rows: sums along rows of b as they lie ---------------------------------------------------------------------

constexpr int kTogether = 4, kMostRows = 3;  // of b and of a: their sums, a row of b and rows of a fill 16 registers

// A vector of neighbors as float32.
template <class T>
inline Vector widened(const T* x) {
  if constexpr (std::is_same_v<T, float>) return load_vector(x);
  if constexpr (std::is_same_v<T, bfloat16>) {
    typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));
    typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
    Halves halves;
    std::memcpy(&halves, x, sizeof(halves));
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
  }
  Vector v;
  if constexpr (kWidth % 8 == 0) {
    for (int i = 0; i < kWidth; i += 8) widen8(x + i, reinterpret_cast<float*>(&v) + i);
  } else {
    for (int i = 0; i < kWidth; ++i) v[i] = load(x[i]);
  }
  return v;
}

// sums[i][r] = the sum over `depth` of kTogether rows of b and kN rows of a, which begin `depth` floats after each
// other. The rows `next` are fetched meanwhile.
template <int kN, class T>
WARPUP_LOOP void skinny_sums(const T* const* b, const T* const* next, const float* a, int64_t depth,
                             float (*sums)[kMostRows]) {
  constexpr int64_t kLine = 64 / sizeof(T);  // elements in a cache line
  Vector parts[kTogether][kN] = {};
  const auto add = [&](int64_t d) {
    Vector rows[kN];
#pragma GCC unroll 3
    for (int r = 0; r < kN; ++r) rows[r] = load_vector(a + r * depth + d);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      const Vector mine = widened(b[i] + d);
#pragma GCC unroll 3
      for (int r = 0; r < kN; ++r) parts[i][r] += mine * rows[r];
    }
  };
  int64_t d = 0;
  for (; d + kLine <= depth; d += kLine) {
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) __builtin_prefetch(next[i] + d, 0, 2);
#pragma GCC unroll 8
    for (int64_t v = 0; v < kLine; v += kWidth) add(d + v);
  }
  for (; d + kWidth <= depth; d += kWidth) add(d);

  // The vectors' halves are added until one number is left, then what was no whole vector.
  for (int i = 0; i < kTogether; ++i) {
    for (int r = 0; r < kN; ++r) {
      Vector sum = parts[i][r];
      for (int half = kWidth / 2; half > 0; half /= 2) {
        for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
      }
      for (int64_t rest = d; rest < depth; ++rest) sum[0] += load(b[i][rest]) * a[r * depth + rest];
      sums[i][r] = sum[0];
    }
  }
}

template <class T>
void skinny_pack(const T* const* rows, int64_t n, int64_t first, int64_t depth, void* packed) {
  float* to = static_cast<float*>(packed);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t d = 0; d < depth; ++d) to[r * depth + d] = load(rows[r][first + d]);
  }
}

template <class T>
void skinny_tile(const T* const* b, const T* const* next, const void* packed, int64_t n, int64_t depth, T* out,
                 int64_t stride) {
  static_assert(kSkinnyRows == 2 * kTogether);
  const float* a = static_cast<const float*>(packed);
  for (int half = 0; half < kSkinnyRows; half += kTogether) {
    const T* const* after = half ? next : b + kTogether;
    for (int64_t r = 0; r < n; r += kMostRows) {
      const int64_t rows = std::min<int64_t>(kMostRows, n - r);
      const auto loop = rows == 1 ? skinny_sums<1, T> : rows == 2 ? skinny_sums<2, T> : skinny_sums<3, T>;
      float sums[kTogether][kMostRows];
      loop(b + half, after, a + r * depth, depth, sums);
      for (int64_t k = 0; k < rows; ++k) {
        for (int i = 0; i < kTogether; ++i) out[(r + k) * stride + half + i] = store<T>(sums[i][k]);
      }
    }
  }
}

}  // namespace

template <class T>
GroupedTiles<T> grouped_mm_float_tiles() {
  constexpr int64_t kL1 = 4096;  // floats: half of 32 KB
  // With more rows a packed b begins to pay; tuned on a Zen 3.
  constexpr int kFew = 12;
  const SkinnyTile<T> skinny{kFew, 1, kFew, 1 << 16, skinny_pack<T>, skinny_tile<T>};
  return {kColumns, 1, kL1 / kColumns, kL1, false, pack<T>, pack_transposed<T>, pack_a<T>, tile<T>, skinny};
}

template GroupedTiles<float> grouped_mm_float_tiles();
template GroupedTiles<bfloat16> grouped_mm_float_tiles();
template GroupedTiles<float16> grouped_mm_float_tiles();

}  // namespace warpup
