// The loops of grouped_mm's CPU kernel where the CPU has AVX512-BF16: one instruction adds the products of 16 pairs.
// See grouped_mm_tiles.h for what each of them does. In the library for CPUs with AVX-512 alone: WARPUP_CPU of a lower
// level leaves them out.
#include "moe/grouped_mm_tiles.h"

#if defined(__AVX512F__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 finds it in its own intrinsics
#endif

#define WARPUP_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace warpup {
namespace {

constexpr int kColumns = kMostColumns;
constexpr bfloat16 kZeros[kColumns] = {};  // the missing neighbor of an odd last row

uint32_t pair(bfloat16 low, bfloat16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }

WARPUP_AVX512_BF16 void pack(const bfloat16* const* rows, int64_t depth, int64_t first, int64_t n, void* packed) {
  uint32_t* to = static_cast<uint32_t*>(packed);
  if (n < kColumns) {
    for (int64_t r = 0; r < depth; r += 2, to += kColumns) {
      const bfloat16 *low = rows[r] + first, *high = r + 1 < depth ? rows[r + 1] + first : kZeros;
      for (int64_t j = 0; j < kColumns; ++j) to[j] = j < n ? pair(low[j], high[j]) : 0;
    }
    return;
  }
  alignas(64) uint16_t interleaved[64];  // 0, 32, 1, 33, ...: an element of the low row, one of the high row
  for (int i = 0; i < 64; ++i) interleaved[i] = static_cast<uint16_t>(i / 2 + 32 * (i % 2));
  const __m512i low_half = _mm512_load_si512(interleaved), high_half = _mm512_load_si512(interleaved + 32);
  for (int64_t r = 0; r < depth; r += 2, to += kColumns) {
    const bfloat16 *low = rows[r] + first, *high = r + 1 < depth ? rows[r + 1] + first : kZeros;
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512i a = _mm512_loadu_si512(low + 32 * j), b = _mm512_loadu_si512(high + 32 * j);
      _mm512_storeu_si512(to + 32 * j, _mm512_permutex2var_epi16(a, low_half, b));
      _mm512_storeu_si512(to + 32 * j + 16, _mm512_permutex2var_epi16(a, high_half, b));
    }
  }
}

// r[i][j] to r[j][i].
WARPUP_AVX512_BF16 inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // then r[i + c] has column 4 l + c of rows i to i + 3 in quarter l
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {  // even quarters, odd quarters
    t[c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), t[4 + c] = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0x88), r[8 + c] = _mm512_shuffle_i32x4(t[c], t[8 + c], 0xdd);
    r[4 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0x88);
    r[12 + c] = _mm512_shuffle_i32x4(t[4 + c], t[12 + c], 0xdd);
  }
}

WARPUP_AVX512_BF16 void pack_transposed(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth,
                                        void* packed) {
  uint32_t* to = static_cast<uint32_t*>(packed);
  for (int64_t j = 0; j < kColumns; j += 16) {
    for (int64_t d = 0; d < depth; d += 32) {
      const __mmask32 some = depth - d >= 32 ? ~__mmask32(0) : (__mmask32(1) << (depth - d)) - 1;
      __m512i block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        block[i] = j + i < n ? _mm512_maskz_loadu_epi16(some, rows[j + i] + first + d) : _mm512_setzero_si512();
      }
      transpose(block);
      const int64_t pairs = std::min<int64_t>(16, (depth - d + 1) / 2);
      for (int64_t p = 0; p < pairs; ++p) _mm512_storeu_si512(to + (d / 2 + p) * kColumns + j, block[p]);
    }
  }
}

void pack_a(bool transposed, const bfloat16* const* rows, int64_t m, int64_t depth, void* packed) {
  uint32_t* to = static_cast<uint32_t*>(packed);
  const auto at = [&](int64_t i, int64_t d) {
    return i < m && d < depth ? (transposed ? rows[d][i] : rows[i][d]) : bfloat16{};
  };
  for (int64_t i = 0; i < m; i += kRows) {
    const int64_t whole = i + kRows <= m ? depth / 2 : 0, pairs = (depth + 1) / 2;
    for (int64_t p = 0; p < whole; ++p, to += kRows) {
      if (transposed) {
        const bfloat16 *low = rows[2 * p] + i, *high = rows[2 * p + 1] + i;
        for (int r = 0; r < kRows; ++r) to[r] = pair(low[r], high[r]);
      } else {
        for (int r = 0; r < kRows; ++r) std::memcpy(to + r, rows[i + r] + 2 * p, sizeof(*to));
      }
    }
    for (int64_t p = whole; p < pairs; ++p, to += kRows) {
      for (int r = 0; r < kRows; ++r) to[r] = pair(at(i + r, 2 * p), at(i + r, 2 * p + 1));
    }
  }
}

WARPUP_AVX512_BF16 void tile(const void* packed_a, const void* packed_b, int64_t pairs, const Parts& parts,
                             bfloat16* out, int64_t stride, bool stream, const Ahead<bfloat16>& ahead) {
  const uint32_t *a = static_cast<const uint32_t*>(packed_a), *b = static_cast<const uint32_t*>(packed_b);
  __m512 sums[kRows][4];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[i][j] = parts.from ? _mm512_loadu_ps(parts.from + i * kColumns + 16 * j) : _mm512_setzero_ps();
    }
  }

  // The sum. What comes after this tile is fetched meanwhile, its pieces spread evenly over the steps.
  const int64_t step = std::max<int64_t>(1, pairs / std::max<int64_t>(ahead.count, 1));
  int64_t due = 0, fetched = 0;
  for (int64_t p = 0; p < pairs; ++p) {
    if (p == due && fetched < ahead.count) {
      const bfloat16* next = ahead.piece(fetched++);
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(next + kColumns / 2), _MM_HINT_T1);
      due += step;
    }
    __m512bh other[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) other[j] = (__m512bh)_mm512_loadu_si512(b + p * kColumns + 16 * j);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m512bh mine = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[p * kRows + i]));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], mine, other[j]);
    }
  }

  // To the next part of the sum as they are, or rounded to the result.
  if (parts.to) {
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) _mm512_storeu_ps(parts.to + i * kColumns + 16 * j, sums[i][j]);
    }
    return;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512i line = (__m512i)_mm512_cvtne2ps_pbh(sums[i][2 * j + 1], sums[i][2 * j]);
      bfloat16* to = out + i * stride + 32 * j;
      stream ? _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line) : _mm512_storeu_si512(to, line);
    }
  }
}

