// The innermost loops of grouped_mm's CPU kernel: in float32 for every CPU in grouped_mm_float_cpu.cpp, for AVX512-BF16
// in grouped_mm_avx512_cpu.cpp. Operands come packed in words of 32 bits: a float32, or a pair of bfloat16 that are
// neighbors along the sum, as the dot product instructions take them.
#pragma once

#include "moe/grouped_mm.h"

namespace warpup {

constexpr int kRows = 6;          // of a tile
constexpr int kMostColumns = 64;  // of a tile of any kind
constexpr int kPiece = 64;        // elements that are fetched ahead at once
constexpr int kPackedBeyond = 8;  // words that may be written after packed a
constexpr int kSkinnyRows = 8;    // of b in a skinny tile, which reads b in place
constexpr int kLanes = 48;        // the most rows of a in a skinny tile of any kind

// Pieces of b that are fetched while a tile is computed, for the tiles after it.
template <class T>
struct Ahead {
  int64_t count = 0, begin = 0, each = 1;  // pieces: how many, the first, how many in a row
  const T* const* rows = nullptr;
  int64_t column = 0, piece_bytes = 0;
  const T* piece(int64_t i) const { return rows[(begin + i) / each] + column + (begin + i) % each * kPiece; }
};

// Sums of a tile that continue an earlier part of their depth, or are continued by a later one. Null: they begin with 0;
// they are complete and go to `out`.
struct Parts {
  const float* from = nullptr;
  float* to = nullptr;
};

// A tile of a group with few rows: of an expert's matrix each element is wanted only a few times, so that packing it
// would cost more than the sums do.
template <class T>
struct SkinnyTile {
  int lanes, parts;  // a group of up to lanes * parts rows is skinny; one tile takes `lanes` of them
  int64_t each;      // words of packed a for each word of the sum
  int64_t most;      // words of packed a that stay in a cache while b is read
  // n <= lanes rows of a, `depth` elements from `first` on.
  void (*pack)(const T* const* rows, int64_t n, int64_t first, int64_t depth, void* to);
  // out[n][8]: sums over `depth` of 8 rows of b, read in place, and packed a; the rows `next` are fetched meanwhile.
  void (*tile)(const T* const* b, const T* const* next, const void* a, int64_t n, int64_t depth, T* out,
               int64_t stride);
};

template <class T>
struct GroupedTiles {
  int columns;       // of a tile
  int word;          // elements of the sum in a word: 1 or 2
  int64_t depth;     // words of the sum at once: a packed tile of b stays in an L1
  int64_t together;  // words of b that are packed together where that is the whole depth
  bool streams;      // a large D of tn is stored past the cache
  // Columns [first, first + n) of `depth` rows as [words][columns]; the others are 0.
  void (*pack)(const T* const* rows, int64_t depth, int64_t first, int64_t n, void* to);
  // The same of elements [first, first + depth) of n rows, which become the columns.
  void (*pack_transposed)(const T* const* rows, int64_t n, int64_t first, int64_t depth, void* to);
  // a as [m / 6][words][6], past m 0: rows[m][depth], or transposed rows[depth][m].
  void (*pack_a)(bool transposed, const T* const* rows, int64_t m, int64_t depth, void* to);
  // A tile out[6][columns] of sums: a [words][6], b [words][columns]. `stream`: past the cache.
  void (*tile)(const void* a, const void* b, int64_t words, const Parts& parts, T* out, int64_t stride, bool stream,
               const Ahead<T>& ahead);
  SkinnyTile<T> skinny;
};

template <class T>
GroupedTiles<T> grouped_mm_float_tiles();

// False, and nothing is written, where this CPU or compiler has no AVX512-BF16.
bool grouped_mm_avx512_cpu(GroupedTiles<bfloat16>* tiles);

}  // namespace warpup
