#include "moe/glu_check.h"

#include "core/dispatch.h"
#include "moe/glu.h"

namespace warpup {

namespace {

GluKind glu_kind(const char* op, std::string_view name) {
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", "swiglu_oai"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<GluKind>(i);
  }
  fail(op, ": activation must be silu, gelu, gelu_tanh, relu or swiglu_oai, got ", name);
}

// Permutation entries are copies, or -1; on CUDA the caller's plan is trusted.
void check_permutation(const char* op, const View& permutation, int64_t copies) {
  if (permutation.device.cuda) return;
  const int64_t* p = data<const int64_t>(permutation);
  for (int64_t s = 0; s < permutation.sizes[0]; ++s) {
    if (p[s] < -1 || p[s] >= copies) fail(op, ": permutation must hold -1 to ", copies - 1, ", got ", p[s]);
  }
}

template <class T>
GluArgs<T> glu_args(const char* op, const View& h, const OptionalView& weights, const OptionalView& permutation,
                    std::string_view activation, const OptionalView& a) {
  GluArgs<T> args{};
  Argument(op, "h", h).dims(2).contiguous();
  if (h.sizes[1] % 2 != 0) fail(op, ": h must have an even number of columns, got shape ", shape_of(h));
  args.rows = h.sizes[0], args.width = h.sizes[1] / 2;
  args.kind = glu_kind(op, activation);
  args.h = data<const T>(h);
  if (bool(weights) != bool(permutation)) fail(op, ": weights and permutation must be given together");
  if (weights) {
    Argument(op, "weights", *weights).dtype({dtype_of<acc_t<T>>()}).on(h.device).dims(1).contiguous();
    Argument(op, "permutation", *permutation).dtype({DType::i64}).on(h.device).shape({args.rows}).contiguous();
    check_permutation(op, *permutation, weights->sizes[0]);
    args.weights = data<const acc_t<T>>(weights), args.permutation = data<const int64_t>(permutation);
  }
  if (a) Argument(op, "a", *a).dtype({h.dtype}).on(h.device).shape({args.rows, args.width}).contiguous();
  args.a = data<T>(a);
  return args;
}

}  // namespace

void glu(const View& h, const OptionalView& weights, const OptionalView& permutation, std::string_view activation,
         const View& a) {
  const char* op = "glu";
  dispatch_floating(op, "h", h.dtype, [&]<class T>() {
    const GluArgs<T> args = glu_args<T>(op, h, weights, permutation, activation, a);
    WARPUP_RUN(glu, T, h.device, args);
  });
}

void glu_backward(const View& h, const OptionalView& weights, const OptionalView& permutation,
                  std::string_view activation, const View& grad_a, const View& grad_h, const OptionalView& grad_weights,
                  const OptionalView& a) {
  const char* op = "glu_backward";
  dispatch_floating(op, "h", h.dtype, [&]<class T>() {
    GluBackwardArgs<T> args{};
    args.forward = glu_args<T>(op, h, weights, permutation, activation, a);
    const int64_t rows = args.forward.rows, width = args.forward.width;
    Argument(op, "grad_a", grad_a).dtype({h.dtype}).on(h.device).shape({rows, width}).contiguous();
    Argument(op, "grad_h", grad_h).dtype({h.dtype}).on(h.device).shape({rows, 2 * width}).contiguous();
    args.grad_a = data<const T>(grad_a), args.grad_h = data<T>(grad_h);
    if (grad_weights) {
      if (!weights) fail(op, ": grad_weights needs weights");
      const Argument sums(op, "grad_weights", *grad_weights);
      sums.dtype({dtype_of<acc_t<T>>()}).on(h.device).shape({weights->sizes[0]}).contiguous();
      args.grad_weights = data<acc_t<T>>(grad_weights);
    }
    WARPUP_RUN(glu_backward, T, h.device, args);
  });
}

}  // namespace warpup
