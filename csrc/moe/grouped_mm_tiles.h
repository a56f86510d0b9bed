// The innermost loops of grouped_mm's CPU kernel, one set for each kind of CPU: portable ones in grouped_mm_cpu.cpp,
// for AVX512-BF16 in grouped_mm_avx512_cpu.cpp. Operands come packed in pairs: 32 bits hold two neighbors along the
// sum, as the dot product instructions take them.
#pragma once

#include "core/types.h"

namespace warpup {

constexpr int kRows = 6, kColumns = 64;      // of a tile: 24 of 32 registers hold its sums
constexpr int kSkinnyRows = 8, kLanes = 48;  // of a skinny tile: rows of b, which is read in place, and of packed a

// Pieces of 64 elements of b, two cache lines each, that are fetched while a tile is computed, for the tiles after it.
struct Ahead {
  int64_t count = 0, begin = 0, each = 1;  // pieces: how many, the first, how many in a row
  const bfloat16* const* rows = nullptr;
  int64_t column = 0;
  const bfloat16* piece(int64_t i) const { return rows[(begin + i) / each] + column + (begin + i) % each * kColumns; }
};

// Sums [6][64] that continue an earlier part of their depth, or are continued by a later one. Null: they begin with 0;
// they are complete and go to `out`.
struct Parts {
  const float* from = nullptr;
  float* to = nullptr;
};

struct GroupedTiles {
  // Columns [first, first + 64) of `depth` rows as [pairs][64].
  void (*pack)(const bfloat16* const* rows, int64_t depth, int64_t first, uint32_t* to);
  // The same of elements [first, first + depth) of n <= 64 rows, which become the columns; the others are 0.
  void (*pack_transposed)(const bfloat16* const* rows, int64_t n, int64_t first, int64_t depth, uint32_t* to);
  // A tile out[6][64] of sums over pairs: a [pairs][6], b [pairs][64]. `stream`: store past the cache.
  void (*tile)(const uint32_t* a, const uint32_t* b, int64_t pairs, const Parts& parts, bfloat16* out, int64_t stride,
               bool stream, const Ahead& ahead);
  // out[n][8], n <= 48: sums over `depth` of 8 rows of b, read in place, and a packed as columns; the rows `next` are
  // fetched meanwhile. Null where a CPU has no good way to do it.
  void (*skinny)(const bfloat16* const* b, const bfloat16* const* next, const uint32_t* a, int64_t n, int64_t depth,
                 bfloat16* out, int64_t stride);
};

constexpr bfloat16 kZeros[kColumns] = {};  // the missing neighbor of an odd last row

// False, and nothing is written, where this CPU or compiler has no AVX512-BF16.
bool grouped_mm_avx512_cpu(GroupedTiles* tiles);

}  // namespace warpup
