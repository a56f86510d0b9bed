// The CPU kernel of grouped_mm: packing, cutting the work into tiles for the threads, and the portable innermost loops.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "moe/grouped_mm.h"
#include "moe/grouped_mm_tiles.h"

namespace warpup {
namespace {

// Tuned on a Zen 5 (32 KB of L1, 1 MB of L2) at 16 to 100 rows a group.
constexpr int64_t kPacked = int64_t(1) << 17;  // pairs of b that stay in half of an L2 while rows of a are taken
constexpr int64_t kDepth = 128;                // pairs of a sum at once: of b, 64 columns of them stay in an L1
constexpr int64_t kSkinnyPacked = 3 << 16;     // pairs of packed a that stay in an L2 while b is read

WARPUP_LOOP void portable_sums(const uint32_t* __restrict a, const uint32_t* __restrict b, int64_t pairs,
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

WARPUP_LOOP void pack_pairs(const bfloat16* __restrict low, const bfloat16* __restrict high, int64_t n,
                            uint32_t* __restrict to) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = uint32_t(low[j].bits) | uint32_t(high[j].bits) << 16;
}

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

void portable_pack_transposed(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth, uint32_t* to) {
  std::fill_n(to, (depth + 1) / 2 * kColumns, 0u);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t d = 0; d < depth; ++d) to[d / 2 * kColumns + j] |= uint32_t(rows[j][first + d].bits) << 16 * (d % 2);
  }
}

GroupedTiles widest() {
  GroupedTiles tiles;
  if (grouped_mm_avx512_cpu(&tiles)) return tiles;
  return {portable_pack, portable_pack_transposed, portable_tile, nullptr};
}

// One group: out [m, columns] = sum over `depth` of a and b.
struct Group {
  int64_t m, depth;
  std::vector<const bfloat16*> a, b;  // the rows as stored: nt m and columns of them, nn m and depth, tn depth of each
  bfloat16* out;
  int64_t pairs() const { return (depth + 1) / 2; }
};

Group group_of(const GroupedMMArgs& args, int64_t e) {
  const bool nt = args.layout == GroupedLayout::nt, tn = args.layout == GroupedLayout::tn;
  const int64_t begin = args.offsets[e], rows = args.offsets[e + 1] - begin;
  Group g{tn ? args.width : rows, tn ? rows : args.width, {}, {}, nullptr};
  const auto row = [begin](const bfloat16* base, int64_t stride, const int64_t* at, int64_t r) {
    return base + (at ? at[begin + r] : begin + r) * stride;
  };
  for (int64_t r = 0; r < rows; ++r) g.a.push_back(row(args.a, args.a_stride, args.a_rows, r));
  for (int64_t r = 0; r < (nt ? args.columns : g.depth); ++r) {
    g.b.push_back(tn ? row(args.b, args.b_stride, args.b_rows, r) : args.b + e * args.b_group + r * args.b_stride);
  }
  g.out = args.out + (tn ? e * args.width : begin) * args.columns;
  return g;
}

// a as [m / 6][pairs][6]; what is past the end is 0.
void pack_a(bool transposed, const Group& g, uint32_t* to) {
  const auto at = [&](int64_t m, int64_t d) -> uint32_t {
    return m < g.m && d < g.depth ? (transposed ? g.a[d][m] : g.a[m][d]).bits : 0;
  };
  for (int64_t m = 0; m < g.m; m += kRows) {
    const int64_t whole = m + kRows <= g.m ? g.depth / 2 : 0;
    for (int64_t p = 0; p < whole; ++p, to += kRows) {
      if (transposed) {
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
void pack_b(const GroupedTiles& tiles, bool transposed, const Group& g, int64_t first, int64_t n, int64_t from,
            int64_t depth, uint32_t* to) {
  if (transposed) return tiles.pack_transposed(g.b.data() + first, n, from, depth, to);
  const bfloat16* const* rows = g.b.data() + from;
  if (n == kColumns) return tiles.pack(rows, depth, first, to);
  for (int64_t r = 0; r < depth; r += 2, to += kColumns) {
    pack_pairs(rows[r] + first, r + 1 < depth ? rows[r + 1] + first : kZeros, n, to);
    std::fill(to + n, to + kColumns, 0u);
  }
}

struct Buffers {
  std::vector<uint32_t> a, b;
  std::vector<float> sums;
};

// Column tiles [first, last) of a group whose a is packed: out[:, 64 first to 64 last].
void tiles_of(const GroupedMMArgs& args, const Group& g, int64_t first, int64_t last, bool stream,
              const GroupedTiles& tiles, Buffers& buffers) {
  // The depth is cut into blocks of kDepth pairs, so that a packed tile of b stays in an L1. Where one block is all,
  // several column tiles are packed together, so that a row of packed a is used for all of them while it is in L1.
  const bool nt = args.layout == GroupedLayout::nt;
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
    const int64_t depth = depth_of(block), each = nt ? depth / kColumns : 1;
    const int64_t all = nt ? columns(t) * each : depth, begin = all * m / g.m;
    const int64_t count = all * std::min(m + kRows, g.m) / g.m - begin;
    if (nt) return {count, begin, each, g.b.data() + t * kColumns, block * 2 * kDepth};
    return {count, begin, 1, g.b.data() + block * 2 * kDepth, t * kColumns};
  };

  for (int64_t begin = first; begin < last; begin += together) {
    const int64_t end = std::min(last, begin + together);
    for (int64_t block = 0; block < blocks; ++block) {
      // Pack this block of b.
      const int64_t depth = depth_of(block), pairs = (depth + 1) / 2;
      for (int64_t t = begin; t < end; ++t) {
        pack_b(tiles, nt, g, t * kColumns, columns(t), block * 2 * kDepth, depth,
               buffers.b.data() + (t - begin) * size);
      }
      // All rows of a with it.
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
            tiles.tile(a, b, pairs, parts, out, args.columns, stream, ahead);
            continue;
          }
          // A tile that sticks out of the result is computed in full beside it, and what belongs to it is copied.
          bfloat16 edge[kRows * kColumns];
          tiles.tile(a, b, pairs, parts, edge, kColumns, false, ahead);
          if (parts.to) continue;
          for (int64_t i = 0; i < rows; ++i) {
            std::memcpy(out + i * args.columns, edge + i * kColumns, n * sizeof(*out));
          }
        }
      }
    }
  }
}

