#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "moe/grouped_product.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WARPUP_DOT_PRODUCTS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#endif

namespace warpup {
namespace {

constexpr int kRows = 6, kColumns = 64;        // of a tile: 24 of 32 registers hold sums
constexpr int64_t kPacked = int64_t(1) << 17;  // pairs of b that stay in half of an L2 while a goes by
constexpr int64_t kDepth = 128;                // pairs of a sum at once: of b, 64 columns of them stay in an L1
constexpr int kFew = 8, kLanes = 48;           // of a tile that b is not packed for: rows of b, and of a
constexpr int64_t kFewPacked = 3 << 16;        // pairs of packed a that stay in an L2 while b goes by

// Pieces of 64 elements of b, two lines, that are fetched while a tile is computed, for the tiles after it.
struct Ahead {
  int64_t count = 0, begin = 0, each = 1;  // pieces of a row
  const bfloat16* const* rows = nullptr;
  int64_t column = 0;
  const bfloat16* piece(int64_t i) const { return rows[(begin + i) / each] + column + (begin + i) % each * kColumns; }
};

// Sums that go on from a former part of their depth, or to the next: [6][64]; null: from 0, or to out.
struct Parts {
  const float* from = nullptr;
  float* to = nullptr;
};

// What is written for the CPU's widest instructions.
struct Kernels {
  // Columns [first, first + 64) of `depth` rows as [pairs][64], each entry two neighbours along the sum.
  void (*pack)(const bfloat16* const* rows, int64_t depth, int64_t first, uint32_t* to);
  // The same of elements [first, first + depth) of n <= 64 rows, which are the columns; past the end is 0.
  void (*pack_turned)(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth, uint32_t* to);
  // A tile out[6][64] of sums over pairs, a [pairs][6] and b [pairs][64].
  void (*tile)(const uint32_t* a, const uint32_t* b, int64_t pairs, const Parts& parts, bfloat16* out, int64_t stride,
               bool stream, const Ahead& ahead);
  // out[n][8], n <= 48: sums over `depth` of 8 rows of b as they lie and a packed as columns; `next` are fetched. May
  // be null.
  void (*few)(const bfloat16* const* b, const bfloat16* const* next, const uint32_t* a, int64_t n, int64_t depth,
              bfloat16* out, int64_t stride);
};

constexpr bfloat16 kZeros[kColumns] = {};

}  // namespace

WARPUP_CLONES void portable_sums(const uint32_t* __restrict a, const uint32_t* __restrict b, int64_t pairs,
                                 float* __restrict sums) {
  for (int64_t p = 0; p < pairs; ++p) {
    for (int i = 0; i < kRows; ++i) {
      const uint32_t pair = a[p * kRows + i];
      const float low = std::bit_cast<float>(pair << 16), high = std::bit_cast<float>(pair & 0xffff0000u);
#pragma omp simd
      for (int j = 0; j < kColumns; ++j) {
        const uint32_t other = b[p * kColumns + j];
        sums[i * kColumns + j] +=
            low * std::bit_cast<float>(other << 16) + high * std::bit_cast<float>(other & 0xffff0000u);
      }
    }
  }
}

WARPUP_CLONES void pack_pairs(const bfloat16* __restrict low, const bfloat16* __restrict high, int64_t n,
                              uint32_t* __restrict to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = uint32_t(low[j].bits) | uint32_t(high[j].bits) << 16;
}

namespace {

void portable_tile(const uint32_t* a, const uint32_t* b, int64_t pairs, const Parts& parts, bfloat16* out,
                   int64_t stride, bool, const Ahead&) {
  float sums[kRows * kColumns] = {};
  if (parts.from) std::copy_n(parts.from, kRows * kColumns, sums);
  portable_sums(a, b, pairs, sums);
  if (parts.to) {
    std::copy_n(sums, kRows * kColumns, parts.to);
    return;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) out[i * stride + j] = store<bfloat16>(sums[i * kColumns + j]);
  }
}

void portable_pack(const bfloat16* const* rows, int64_t depth, int64_t first, uint32_t* to) {
  for (int64_t r = 0; r < depth; r += 2, to += kColumns) {
    pack_pairs(rows[r] + first, r + 1 < depth ? rows[r + 1] + first : kZeros, kColumns, to);
  }
}

void portable_pack_turned(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth, uint32_t* to) {
  std::fill_n(to, (depth + 1) / 2 * kColumns, 0u);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t d = 0; d < depth; ++d) to[d / 2 * kColumns + j] |= uint32_t(rows[j][first + d].bits) << 16 * (d % 2);
  }
}

