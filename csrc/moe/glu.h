// glu: the gated activation between an expert's two products, on rows sorted by expert, and its gradient. In one pass,
// because it is bound by memory: torch makes three, and keeps as many results for the backward.
//
//   h[s] = (g, u)    a[s, i] = w f(g_i) U(u_i)         w = weights[permutation[s]], 1 without weights
//   dh[s] = (w da f'(g) U(u), w da f(g) U'(u))         dw = sum_i da f(g_i) U(u_i)
//
//   silu        f(g) = g s(g)                          s: the logistic function;  U(u) = u for all but the last
//   gelu        f(g) = g (1 + erf(g / sqrt 2)) / 2
//   gelu_tanh   f(g) = g (1 + tanh(sqrt(2 / pi) (g + .044715 g^3))) / 2
//   relu        f(g) = max(g, 0)
//   swiglu_oai  f(g) = g' s(1.702 g'), g' = min(g, 7);  U(u) = 1 + u clamped to [-7, 7]
//
// The backward gives `a` again, because the forward's caller keeps h and not a.
//
// Layout   h [rows, 2 width]: g before u, of swiglu_oai interleaved (g_0, u_0, g_1, ...); a and da [rows, width];
//          weights and dw one a copy, permutation one a row; all contiguous. A row with permutation -1 holds no copy:
//          its results are 0, and no dw is written for it.
// Numerics float32 (float64 for float64); each result is rounded once.
// Bytes    forward: 3 rows * width * sizeof(T).  backward: 5 of them, 6 with a.
#pragma once

#include "core/types.h"

namespace warpup {

enum class GluKind { silu, gelu, gelu_tanh, relu, swiglu_oai };

template <class T>
struct GluArgs {
  using Acc = acc_t<T>;
  int64_t rows, width;
  GluKind kind;
  const T* h;
  const Acc* weights;          // or null: 1
  const int64_t* permutation;  // or null, with weights
  T* a;                        // backward: may be null
};

template <class T>
struct GluBackwardArgs {
  GluArgs<T> forward;
  const T* grad_a;
  T* grad_h;
  acc_t<T>* grad_weights;  // or null
};

template <class T>
void glu_cpu(const GluArgs<T>& args);
template <class T>
void glu_cuda(const GluArgs<T>& args, void* stream);

template <class T>
void glu_backward_cpu(const GluBackwardArgs<T>& args);
template <class T>
void glu_backward_cuda(const GluBackwardArgs<T>& args, void* stream);

}  // namespace warpup
