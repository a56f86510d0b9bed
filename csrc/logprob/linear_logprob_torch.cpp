// torch op of linear_logprob's forward on a CPU: for each slice of the vocabulary one product, and one entry of
// token_logprob. Its backward, and what a GPU runs, is composed in python/warpup/logprob/linear_logprob.py, which says
// more.
#include <algorithm>

#include "logprob/token_logprob_torch.h"
#include "torch/product.h"

#ifndef WARPUP_HOST_CUDA

namespace warpup {
namespace {

// Columns of a slice: `chunk`, or if that is 0, equal slices of about 32 MiB of logits. As `columns` in Python.
int64_t slice_columns(const View& hidden, int64_t vocab, int64_t chunk) {
  if (chunk > 0) return std::min(chunk, vocab);
  const int64_t fit = (32 << 20) / (std::max<int64_t>(hidden.sizes[0], 1) * bytes_of(hidden.dtype));
  const int64_t each = std::max<int64_t>(fit, 1024), parts = std::max<int64_t>(1, (vocab + each - 1) / each);
  return std::min(vocab, ((vocab + parts - 1) / parts + 63) & ~int64_t(63));
}

// The same for columns [begin, end) of the vocabulary.
SampledTokens columns_of(SampledTokens tokens, int64_t begin, int64_t end) {
  if (tokens.token_set) tokens.token_set = rows_of(*tokens.token_set, begin, end);
  if (View* kept = tokens.kept_mask ? &*tokens.kept_mask : nullptr) {
    *kept = transposed(rows_of(transposed(*kept), begin, end));
  }
  return tokens;
}

LogprobResults linear_logprob_op(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                                 WARPUP_SAMPLED_PARAMETERS, int64_t chunk, bool with_entropy, bool with_lse,
                                 bool with_sum_p2, bool widen) {
  const char* op = "linear_logprob";
  const View x = view(hidden), w = view(weight);
  const OptionalView b = view(bias);
  Argument(op, "hidden", x).dims(2);
  Argument(op, "weight", w).dtype({x.dtype}).dims(2);
  const int64_t rows = x.sizes[0], vocab = w.sizes[0];
  Argument(op, "weight", w).shape({vocab, x.sizes[1]});
  if (vocab < 1) fail(op, ": weight must have a row for each token, got none");
  if (b) Argument(op, "bias", *b).dtype({x.dtype}).shape({vocab});
  const SampledTokens tokens = WARPUP_SAMPLED;
  if (tokens.kept_mask) Argument(op, "kept_mask", *tokens.kept_mask).shape({rows, vocab});
  if (tokens.token_set) Argument(op, "token_set", *tokens.token_set).shape({vocab}).contiguous();

  LogprobResults results = empty_results(hidden, targets, with_entropy, with_lse, with_sum_p2);
  const int64_t step = slice_columns(x, vocab, chunk), k = tokens.targets.dims > 1 ? tokens.targets.sizes[1] : 1;
  const Tensor state = empty({rows, kLogprobState + k}, accumulator_of(hidden), hidden);
  const Tensor buffer = empty({rows * step}, x.dtype, hidden);
  // Of other dtypes a float32 copy is the operand itself, and writing there would change it.
  const bool in_float32 = widen && (x.dtype == DType::bf16 || x.dtype == DType::f16);
  for (int64_t begin = 0; begin < vocab; begin += step) {
    const int64_t end = std::min(vocab, begin + step);
    View logits = view(buffer);
    logits.dims = 2, logits.sizes = {rows, end - begin}, logits.strides = {end - begin, 1};
    const View part = transposed(rows_of(w, begin, end));
    const OptionalView added = b ? OptionalView(rows_of(*b, begin, end)) : std::nullopt;
    (in_float32 ? widened_product : library_product)(x, part, added, logits);
    token_logprob(logits, columns_of(tokens, begin, end), {.begin = begin, .total = vocab},
                  outputs_of(results, view(state)));
  }
  return results;
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("linear_logprob(Tensor hidden, Tensor weight, Tensor? bias, " WARPUP_SAMPLED_DEFAULTS
        "int chunk=0, " WARPUP_LOGPROB_FLAGS ", bool widen=False) -> " WARPUP_LOGPROB_RESULTS);
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) {
  m.impl("linear_logprob", warpup::boxed<warpup::linear_logprob_op>);
}

#endif