// In how many parts the packed a of a skinny group is; 0 where it is not skinny: the group has too many rows for b to
// be read in place.
int64_t skinny_parts(const GroupedMMArgs& args, const Group& g, const GroupedTiles& tiles) {
  if (!tiles.skinny || args.layout != GroupedLayout::nt) return 0;
  const int64_t parts = (g.m + kLanes - 1) / kLanes;
  return parts <= 2 && parts * g.pairs() * kColumns <= kSkinnyPacked ? parts : 0;
}

// Column tiles [first, last) of a skinny group: the rows of b are read in place, a is packed as columns.
void skinny_tiles_of(const GroupedMMArgs& args, const Group& g, int64_t parts, int64_t first, int64_t last,
                     const GroupedTiles& tiles, std::vector<uint32_t>& packed) {
  // Pack a, its rows shared out evenly among the parts in whole vectors of 16.
  const int64_t each = (g.m + 16 * parts - 1) / (16 * parts) * 16, size = g.pairs() * kColumns;
  packed.resize(parts * size);
  const auto rows = [&](int64_t part) { return std::min(each, g.m - part * each); };
  for (int64_t part = 0; part < parts; ++part) {
    tiles.pack_transposed(g.a.data() + part * each, rows(part), 0, g.depth, packed.data() + part * size);
  }

  // 8 rows of b at a time with all of it: 8 columns of the result.
  const int64_t end = std::min(args.columns, last * kColumns);
  for (int64_t n = first * kColumns; n < end; n += kSkinnyRows) {
    const bfloat16 *b[kSkinnyRows], *next[kSkinnyRows];
    for (int64_t i = 0; i < kSkinnyRows; ++i) {  // past the last column: the last again
      b[i] = g.b[std::min(n + i, args.columns - 1)], next[i] = g.b[std::min(n + kSkinnyRows + i, args.columns - 1)];
    }
    for (int64_t part = 0; part < parts; ++part) {
      const uint32_t* a = packed.data() + part * size;
      bfloat16* out = g.out + part * each * args.columns + n;
      if (n + kSkinnyRows <= args.columns) {
        tiles.skinny(b, next, a, rows(part), g.depth, out, args.columns);
        continue;
      }
      bfloat16 edge[kLanes * kSkinnyRows];
      tiles.skinny(b, next, a, rows(part), g.depth, edge, kSkinnyRows);
      for (int64_t r = 0; r < rows(part); ++r) {
        std::memcpy(out + r * args.columns, edge + r * kSkinnyRows, (args.columns - n) * sizeof(*out));
      }
    }
  }
}

}  // namespace

void grouped_mm_cpu(const GroupedMMArgs& args) {
  const bool tn = args.layout == GroupedLayout::tn;
  if (args.width == 0 && tn) return;

  // Rows that are in no group.
  if (!tn) {
    const int64_t end = args.offsets[args.groups];
    std::fill_n(args.out + end * args.columns, (args.rows - end) * args.columns, bfloat16{});
  }

  // The work is cut by what a column tile costs: its sums, and packing b or storing the result, which weigh as much as
  // 16 rows.
  const int64_t column_tiles = (args.columns + kColumns - 1) / kColumns;
  std::vector<int64_t> cost(args.groups), start(args.groups + 1);
  for (int64_t e = 0; e < args.groups; ++e) {
    const int64_t rows = args.offsets[e + 1] - args.offsets[e];
    cost[e] = rows > 0 || tn ? rows + 16 : 0;
    start[e + 1] = start[e] + cost[e] * column_tiles;
  }

  // A large D of tn is stored past the cache, where its lines are whole.
  const int64_t bytes = args.groups * args.width * args.columns * int64_t(sizeof(bfloat16));
  const bool stream =
      tn && bytes >= kStreamed && args.columns % 32 == 0 && reinterpret_cast<uintptr_t>(args.out) % 64 == 0;

  // Each thread takes the column tiles whose work begins in its share, of as many groups as that may be.
  const GroupedTiles tiles = widest();
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 16) / (args.width * kColumns + 1));
  parallel_for(0, start.back(), grain, [&](int64_t first, int64_t last) {
    Buffers buffers;
    for (int64_t e = 0; e < args.groups; ++e) {
      if (cost[e] == 0) continue;
      const auto cut = [&](int64_t at) {  // tiles that begin before `at`
        return std::clamp<int64_t>((at - start[e] + cost[e] - 1) / cost[e], 0, column_tiles);
      };
      const int64_t begin = first <= start[e] ? 0 : cut(first), end = last <= start[e] ? 0 : cut(last);
      if (begin >= end) continue;
      const Group g = group_of(args, e);
      if (const int64_t parts = skinny_parts(args, g, tiles)) {
        skinny_tiles_of(args, g, parts, begin, end, tiles, buffers.b);
        continue;
      }
      buffers.a.resize((g.m + kRows - 1) / kRows * kRows * g.pairs());
      pack_a(tn, g, buffers.a.data());
      tiles_of(args, g, begin, end, stream, tiles, buffers);
    }
    if (stream) stream_fence();
  });
}

}  // namespace warpup