#ifdef WARPUP_DOT_PRODUCTS
WARPUP_DOT_PRODUCTS void dot_product_pack(const bfloat16* const* rows, int64_t depth, int64_t first, uint32_t* to) {
  alignas(64) uint16_t interleaved[64];
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
WARPUP_DOT_PRODUCTS inline void transpose(__m512i (&r)[16]) {
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

WARPUP_DOT_PRODUCTS void dot_product_pack_turned(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth,
                                                 uint32_t* to) {
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

WARPUP_DOT_PRODUCTS void dot_product_tile(const uint32_t* a, const uint32_t* b, int64_t pairs, const Parts& parts,
                                          bfloat16* out, int64_t stride, bool stream, const Ahead& ahead) {
  __m512 sums[kRows][4];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[i][j] = parts.from ? _mm512_loadu_ps(parts.from + i * kColumns + 16 * j) : _mm512_setzero_ps();
    }
  }
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

// The sums of 8 rows of b with 16 kVectors columns of a, rounded.
template <int kVectors>
WARPUP_DOT_PRODUCTS void few_sums(const bfloat16* const* b, const bfloat16* const* next, const uint32_t* a,
                                  int64_t depth, bfloat16 (*out)[kColumns]) {
  constexpr int64_t kLine = 16;  // pairs
  __m512 sums[kFew][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kFew; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) sums[i][j] = _mm512_setzero_ps();
  }
  const auto add = [&](int64_t p, auto pair_of)
                       __attribute__((always_inline, target("avx512f,avx512bw,avx512vl,avx512bf16"))) {
                         __m512bh other[kVectors];
#pragma GCC unroll 3
                         for (int j = 0; j < kVectors; ++j)
                           other[j] = (__m512bh)_mm512_loadu_si512(a + p * kColumns + 16 * j);
#pragma GCC unroll 8
                         for (int i = 0; i < kFew; ++i) {
                           const __m512bh mine = (__m512bh)_mm512_set1_epi32(pair_of(i));
#pragma GCC unroll 3
                           for (int j = 0; j < kVectors; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], mine, other[j]);
                         }
                       };
  const int64_t whole = depth / 2;
  for (int64_t line = 0; line < whole; line += kLine) {
#pragma GCC unroll 8
    for (int i = 0; i < kFew; ++i) _mm_prefetch(reinterpret_cast<const char*>(next[i] + 2 * line), _MM_HINT_T1);
    const int64_t end = std::min(whole, line + kLine);
    for (int64_t p = line; p < end; ++p) {
      add(p, [&](int i) __attribute__((always_inline)) {
        int pair;
        std::memcpy(&pair, b[i] + 2 * p, sizeof(pair));
        return pair;
      });
    }
  }
  if (depth % 2) add(whole, [&](int i) __attribute__((always_inline)) { return int(b[i][depth - 1].bits); });
#pragma GCC unroll 8
  for (int i = 0; i < kFew; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kVectors; ++j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[i] + 16 * j), (__m256i)_mm512_cvtneps_pbh(sums[i][j]));
    }
  }
}

