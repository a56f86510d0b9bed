// role_advantage: rewards against a running baseline of their role (SPIRAL). The order of the rows matters.
//
//   for each row i, in order:   A[i] = r[i] - b[role[i]];   b[role[i]] <- decay b[role[i]] + (1 - decay) r[i]
//
// Why      in a game the first player's rewards differ from the second's whatever the policy does: each role has a
//          baseline of its own. Row by row in Python that is a loop over the batch, here one kernel.
// Layout   contiguous; roles int64 in [0, count); the state is read from `state` and written to `new_state`.
//          A NaN reward stands for "no reward": A = 0, b stays. A role outside [0, count), which the check rejects on
//          the CPU, gives NaN on CUDA and changes nothing.
// Numerics CPU: a serial recurrence in float64. CUDA: a scan in float32 (float64 for float64), one warp a role, in a
//          fixed order.
// Bytes    rows * (2 sizeof(T) + 8) + 2 count * sizeof(T); CUDA reads rewards and roles once for each role.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>  // float, double
struct RoleAdvantageArgs {
  int64_t rows, count;  // count: of roles
  const T* rewards;
  const int64_t* roles;
  const T* state;  // [count]
  double decay;
  T* advantages;
  T* new_state;  // [count], may be `state` itself
};

template <class T>
void role_advantage_cpu(const RoleAdvantageArgs<T>& args);
template <class T>
void role_advantage_cuda(const RoleAdvantageArgs<T>& args, void* stream);

}  // namespace warpup
