// What the CPU kernels of divergence and topk_divergence share: the softmax's sums of a row, and the walk that writes
// the rows of a gradient.
#pragma once

#include <algorithm>
#include <span>

#include "core/extremes.h"
#include "core/load_block.h"
#include "core/parallel.h"
#include "core/stream_store.h"
#include "divergence/divergence_math.h"

namespace warpup {
namespace {

constexpr int64_t kBlock = 1024;  // two of them, widened, stay in L1

template <class Acc>
struct RowSum {
  Acc max = 0;
  double sum = 0;     // 0: no logit above -inf
  int64_t block = 0;  // the first column of the block in which max is
};

// Adds a block of logits to the online softmax of its row.
struct AddBlock {
  template <class Acc>
  WARPUP_HD void operator()(const Acc* __restrict z, int64_t begin, int64_t n, Acc inv_t,
                            RowSum<Acc>* __restrict row) const {
    Acc high = -kInf<Acc>;
#pragma omp simd reduction(largest : high)
    for (int64_t j = 0; j < n; ++j) high = z[j] > high ? z[j] : high;
    if (high > row->max) {
      if (row->sum > 0) row->sum *= std::exp((double(row->max) - double(high)) * inv_t);
      row->max = high, row->block = begin;
    }
    // A block of -inf before any finite logit has no maximum to subtract; NaN still has to come through.
    const Acc shift = row->max == -kInf<Acc> ? Acc(0) : row->max;
    Acc sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; ++j) sum += exp_neg((z[j] - shift) * inv_t);
    row->sum += sum;
  }
};

// left_out: columns that count for nothing, rising.
template <class T>
RowSum<acc_t<T>> sum_row(const T* x, int64_t n, acc_t<T> inv_t, LogitForm<acc_t<T>> form = {},
                         std::span<const int64_t> left_out = {}) {
  using Acc = acc_t<T>;
  alignas(64) Acc buffer[kBlock];
  RowSum<Acc> row{-kInf<Acc>, 0, 0};
  auto next = left_out.begin();
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    const Acc* z = load_block(x + begin, count, form, buffer);
    if (next != left_out.end() && *next < begin + count) {
      if (z != buffer) std::copy(z, z + count, buffer);
      for (; next != left_out.end() && *next < begin + count; ++next) buffer[*next - begin] = -kInf<Acc>;
      z = buffer;
    }
    run_alone(AddBlock{}, z, begin, count, inv_t, &row);
  }
  return row;
}

// From the sum as it is kept for the backward, which then meets the same probabilities: what cancels there has to be
// equal.
template <class Acc>
RowSide<Acc> side_of(const RowSum<Acc>& row) {
  return row_side(row.max, static_cast<Acc>(row.sum));
}

// Rows that a thread takes at least: about 8 K logits, below which waking a thread costs more than it saves.
int64_t grain_of(int64_t vocab) { return std::max<int64_t>(1, (1 << 13) / std::max<int64_t>(vocab, 1)); }

// Writes the gradient's rows block by block, past the cache where that pays. row(r, dz, write_blocks) is called for
// each row r; it either writes dz itself or calls write_blocks(slopes), and slopes(begin, n, out) then gives columns
// [begin, begin + n) in the accumulator's type.
template <class T, class Backward, class Row>
void write_gradient(const Backward& args, const Row& row) {
  using Acc = acc_t<T>;
  const auto& f = args.forward;
  const bool streamed =
      args.grad_student != f.student && f.student_rows.count * f.vocab * int64_t(sizeof(T)) >= kStreamed;
  parallel_for(0, f.student_rows.count, grain_of(f.vocab), [&](int64_t first, int64_t last) {
    alignas(64) T block[kBlock];
    alignas(64) Acc wide[kBlock];
    for (int64_t r = first; r < last; ++r) {
      T* dz = args.grad_student + args.grad_student_rows.offset(r);
      row(r, dz, [&](const auto& slopes) {
        for (int64_t begin = 0; begin < f.vocab; begin += kBlock) {
          const int64_t n = std::min(kBlock, f.vocab - begin);
          T* to = streamed ? block : dz + begin;
          if constexpr (sizeof(T) > 2) {
            slopes(begin, n, to);
          } else {
            slopes(begin, n, &wide[0]);
            narrow(wide, n, to);
          }
          if (streamed) stream_store(dz + begin, block, n);
        }
      });
    }
    if (streamed) stream_fence();
  });
}

}  // namespace
}  // namespace warpup
