// Entries of moe_glu: check every argument, choose dtype and device, call the twin.
#pragma once

#include "core/dispatch.h"
#include "moe/moe_glu.h"

namespace warpup {

namespace detail {

inline GluKind glu_kind(const char* op, const std::string& name) {
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "swiglu_oai"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<GluKind>(i);
  }
  fail(op, ": activation must be silu, gelu, gelu_tanh, relu or swiglu_oai, got ", name);
}

// Permutation entries are copies, or -1; on CUDA the caller's plan is trusted.
inline void check_permutation(const char* op, const View& permutation, int64_t copies) {
  if (permutation.device.cuda) return;
  const int64_t* p = data<const int64_t>(permutation);
  for (int64_t s = 0; s < permutation.sizes[0]; ++s) {
    if (p[s] < -1 || p[s] >= copies) fail(op, ": permutation must hold -1 to ", copies - 1, ", got ", p[s]);
  }
}

template <class T>
MoeGluArgs<T> moe_glu_args(const char* op, const View& h, const std::string& activation, const OptionalView& weights,
                           const OptionalView& permutation, const OptionalView& a) {
  Argument(op, "h", h).dims(2).contiguous();
  if (h.sizes[1] % 2 != 0) fail(op, ": h must have an even number of columns, got shape ", shape_of(h));
  const int64_t rows = h.sizes[0], width = h.sizes[1] / 2;
  if (bool(weights) != bool(permutation)) fail(op, ": weights and permutation must be given together");
  if (weights) {
    Argument(op, "weights", *weights).dtype({dtype_of<acc_t<T>>()}).on(h.device).dims(1).contiguous();
    Argument(op, "permutation", *permutation).dtype({DType::i64}).on(h.device).shape({rows}).contiguous();
    check_permutation(op, *permutation, weights->sizes[0]);
  }
  if (a) Argument(op, "a", *a).dtype({h.dtype}).on(h.device).shape({rows, width}).contiguous();
  return {rows,
          width,
          glu_kind(op, activation),
          data<const T>(h),
          data<const acc_t<T>>(weights),
          data<const int64_t>(permutation),
          data<T>(a)};
}

}  // namespace detail

// weights: one a copy, in the accumulator's type; permutation: one a row of h.
inline void moe_glu(const View& h, const OptionalView& weights, const OptionalView& permutation,
                    const std::string& activation, const View& a) {
  const char* op = "moe_glu";
  dispatch_floating(op, "h", h.dtype, [&]<class T>() {
    const MoeGluArgs<T> args = detail::moe_glu_args<T>(op, h, activation, weights, permutation, a);
    WARPUP_RUN(moe_glu, T, h.device, args);
  });
}

// grad_weights: like weights; entries of copies that no row holds are left as they are.
inline void moe_glu_backward(const View& h, const OptionalView& weights, const OptionalView& permutation,
                             const View& grad_a, const std::string& activation, const View& grad_h,
                             const OptionalView& a, const OptionalView& grad_weights) {
  const char* op = "moe_glu_backward";
  dispatch_floating(op, "h", h.dtype, [&]<class T>() {
    MoeGluBackwardArgs<T> args{detail::moe_glu_args<T>(op, h, activation, weights, permutation, a),
                               data<const T>(grad_a), data<T>(grad_h), data<acc_t<T>>(grad_weights)};
    const int64_t rows = args.forward.rows, width = args.forward.width;
    Argument(op, "grad_a", grad_a).dtype({h.dtype}).on(h.device).shape({rows, width}).contiguous();
    Argument(op, "grad_h", grad_h).dtype({h.dtype}).on(h.device).shape({rows, 2 * width}).contiguous();
    if (grad_weights) {
      if (!weights) fail(op, ": grad_weights needs weights");
      Argument(op, "grad_weights", *grad_weights)
          .dtype({dtype_of<acc_t<T>>()})
          .on(h.device)
          .shape({weights->sizes[0]})
          .contiguous();
    }
    WARPUP_RUN(moe_glu_backward, T, h.device, args);
  });
}

}  // namespace warpup