WARPUP_DOT_PRODUCTS void dot_product_few(const bfloat16* const* b, const bfloat16* const* next, const uint32_t* a,
                                         int64_t n, int64_t depth, bfloat16* out, int64_t stride) {
  alignas(64) bfloat16 tile[kFew][kColumns];
  const auto sums = n > 32 ? few_sums<3> : n > 16 ? few_sums<2> : few_sums<1>;
  sums(b, next, a, depth, tile);
  for (int64_t t = 0; t < n; t += 8) {  // 8 x 8 elements turned
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
#endif

Kernels widest() {
#ifdef WARPUP_DOT_PRODUCTS
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl")) {
    return {dot_product_pack, dot_product_pack_turned, dot_product_tile, dot_product_few};
  }
#endif
  return {portable_pack, portable_pack_turned, portable_tile, nullptr};
}

// One group: out [m, columns] = sum over `depth` of a and b.
struct Group {
  int64_t m, depth;
  std::vector<const bfloat16*> a, b;  // rows: a's m and b's depth (turned: columns); weights: depth of each
  bfloat16* out;
  int64_t pairs() const { return (depth + 1) / 2; }
};

Group group_of(const GroupedProductArgs& args, int64_t e) {
  const int64_t begin = args.offsets[e], rows = args.offsets[e + 1] - begin;
  Group g{args.weights ? args.width : rows, args.weights ? rows : args.width, {}, {}, nullptr};
  const auto row = [begin](const bfloat16* base, int64_t stride, const int64_t* at, int64_t r) {
    return base + (at ? at[begin + r] : begin + r) * stride;
  };
  for (int64_t r = 0; r < rows; ++r) g.a.push_back(row(args.a, args.a_stride, args.a_rows, r));
  for (int64_t r = 0; r < (args.turned ? args.columns : g.depth); ++r) {
    g.b.push_back(args.weights ? row(args.b, args.b_stride, args.b_rows, r)
                               : args.b + e * args.b_group + r * args.b_stride);
  }
  g.out = args.out + (args.weights ? e * args.width : begin) * args.columns;
  return g;
}

// a as [m / 6][pairs][6]; what is past the end is 0.
void pack_a(const GroupedProductArgs& args, const Group& g, uint32_t* to) {
  const auto at = [&](int64_t m, int64_t d) -> uint32_t {
    return m < g.m && d < g.depth ? (args.weights ? g.a[d][m] : g.a[m][d]).bits : 0;
  };
  for (int64_t m = 0; m < g.m; m += kRows) {
    const int64_t whole = m + kRows <= g.m ? g.depth / 2 : 0;
    for (int64_t p = 0; p < whole; ++p, to += kRows) {
      if (args.weights) {
        const bfloat16 *low = g.a[2 * p] + m, *high = g.a[2 * p + 1] + m;
        for (int i = 0; i < kRows; ++i) to[i] = uint32_t(low[i].bits) | uint32_t(high[i].bits) << 16;
      } else {
        for (int i = 0; i < kRows; ++i) std::memcpy(to + i, g.a[m + i] + 2 * p, sizeof(*to));
      }
    }
    for (int64_t p = whole; p < g.pairs(); ++p, to += kRows) {
      for (int i = 0; i < kRows; ++i) to[i] = at(m + i, 2 * p) | at(m + i, 2 * p + 1) << 16;
    }
  }
}

// Columns [first, first + n) of b, `depth` elements of the sum from `from` on, as [pairs][64].
void pack_b(const Kernels& kernels, bool turned, const Group& g, int64_t first, int64_t n, int64_t from, int64_t depth,
            uint32_t* to) {
  if (turned) return kernels.pack_turned(g.b.data() + first, n, from, depth, to);
  const bfloat16* const* rows = g.b.data() + from;
  if (n == kColumns) return kernels.pack(rows, depth, first, to);
  for (int64_t r = 0; r < depth; r += 2, to += kColumns) {
    pack_pairs(rows[r] + first, r + 1 < depth ? rows[r + 1] + first : kZeros, n, to);
    std::fill(to + n, to + kColumns, 0u);
  }
}

struct Buffers {
  std::vector<uint32_t> a, b;
  std::vector<float> sums;
};

// Column tiles [first, last) of a group whose a is packed.
void tiles_of(const GroupedProductArgs& args, const Group& g, int64_t first, int64_t last, bool stream,
              const Kernels& kernels, Buffers& buffers) {
  const int64_t blocks = std::max<int64_t>(1, (g.pairs() + kDepth - 1) / kDepth);
  const int64_t size = std::min(g.pairs(), kDepth) * kColumns;
  const int64_t together = blocks > 1 ? 1 : std::max<int64_t>(1, kPacked / std::max<int64_t>(size, 1));
  if (blocks > 1) buffers.sums.resize((g.m + kRows) * kColumns);
  buffers.b.resize(together * size);
  const auto columns = [&](int64_t t) { return std::min<int64_t>(kColumns, args.columns - t * kColumns); };
  const auto depth_of = [&](int64_t block) { return std::min(2 * kDepth, g.depth - block * 2 * kDepth); };
  // What of a block to fetch while rows [m, m + 6) are computed with the one before.
  const auto ahead_of = [&](int64_t t, int64_t block, int64_t m) -> Ahead {
    if (block == blocks) t += 1, block = 0;
    if (blocks == 1 || t == last) return {};  // b is small, or at its end
    const int64_t depth = depth_of(block), each = args.turned ? depth / kColumns : 1;
    const int64_t all = args.turned ? columns(t) * each : depth, begin = all * m / g.m;
    const int64_t count = all * std::min(m + kRows, g.m) / g.m - begin;
    if (args.turned) return {count, begin, each, g.b.data() + t * kColumns, block * 2 * kDepth};
    return {count, begin, 1, g.b.data() + block * 2 * kDepth, t * kColumns};
  };
  for (int64_t begin = first; begin < last; begin += together) {
    const int64_t end = std::min(last, begin + together);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t depth = depth_of(block), pairs = (depth + 1) / 2;
      for (int64_t t = begin; t < end; ++t) {
        pack_b(kernels, args.turned, g, t * kColumns, columns(t), block * 2 * kDepth, depth,
               buffers.b.data() + (t - begin) * size);
      }
      for (int64_t m = 0; m < g.m; m += kRows) {
        const uint32_t* a = buffers.a.data() + m * g.pairs() + block * kDepth * kRows;
        float* sums = blocks > 1 ? buffers.sums.data() + m * kColumns : nullptr;
        const Parts parts{block > 0 ? sums : nullptr, block + 1 < blocks ? sums : nullptr};
        for (int64_t t = begin; t < end; ++t) {
          bfloat16* out = g.out + m * args.columns + t * kColumns;
          const uint32_t* b = buffers.b.data() + (t - begin) * size;
          const int64_t rows = std::min<int64_t>(kRows, g.m - m), n = columns(t);
          const Ahead ahead = ahead_of(t, block + 1, m);
          if (rows == kRows && n == kColumns) {
            kernels.tile(a, b, pairs, parts, out, args.columns, stream, ahead);
            continue;
          }
          bfloat16 edge[kRows * kColumns];
          kernels.tile(a, b, pairs, parts, edge, kColumns, false, ahead);
          if (parts.to) continue;
          for (int64_t i = 0; i < rows; ++i) {
            std::memcpy(out + i * args.columns, edge + i * kColumns, n * sizeof(*out));
          }
        }
      }
    }
  }
}

