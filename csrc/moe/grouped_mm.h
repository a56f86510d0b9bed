// grouped_mm: one matrix product a group, D = op(A) op(B), with the rows of A sorted by group. The experts of a mixture
// are such groups, most of them with a handful of rows: a library call for each spends its time on starting, on threads
// that wait for each other, and on tiles that stay half empty.
//
// Layouts are named as BLAS names them, A before B: n is stored as it is multiplied, t transposed. Group e has the rows
// s in [offsets[e], offsets[e + 1]).
//
//   nt   D[s] = A[s] B[e]^T          B[e] is [N, K], as torch.nn.Linear stores a weight: the forward
//   nn   D[s] = A[s] B[e]            B[e] is [K, N]: the gradient of A
//   tn   D[e] = sum_s A[s]^T B[s]    B is [rows, N]: the gradient of B[e]
//
// Layout   A [., K] (tn: [., M]), and for tn B [., N], with rows of unit stride; row s is at a_rows[s] (b_rows[s]) if
//          given, else at s: an unsorted operand need not be sorted first. nt, nn: D is [rows, N], and 0 in rows that
//          are in no group. tn: D is [groups, M, N], and 0 for an empty group. D is contiguous.
// Numerics products summed in float32 and rounded once, in blocks of 64 to 512 elements one after the other, or, of nt
//          and few rows a group, in 4 to 16 sums side by side: so the bits of a row depend on whether its group has few.
//          Where the CPU has AVX512-BF16, two neighbors at a time, and numbers below 1e-38 count as 0.
// Method   CPU only. Both operands are packed into panels, A 6 rows side by side, B as many columns as the registers hold
//          sums for: 16 with AVX2, 64 with AVX-512. A thread takes whole tiles, so the number of threads changes no bit,
//          and threads meet once, not once a group. B is larger than the cache, and each part is used for a handful of
//          rows only: the next part is fetched while a tile is computed.
//          float32 panels, on every CPU: what is 16 bits is converted as it is packed, blocks of 8 x 8 are transposed in
//          registers. One thread of a Zen 3 (AVX2), 64 rows a group, N = 1408, K = 1024, GFLOP/s where one large float32
//          product of the library does 87 and one a group 66: bfloat16 nt 80, nn 73, tn 65; float32 77, 58, 71. Of nt and up
//          to 12 rows a group B is read in place, 4 of its rows at a time with 3 of A: half the time.
//          AVX512-BF16, bfloat16 alone: panels of pairs along the sum, as the dot product instructions take them. D of tn
//          is stored past the cache. Where A is skinny (few rows) and B transposed (nt), packing B would cost a third of
//          the sums: B is read in place, 8 rows at a time, and A is what is packed, up to 48 of its rows side by side.
//          One thread of a Zen 5, 48 rows a group, GFLOP/s of 537: nt 465 (oneDNN 333), nn 424 (257), tn 344 into new
//          memory (283 into memory that is there).
// Bytes    A, B and D once.
#pragma once

#include "core/types.h"

namespace warpup {

enum class GroupedLayout { nt, nn, tn };

template <class T>  // float, bfloat16 or float16
struct GroupedMMArgs {
  GroupedLayout layout;
  int64_t rows, groups;
  int64_t width, columns;  // of A: K (tn: M); of D: N
  const T *a, *b;
  int64_t a_stride, b_stride, b_group;       // between rows; between groups (tn: unused)
  const int64_t *offsets, *a_rows, *b_rows;  // [groups + 1]; [rows], or null
  T* out;
};

template <class T>
void grouped_mm_cpu(const GroupedMMArgs<T>& args);

}  // namespace warpup
