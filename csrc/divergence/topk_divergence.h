// topk_divergence: divergence of the student from a teacher that gives the log-probs of K tokens a row.
//
// Why: a teacher's full logits are too large to store or to send; its likeliest tokens are not. Only the student's
// logits are of the vocabulary's size.
//
//   z = form(logit), pS = softmax(z / T)                                             core/logit_form.h
//   value = sum_k term(pT_k, pS[id_k])  [+ term(1 - sum pT, pS of all unlisted tokens), where `tail`]
//   G_k = pS d term / d pS,  G = the sum of all G_k, that of the tail among them      topk_divergence_math.h
//   dz[j] = g ( sum_k [id_k == j] G_k - pS_j G ) / T            a listed token        g: gradient of value
//   dz[j] = g rest_j (G_tail - pS_tail G) / T                   an unlisted one
//           rest: the softmax over the unlisted tokens alone; without a tail pS, with G_tail 0 and pS_tail 1
//   dlogit = dz times the form's slope
//
// Nothing is renormalised: pT sums to what the teacher lists. The tail makes K + 1 outcomes of it whose probabilities
// sum to 1 on both sides.
//
// Layout   student [rows, vocab], ids and logp [rows, K], each with unit stride along its last dimension and rows in up
//          to two strided levels; value contiguous, one a row; mask: 0 for a row that counts for nothing.
//          stats [rows, 6] = max and sum of the student's softmax, the same of `rest`, G, and G_tail - pS_tail G.
//          A sum of 0 marks a row that counts for nothing.
// Numerics as divergence.h. pS_tail is summed over the unlisted tokens, not what the others leave of 1: it has all its
//          digits however small it is. pT_tail is at least 1e-7, since log-probs in float32 do not tell less from 0.
//          An entry with logp = -inf is not listed. A term that is infinite since the student rules its token out (or,
//          for the tail, all others) is left out. A token listed twice counts twice.
//          An id outside [0, vocab) gives NaN on CUDA (no host sync); the check rejects it on the CPU.
// Bytes    forward: rows * vocab * sizeof(T) read. backward: the same read, and as much written.
#pragma once

#include "core/logit_form.h"
#include "core/per_row.h"

namespace warpup {

inline constexpr int kTopkStats = 6;

template <class T>
struct TopkDivergenceArgs {
  using Acc = acc_t<T>;
  bool jsd, tail;
  double beta;
  int64_t vocab, k;
  const T* student;
  Rows student_rows;
  const int64_t* ids;
  Rows ids_rows;
  const Acc* logp;
  Rows logp_rows;
  PerRow<uint8_t> mask;  // not given: all rows count
  PerRowOrScalar temperature;
  LogitForm<Acc> form;
  Acc* value;  // contiguous
  Acc* stats;  // contiguous [rows, 6]

  bool as_given() const { return form.plain() && !tail; }  // z are the logits, and `rest` is pS
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
