// divergence: how far the student's distribution is from the teacher's, one value a row, from the logits of both.
//
// Why: distillation and KL penalties compare two distributions over the whole vocabulary at every token. Written with
// softmax and log_softmax that is half a dozen arrays of the logits' size; here both logits are read twice and nothing
// of their size is written but the gradient.
//
//   z = form(logit), each side's own scale and soft cap                               core/logit_form.h
//   p = exp((z - max z) / T) / sum,  sum = sum exp(...), for S and for T            one sweep over both rows
//   value = sum_j term(pS_j, pT_j)                       c, a constant of the row   a second, the rows in the cache
//   dzS[j] = g slope(pS_j, pT_j, c) / T                  g: gradient of value       backward: one sweep, where
//                                                        dlogit = dz times the form's slope
//
// term, slope and c of each kind: divergence_math.h. `binary` has no softmax: max 0, sum 1. `swap` (Mix-CPT)
// exchanges the teacher's largest logit with that of `targets`: two entries of pT change, its sum does not.
//
// Layout   student, teacher [rows, vocab], unit stride along vocab, rows in up to two strided levels; value contiguous,
//          one a row; mask: 0 for a row that counts for nothing.
//          stats [rows, 6] = max and sum of the student and of the teacher, c, the column of the teacher's maximum
//          (for the swap). A sum of 0 for the student marks a row that counts for nothing.
// Numerics products in float32 (float64 for float64); CPU sums of 256 in it (1024 for sum), these added up in float64.
//          Where one token has nearly all of pS, the gradient's s - t - c cancels: it is off by |s - t| roundings.
//          A masked row, whatever is in it, and one where a side has no logit above -inf give 0 and a zero gradient.
//          A target outside [0, vocab) gives NaN on CUDA (no host sync); the check rejects it on the CPU.
// Bytes    forward: 2 rows * vocab * sizeof(T) read (twice, where a GPU's L2 does not hold the rows in flight).
//          backward: the same read, half as much written.
#pragma once

#include "core/logit_form.h"
#include "core/per_row.h"
#include "divergence/divergence_math.h"

namespace warpup {

inline constexpr int kDivergenceStats = 6;

template <class T>
struct DivergenceArgs {
  using Acc = acc_t<T>;
  Divergence kind;
  double beta;
  int64_t vocab;
  const T* student;
  Rows student_rows;
  const T* teacher;
  Rows teacher_rows;
  PerRow<int64_t> targets;  // given: the swap
  PerRow<uint8_t> mask;     // not given: all rows count
  PerRowOrScalar temperature;
  LogitForm<Acc> student_form, teacher_form;
  Acc* value;  // contiguous
  Acc* stats;  // contiguous [rows, 6]
};

template <class T>
struct DivergenceBackwardArgs {
  using Acc = acc_t<T>;
  DivergenceArgs<T> forward;  // value unused
  PerRow<Acc> grad_value;
  T* grad_student;  // may be `forward.student` itself
  Rows grad_student_rows;
};

template <class T>
void divergence_cpu(const DivergenceArgs<T>& args);
template <class T>
void divergence_cuda(const DivergenceArgs<T>& args, void* stream);

template <class T>
void divergence_backward_cpu(const DivergenceBackwardArgs<T>& args);
template <class T>
void divergence_backward_cuda(const DivergenceBackwardArgs<T>& args, void* stream);

}  // namespace warpup
