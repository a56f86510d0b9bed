// topk_divergence: forward KL of the student from a teacher that gives the log-probs of K tokens a row.
//
// Why: a teacher's full logits are too large to store or to send; its likeliest tokens are not. Only the student's
// logits are of the vocabulary's size.
//
//   value = sum_k pT_k (log pT_k - log pS[id_k])              not renormalised: pT sums to what the teacher lists
//   dzS[j] = g (pS_j sum pT - sum_k [id_k == j] pT_k) / T     g: gradient of value
//
// Layout   student [rows, vocab], ids and logp [rows, K], each with unit stride along its last dimension and rows in up
//          to two strided levels; value contiguous, one a row; mask: 0 for a row that counts for nothing.
//          stats [rows, 3] = max and sum of the student's softmax, sum pT. A sum of 0 marks a row that counts for
//          nothing.
// Numerics as divergence.h. An entry with logp = -inf, or whose token the student rules out, is left out of the sum.
//          An id outside [0, vocab) gives NaN on CUDA (no host sync); the check rejects it on the CPU.
// Bytes    forward: rows * vocab * sizeof(T) read. backward: the same read, and as much written.
#pragma once

#include "core/per_row.h"

namespace warpup {

inline constexpr int kTopkStats = 3;

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
  PerRow<uint8_t> mask;  // not given: all rows count
  PerRowOrScalar temperature;
  Acc* value;  // contiguous
  Acc* stats;  // contiguous [rows, 3]
};

template <class T>
struct TopkDivergenceBackwardArgs {
  using Acc = acc_t<T>;
  TopkDivergenceArgs<T> forward;  // value unused
  PerRow<Acc> grad_value;
  T* grad_student;
  Rows grad_student_rows;
};

template <class T>
void topk_divergence_cpu(const TopkDivergenceArgs<T>& args);
template <class T>
void topk_divergence_cuda(const TopkDivergenceArgs<T>& args, void* stream);

template <class T>
void topk_divergence_backward_cpu(const TopkDivergenceBackwardArgs<T>& args);
template <class T>
void topk_divergence_backward_cuda(const TopkDivergenceBackwardArgs<T>& args, void* stream);

}  // namespace warpup