// Adds to the sums of 8 rows of b the products of their pairs with 16 kVectors pairs of a.
template <int kVectors>
WARPUP_AVX512_BF16 inline __attribute__((always_inline)) void add_pairs(const int (&pairs)[kSkinnyRows],
                                                                        const uint32_t* a,
                                                                        __m512 (&sums)[kSkinnyRows][kVectors]) {
  __m512bh other[kVectors];
#pragma GCC unroll 3
  for (int j = 0; j < kVectors; ++j) other[j] = (__m512bh)_mm512_loadu_si512(a + 16 * j);
#pragma GCC unroll 8
  for (int i = 0; i < kSkinnyRows; ++i) {
    const __m512bh mine = (__m512bh)_mm512_set1_epi32(pairs[i]);
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], mine, other[j]);
  }
}

// The sums of 8 rows of b with 16 kVectors columns of a, rounded.
template <int kVectors>
WARPUP_AVX512_BF16 void skinny_sums(const bfloat16* const* b, const bfloat16* const* next, const uint32_t* a,
                                    int64_t depth, bfloat16 (*out)[kColumns]) {
  constexpr int64_t kLine = 16;  // pairs in a cache line
  __m512 sums[kSkinnyRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kSkinnyRows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) sums[i][j] = _mm512_setzero_ps();
  }

  // The sum, a cache line of each row of b at a time; the same line of the rows that come next is fetched meanwhile.
  const int64_t whole = depth / 2;
  int pairs[kSkinnyRows];
  for (int64_t line = 0; line < whole; line += kLine) {
#pragma GCC unroll 8
    for (int i = 0; i < kSkinnyRows; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(next[i] + 2 * line), _MM_HINT_T1);
    }
    const int64_t end = std::min(whole, line + kLine);
    for (int64_t p = line; p < end; ++p) {
#pragma GCC unroll 8
      for (int i = 0; i < kSkinnyRows; ++i) std::memcpy(&pairs[i], b[i] + 2 * p, sizeof(int));
      add_pairs<kVectors>(pairs, a + p * kColumns, sums);
    }
  }
  if (depth % 2) {  // the last element has no neighbor
#pragma GCC unroll 8
    for (int i = 0; i < kSkinnyRows; ++i) pairs[i] = b[i][depth - 1].bits;
    add_pairs<kVectors>(pairs, a + whole * kColumns, sums);
  }

  // Rounded.
#pragma GCC unroll 8
  for (int i = 0; i < kSkinnyRows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[i] + 16 * j), (__m256i)_mm512_cvtneps_pbh(sums[i][j]));
    }
  }
}

WARPUP_AVX512_BF16 void skinny_tile(const bfloat16* const* b, const bfloat16* const* next, const void* packed,
                                    int64_t n, int64_t depth, bfloat16* out, int64_t stride) {
  const uint32_t* a = static_cast<const uint32_t*>(packed);
  alignas(64) bfloat16 tile[kSkinnyRows][kColumns];
  const auto sums = n > 32 ? skinny_sums<3> : n > 16 ? skinny_sums<2> : skinny_sums<1>;
  sums(b, next, a, depth, tile);
  for (int64_t t = 0; t < n; t += 8) {  // transposed in blocks of 8 x 8
    __m128i r[8], s[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(tile[i] + t));
    for (int i = 0; i < 8; i += 2) {
      s[i] = _mm_unpacklo_epi16(r[i], r[i + 1]), s[i + 1] = _mm_unpackhi_epi16(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm_unpacklo_epi32(s[i], s[i + 2]), r[i + 1] = _mm_unpackhi_epi32(s[i], s[i + 2]);
      r[i + 2] = _mm_unpacklo_epi32(s[i + 1], s[i + 3]), r[i + 3] = _mm_unpackhi_epi32(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      s[2 * i] = _mm_unpacklo_epi64(r[i], r[i + 4]), s[2 * i + 1] = _mm_unpackhi_epi64(r[i], r[i + 4]);
    }
    const int64_t rows = std::min<int64_t>(8, n - t);
    for (int64_t i = 0; i < rows; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + (t + i) * stride), s[i]);
  }
}

}  // namespace

bool grouped_mm_avx512_cpu(GroupedTiles<bfloat16>* tiles) {
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vl")) return false;
  const char* path = std::getenv("WARPUP_PRODUCTS");
  if (path && !std::strcmp(path, "float32")) return false;
  // Tuned on a Zen 5 (32 KB of L1, 1 MB of L2) at 16 to 100 rows a group. A skinny tile has a as columns, as b is packed.
  const SkinnyTile<bfloat16> skinny{kLanes, 2, kColumns, 3 << 16, pack_transposed, skinny_tile};
  *tiles = {kColumns, 2, 128, int64_t(1) << 17, true, pack, pack_transposed, pack_a, tile, skinny};
  return true;
}

}  // namespace warpup

#else

bool warpup::grouped_mm_avx512_cpu(GroupedTiles<bfloat16>*) { return false; }

#endif
