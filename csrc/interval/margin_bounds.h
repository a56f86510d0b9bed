// margin_bounds and margin_cross_entropy: over a box of inputs to the last layer, lower bounds of the label's logit
// minus each other one, and the cross-entropy of the worst case that they allow. Taken of the difference of two logits
// at once, because the difference of their bounds is looser: both may not be worst for the same input.
//
//   D[k]      = W[y] - W[k]                      y = label; the layer is elided: no box of logits in between
//   m[k]      = D[k] . c - |D[k]| . r + b[y] - b[k]                     k != y, ascending
//   loss      = log(1 + sum_k exp(-m[k]))           share[k] = exp(-m[k] - loss)
//   dc        = sum_k g[k] D[k]      dr = -sum_k g[k] |D[k]|            g = grad_m[k] - grad_loss share[k]
//   dW[k]    -= g[k] (c - sign(D[k]) r),  dW[y] += the same             sign(0) = 0
//   db[k]    -= g[k],  db[y] += g[k]
//
// Layout   center, radius [batch, width] and weight [classes, width] with unit stride along width; bias [classes],
//          labels [batch], bounds, their gradient and share [batch, classes - 1], loss [batch], gradients contiguous.
// Numerics D is formed where it is used, and sums are taken in float32 (float64 for float64), in which bounds and loss
//          are given: no table of differences exists, for a batch nor for the classes.
//          A margin of -inf gives loss inf, and NaN in its row's share; NaN spreads over its sample.
//          A label outside [0, classes) gives NaN in its row on CUDA (no host sync), and nothing to weight and bias;
//          the binding rejects it on the CPU.
// Bytes    forward: center, radius and weight read, bounds written. backward: the same and bounds read, as much
//          written.
#pragma once

#include "core/types.h"

namespace warpup {

template <class T>
struct MarginBoundsArgs {
  using Acc = acc_t<T>;
  int64_t batch, classes, width;
  const T *center, *radius, *weight;
  int64_t center_stride, radius_stride, weight_stride;  // from row to row
  const T* bias;                                        // or null
  const int64_t* labels;
  Acc* bounds;
  Acc *loss, *share;  // or both null: not computed
};

template <class T>
struct MarginBoundsBackwardArgs {
  using Acc = acc_t<T>;
  MarginBoundsArgs<T> forward;  // bias, bounds, loss unused; share is read where grad_loss is given
  const Acc* grad_bounds;       // or null: zero
  const Acc* grad_loss;         // or null: zero
  int64_t grad_loss_step;       // from sample to sample
  T *grad_center, *grad_radius, *grad_weight, *grad_bias;
};

// The gradient of bound `at` of sample i.
template <class T>
WARPUP_HD acc_t<T> margin_gradient(const MarginBoundsBackwardArgs<T>& args, int64_t i, int64_t at) {
  at += i * (args.forward.classes - 1);
  const acc_t<T> direct = args.grad_bounds ? args.grad_bounds[at] : acc_t<T>(0);
  return args.grad_loss ? direct - args.grad_loss[i * args.grad_loss_step] * args.forward.share[at] : direct;
}

template <class T>
void margin_bounds_cpu(const MarginBoundsArgs<T>& args);
template <class T>
void margin_bounds_cuda(const MarginBoundsArgs<T>& args, void* stream);

template <class T>
void margin_bounds_backward_cpu(const MarginBoundsBackwardArgs<T>& args);
template <class T>
void margin_bounds_backward_cuda(const MarginBoundsBackwardArgs<T>& args, void* stream);

}  // namespace warpup
