// The CPU kernel of grouped_mm: cutting the work into tiles for the threads. The innermost loops and the packing are in
// grouped_mm_float_cpu.cpp and grouped_mm_avx512_cpu.cpp.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "core/parallel.h"
#include "core/stream_store.h"
#include "moe/grouped_mm_tiles.h"

namespace warpup {
namespace {

template <class T>
GroupedTiles<T> tiles_of_this_cpu() {
  GroupedTiles<T> tiles = grouped_mm_float_tiles<T>();
  if constexpr (std::is_same_v<T, bfloat16>) grouped_mm_avx512_cpu(&tiles);
  return tiles;
}

// One group: out [m, columns] = sum over `depth` of a and b.
template <class T>
struct Group {
  int64_t m, depth, words;
  std::vector<const T*> a, b;  // the rows as stored: nt m and columns of them, nn m and depth, tn depth of each
  T* out;
};

template <class T>
Group<T> group_of(const GroupedMMArgs<T>& args, int64_t e, int word) {
  const bool nt = args.layout == GroupedLayout::nt, tn = args.layout == GroupedLayout::tn;
  const int64_t begin = args.offsets[e], rows = args.offsets[e + 1] - begin, depth = tn ? rows : args.width;
  Group<T> g{tn ? args.width : rows, depth, (depth + word - 1) / word, {}, {}, nullptr};
  const auto row = [begin](const T* base, int64_t stride, const int64_t* at, int64_t r) {
    return base + (at ? at[begin + r] : begin + r) * stride;
  };
  for (int64_t r = 0; r < rows; ++r) g.a.push_back(row(args.a, args.a_stride, args.a_rows, r));
  for (int64_t r = 0; r < (nt ? args.columns : depth); ++r) {
    g.b.push_back(tn ? row(args.b, args.b_stride, args.b_rows, r) : args.b + e * args.b_group + r * args.b_stride);
  }
  g.out = args.out + (tn ? e * args.width : begin) * args.columns;
  return g;
}

// Words of a packed operand, on a cache line; they may hold float32 or pairs.
class Words {
 public:
  std::byte* at_least(int64_t words) {
    words = std::max<int64_t>(words, 1);  // some address, that loops over nothing may count from
    if (words > size_) {
      memory_.reset();
      memory_.reset(static_cast<std::byte*>(::operator new(words * kWord, kLine)));
      size_ = words;
    }
    return memory_.get();
  }
  std::byte* at(int64_t word) const { return memory_.get() + word * kWord; }