// Tiles of the packed a of a group with few rows; 0 where they are too many for b to go by unpacked.
int64_t few_tiles(const GroupedProductArgs& args, const Group& g, const Kernels& kernels) {
  const int64_t tiles = (g.m + kLanes - 1) / kLanes;
  const bool few = kernels.few && args.turned && !args.weights && tiles * g.pairs() * kColumns <= kFewPacked;
  return few && tiles <= 2 ? tiles : 0;
}

// Column tiles [first, last) of such a group: b's rows as they lie, a packed as columns.
void few_of(const GroupedProductArgs& args, const Group& g, int64_t tiles, int64_t first, int64_t last,
            const Kernels& kernels, std::vector<uint32_t>& packed) {
  const int64_t each = (g.m + 16 * tiles - 1) / (16 * tiles) * 16, size = g.pairs() * kColumns;  // whole vectors
  packed.resize(tiles * size);
  const auto rows = [&](int64_t t) { return std::min(each, g.m - t * each); };
  for (int64_t t = 0; t < tiles; ++t) {
    kernels.pack_turned(g.a.data() + t * each, rows(t), 0, g.depth, packed.data() + t * size);
  }
  const int64_t end = std::min(args.columns, last * kColumns);
  for (int64_t n = first * kColumns; n < end; n += kFew) {
    const bfloat16 *b[kFew], *next[kFew];
    for (int64_t i = 0; i < kFew; ++i) {  // past the last column: the last again
      b[i] = g.b[std::min(n + i, args.columns - 1)], next[i] = g.b[std::min(n + kFew + i, args.columns - 1)];
    }
    for (int64_t t = 0; t < tiles; ++t) {
      bfloat16* out = g.out + t * each * args.columns + n;
      if (n + kFew <= args.columns) {
        kernels.few(b, next, packed.data() + t * size, rows(t), g.depth, out, args.columns);
        continue;
      }
      bfloat16 edge[kLanes * kFew];
      kernels.few(b, next, packed.data() + t * size, rows(t), g.depth, edge, kFew);
      for (int64_t r = 0; r < rows(t); ++r) {
        std::memcpy(out + r * args.columns, edge + r * kFew, (args.columns - n) * sizeof(*out));
      }
    }
  }
}

}  // namespace

