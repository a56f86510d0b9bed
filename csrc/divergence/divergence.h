// divergence: how far the student's distribution is from the teacher's, one value a row, from the logits of both; and
// topk_divergence, where the teacher gives the log-probs of K tokens a row.
//
//   p = exp((z - max z) / T) / sum,  sum = sum exp(...), for S and for T            one sweep over both rows
//   value = sum_j term(pS_j, pT_j)                       c, a constant of the row   a second, the rows in the cache
//   dzS[j] = g slope(pS_j, pT_j, c) / T                  g: gradient of value       backward: one sweep
//
// term, slope and c of each kind stand in divergence_math.h. `binary` has no softmax: max 0, sum 1. `swap` (Mix-CPT)
// exchanges the teacher's largest logit with that of `targets`: two entries of pT change, its sum does not.
// topk: value = sum_k pT_k (log pT_k - log pS[id_k]), not renormalised;
//       dzS[j] = g (pS_j sum pT - sum_k [id_k == j] pT_k) / T.
//
// Layout   student, teacher [rows, vocab], unit stride along vocab, rows in up to two strided levels; mask (0: the row
//          counts for nothing), targets, temperature, value, gradient one a row; ids, logp [rows, K].
//          stats [rows, 6] = max and sum of the student and of the teacher, c, where the teacher's maximum is (swap);
//          topk [rows, 3] = max, sum, sum pT. A sum of 0 for the student marks a row that counts for nothing.
// Numerics products in float32 (float64 for float64); CPU sums of 256 in it (1024 for sum), these added up in float64.
//          Where one token has nearly all of pS, the gradient's s - t - c cancels: it is off by |s - t| roundings.
//          A masked row, whatever stands in it, and one where a side has no logit above -inf gives 0 and a zero
//          gradient. A target or id outside [0, vocab) gives NaN on CUDA (no host sync); the binding rejects it on the
//          CPU.
// Bytes    forward: 2 rows * vocab * sizeof(T) read (twice, where a GPU's L2 does not hold the rows in flight).
//          backward: the same read, half as much written. topk: one side of that.
#pragma once

#include "core/types.h"
#include "divergence/divergence_math.h"

namespace warpup {

inline constexpr int kDivergenceStats = 6, kTopkStats = 3;

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
  const int64_t* targets;  // given: the swap
  Rows targets_rows;
  const uint8_t* mask;  // or null: all rows count
  Rows mask_rows;
  const float* temperature;  // one a row, or null: then `temperature_scalar`
  Rows temperature_rows;
  double temperature_scalar;
  Acc* value;  // contiguous
  Acc* stats;  // contiguous [rows, 6]
};

template <class T>
struct DivergenceBackwardArgs {
  using Acc = acc_t<T>;
  DivergenceArgs<T> forward;  // value unused
  const Acc* grad_value;
  Rows grad_value_rows;
  T* grad_student;  // may be `forward.student` itself
  Rows grad_student_rows;
};

template <class T>
struct TopkDivergenceArgs {
  using Acc = acc_t<T>;
  int64_t vocab, k;
  const T* student;
  Rows student_rows;
  const int64_t* ids;
  Rows ids_rows;
  const Acc* logp;  // -inf: the entry counts for nothing
  Rows logp_rows;
  const uint8_t* mask;
  Rows mask_rows;
  const float* temperature;
  Rows temperature_rows;
  double temperature_scalar;
  Acc* value;  // contiguous
  Acc* stats;  // contiguous [rows, 3]
};

template <class T>
struct TopkDivergenceBackwardArgs {
  using Acc = acc_t<T>;
  TopkDivergenceArgs<T> forward;
  const Acc* grad_value;
  Rows grad_value_rows;
  T* grad_student;
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

template <class T>
void topk_divergence_cpu(const TopkDivergenceArgs<T>& args);
template <class T>
void topk_divergence_cuda(const TopkDivergenceArgs<T>& args, void* stream);

template <class T>
void topk_divergence_backward_cpu(const TopkDivergenceBackwardArgs<T>& args);
template <class T>
void topk_divergence_backward_cuda(const TopkDivergenceBackwardArgs<T>& args, void* stream);

}  // namespace warpup