 private:
  static constexpr int64_t kWord = 4;
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  int64_t size_ = 0;
};

struct Buffers {
  Words a, b;
  std::vector<float> sums;
};

// Column tiles [first, last) of a group whose a is packed: those columns of out.
template <class T>
void tiles_of(const GroupedMMArgs<T>& args, const Group<T>& g, int64_t first, int64_t last, bool stream,
              const GroupedTiles<T>& tiles, Buffers& buffers) {
  // The depth is cut into blocks, so that a packed tile of b stays in an L1. Where one block is all, several column
  // tiles are packed together, so that a row of packed a is used for all of them while it is in L1.
  constexpr int64_t kSize = sizeof(T);
  const bool nt = args.layout == GroupedLayout::nt, whole = g.words <= tiles.depth;
  const int64_t blocks = std::max<int64_t>(1, (g.words + tiles.depth - 1) / tiles.depth);
  const int64_t size = std::min(g.words, tiles.depth) * tiles.columns;
  const int64_t together = whole ? std::max<int64_t>(1, tiles.together / std::max<int64_t>(size, 1)) : 1;
  if (!whole) buffers.sums.resize((g.m + kRows) * tiles.columns);
  buffers.b.at_least(together * size);
  const auto columns = [&](int64_t t) { return std::min<int64_t>(tiles.columns, args.columns - t * tiles.columns); };
  const int64_t block_depth = tiles.word * tiles.depth;  // elements
  const auto depth_of = [&](int64_t block) { return std::min(block_depth, g.depth - block * block_depth); };

  // What of a block to fetch while rows [m, m + 6) are computed with the one before.
  const auto ahead_of = [&](int64_t t, int64_t block, int64_t m) -> Ahead<T> {
    if (block == blocks) t += 1, block = 0;
    if (whole || t == last) return {};  // b is small, or at its end
    const int64_t depth = depth_of(block), each = nt ? depth / kPiece : 1;
    const int64_t all = nt ? columns(t) * each : depth, begin = all * m / g.m;
    const int64_t count = all * std::min(m + kRows, g.m) / g.m - begin;
    if (nt) return {count, begin, each, g.b.data() + t * tiles.columns, block * block_depth, kPiece * kSize};
    return {count, begin, 1, g.b.data() + block * block_depth, t * tiles.columns, tiles.columns * kSize};
  };

  for (int64_t begin = first; begin < last; begin += together) {
    const int64_t end = std::min(last, begin + together);
    for (int64_t block = 0; block < blocks; ++block) {
      // Pack this block of b.
      const int64_t from = block * block_depth, depth = depth_of(block), words = (depth + tiles.word - 1) / tiles.word;
      for (int64_t t = begin; t < end; ++t) {
        std::byte* to = buffers.b.at((t - begin) * size);
        const int64_t column = t * tiles.columns;
        nt ? tiles.pack_transposed(g.b.data() + column, columns(t), from, depth, to)
           : tiles.pack(g.b.data() + from, depth, column, columns(t), to);
      }
      // All rows of a with it.
      for (int64_t m = 0; m < g.m; m += kRows) {
        const std::byte* a = buffers.a.at(m * g.words + block * tiles.depth * kRows);
        float* sums = whole ? nullptr : buffers.sums.data() + m * tiles.columns;
        const Parts parts{block > 0 ? sums : nullptr, block + 1 < blocks ? sums : nullptr};
        for (int64_t t = begin; t < end; ++t) {
          T* out = g.out + m * args.columns + t * tiles.columns;
          const std::byte* b = buffers.b.at((t - begin) * size);
          const int64_t rows = std::min<int64_t>(kRows, g.m - m), n = columns(t);
          const Ahead<T> ahead = ahead_of(t, block + 1, m);
          if (rows == kRows && n == tiles.columns) {
            tiles.tile(a, b, words, parts, out, args.columns, stream, ahead);
            continue;
          }
          // A tile that sticks out of the result is computed in full beside it, and what belongs to it is copied.
          T edge[kRows * kMostColumns];
          tiles.tile(a, b, words, parts, edge, tiles.columns, false, ahead);
          if (parts.to) continue;
          for (int64_t i = 0; i < rows; ++i) {
            std::memcpy(out + i * args.columns, edge + i * tiles.columns, n * sizeof(*out));
          }
        }
      }
    }
  }
}

// In how many parts the packed a of a skinny group is; 0 where it is not skinny.
template <class T>
int64_t skinny_parts(const GroupedMMArgs<T>& args, const Group<T>& g, const SkinnyTile<T>& skinny) {
  if (args.layout != GroupedLayout::nt) return 0;
  const int64_t parts = (g.m + skinny.lanes - 1) / skinny.lanes;
  return parts <= skinny.parts && parts * g.words * skinny.each <= skinny.most ? parts : 0;
}

// Columns [first, end) of a skinny group.
template <class T>
void skinny_columns_of(const GroupedMMArgs<T>& args, const Group<T>& g, int64_t parts, int64_t first, int64_t end,
                       const SkinnyTile<T>& skinny, Words& packed) {
  // Pack a, its rows shared out evenly among the parts in whole vectors of 16.
  const int64_t each = (g.m + 16 * parts - 1) / (16 * parts) * 16, size = g.words * skinny.each;
  packed.at_least(parts * size);
  const auto rows = [&](int64_t part) { return std::min(each, g.m - part * each); };
  for (int64_t part = 0; part < parts; ++part) {
    skinny.pack(g.a.data() + part * each, rows(part), 0, g.depth, packed.at(part * size));
  }

  // 8 rows of b at a time with all of it: 8 columns of the result.
  for (int64_t n = first; n < end; n += kSkinnyRows) {
    const T *b[kSkinnyRows], *next[kSkinnyRows];
    for (int64_t i = 0; i < kSkinnyRows; ++i) {  // past the last column: the last again
      b[i] = g.b[std::min(n + i, args.columns - 1)], next[i] = g.b[std::min(n + kSkinnyRows + i, args.columns - 1)];
    }
    for (int64_t part = 0; part < parts; ++part) {
      const std::byte* a = packed.at(part * size);
      T* out = g.out + part * each * args.columns + n;
      if (n + kSkinnyRows <= args.columns) {
        skinny.tile(b, next, a, rows(part), g.depth, out, args.columns);
        continue;
      }
      T edge[kLanes * kSkinnyRows];
      skinny.tile(b, next, a, rows(part), g.depth, edge, kSkinnyRows);
      for (int64_t r = 0; r < rows(part); ++r) {
        std::memcpy(out + r * args.columns, edge + r * kSkinnyRows, (args.columns - n) * sizeof(*out));
      }
    }
  }
}

}  // namespace

template <class T>
void grouped_mm_cpu(const GroupedMMArgs<T>& args) {
  const bool tn = args.layout == GroupedLayout::tn;
  if (args.width == 0 && tn) return;

  // Rows that are in no group.
  if (!tn) {
    const int64_t end = args.offsets[args.groups];
    std::fill_n(args.out + end * args.columns, (args.rows - end) * args.columns, T{});
  }

  // The work is cut by what a column tile costs: its sums, and packing b or storing the result, which weigh as much as
  // 16 rows.
  const GroupedTiles<T> tiles = tiles_of_this_cpu<T>();
  const int64_t column_tiles = (args.columns + tiles.columns - 1) / tiles.columns;
  std::vector<int64_t> cost(args.groups), start(args.groups + 1);
  for (int64_t e = 0; e < args.groups; ++e) {
    const int64_t rows = args.offsets[e + 1] - args.offsets[e];
    cost[e] = rows > 0 || tn ? rows + 16 : 0;
    start[e + 1] = start[e] + cost[e] * column_tiles;
  }

  // A large D of tn is stored past the cache, where its lines are whole.
  constexpr int64_t kLine = 64;
  const int64_t bytes = args.groups * args.width * args.columns * int64_t(sizeof(T));
  const bool stream = tn && tiles.streams && bytes >= kStreamed && args.columns * int64_t(sizeof(T)) % kLine == 0 &&
                      reinterpret_cast<uintptr_t>(args.out) % kLine == 0;

  // Each thread takes the column tiles whose work begins in its share, of as many groups as that may be.
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 16) / (args.width * tiles.columns + 1));
  parallel_for(0, start.back(), grain, [&](int64_t first, int64_t last) {
    Buffers buffers;
    for (int64_t e = 0; e < args.groups; ++e) {
      if (cost[e] == 0) continue;
      const auto cut = [&](int64_t at) {  // tiles that begin before `at`
        return std::clamp<int64_t>((at - start[e] + cost[e] - 1) / cost[e], 0, column_tiles);
      };
      const int64_t begin = first <= start[e] ? 0 : cut(first), end = last <= start[e] ? 0 : cut(last);
      if (begin >= end) continue;
      const Group<T> g = group_of(args, e, tiles.word);
      if (const int64_t parts = skinny_parts(args, g, tiles.skinny)) {
        const int64_t columns = std::min(args.columns, end * tiles.columns);
        skinny_columns_of(args, g, parts, begin * tiles.columns, columns, tiles.skinny, buffers.b);
        continue;
      }
      tiles.pack_a(tn, g.a.data(), g.m, g.depth,
                   buffers.a.at_least((g.m + kRows - 1) / kRows * kRows * g.words + kPackedBeyond));
      tiles_of(args, g, begin, end, stream, tiles, buffers);
    }
    if (stream) stream_fence();
  });
}

template void grouped_mm_cpu(const GroupedMMArgs<float>&);
template void grouped_mm_cpu(const GroupedMMArgs<bfloat16>&);
template void grouped_mm_cpu(const GroupedMMArgs<float16>&);

}  // namespace warpup