void grouped_product_cpu(const GroupedProductArgs& args) {
  const int64_t tiles = (args.columns + kColumns - 1) / kColumns;
  if (args.width == 0 && args.weights) return;
  if (!args.weights) {
    const int64_t end = args.offsets[args.groups];
    std::fill_n(args.out + end * args.columns, (args.rows - end) * args.columns, bfloat16{});
  }
  // Work is cut by what a tile costs: its sums, and packing b or storing the result, which weigh as much as 16 rows.
  std::vector<int64_t> cost(args.groups), start(args.groups + 1);
  for (int64_t e = 0; e < args.groups; ++e) {
    const int64_t rows = args.offsets[e + 1] - args.offsets[e];
    cost[e] = rows > 0 || args.weights ? rows + 16 : 0;
    start[e + 1] = start[e] + cost[e] * tiles;
  }
  const int64_t bytes = args.groups * args.width * args.columns * int64_t(sizeof(bfloat16));
  const bool stream =
      args.weights && bytes >= kStreamed && args.columns % 32 == 0 && reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  const Kernels kernels = widest();
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 16) / (args.width * kColumns + 1));
  parallel_for(0, start.back(), grain, [&](int64_t first, int64_t last) {
    Buffers buffers;
    for (int64_t e = 0; e < args.groups; ++e) {
      if (cost[e] == 0) continue;
      const auto cut = [&](int64_t at) {  // tiles that begin before `at`
        return std::clamp<int64_t>((at - start[e] + cost[e] - 1) / cost[e], 0, tiles);
      };
      const int64_t begin = first <= start[e] ? 0 : cut(first), end = last <= start[e] ? 0 : cut(last);
      if (begin >= end) continue;
      const Group g = group_of(args, e);
      if (const int64_t few = few_tiles(args, g, kernels)) {
        few_of(args, g, few, begin, end, kernels, buffers.b);
        continue;
      }
      buffers.a.resize((g.m + kRows - 1) / kRows * kRows * g.pairs());
      pack_a(args, g, buffers.a.data());
      tiles_of(args, g, begin, end, stream, kernels, buffers);
    }
    if (stream) stream_fence();
  });
}

}  // namespace warpup
