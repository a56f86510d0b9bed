// expert_bias: each expert's bias added to its rows, where it is: y[s] += w[s] bias[e] for s in [offsets[e],
// offsets[e + 1]).
//
// Layout   y [rows, width] and bias [experts, width] contiguous. w[s] is weights[permutation[s]], the weight of the copy
//          that the row holds; without weights it is 1. Rows that are in no group stay as they are.
// Numerics one sum in float32 (float64 for float64) an element, rounded once.
// Bytes    y read and written.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct ExpertBiasArgs {
  int64_t experts, width;
  const int64_t *offsets, *permutation;  // permutation: unused without weights
  const acc_t<T>* weights;               // null: all 1
  const T* bias;
  T* y;
};

template <class T>
void add_expert_bias(const ExpertBiasArgs<T>& args);  // on a GPU: python/warpup/moe/moe_experts.py

}  // namespace warpup
