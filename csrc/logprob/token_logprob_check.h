// Entries of token_logprob: check every argument, choose dtype and device, call the twin.
#pragma once

#include "core/dispatch.h"
#include "logprob/token_logprob.h"

namespace warpup {

// What the log-probs are taken under and of which columns; the same for forward and backward.
struct LogprobOptions {
  OptionalView temperature;  // float32, one a row; else temperature_scalar
  double temperature_scalar = 1;
  int64_t ignore_index = -100;
  OptionalView boosted, delta;  // uint8 [vocab]; float32, one a row, else delta_scalar
  double delta_scalar = 0;
  OptionalView kept;                          // uint8, the shape of logits
  int64_t vocab_begin = 0, vocab_total = -1;  // a slice of the vocabulary; -1: the logits are all of it
};

namespace detail {

inline void check_targets(const char* op, const View& targets, const Rows& rows, int64_t vocab, int64_t ignore_index) {
  if (targets.device.cuda) return;  // would synchronise; the kernel answers NaN
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t y = data<const int64_t>(targets)[rows.offset(r)];
    if ((y < 0 || y >= vocab) && y != ignore_index) {
      fail(op, ": targets[", r, "] = ", y, " is outside [0, ", vocab, ") and is not ignore_index (", ignore_index, ")");
    }
  }
}

// Arguments that hold one value a row of the logits.
template <class T>
void per_row(const char* op, const char* name, const OptionalView& v, const View& logits, const T** pointer,
             Rows* rows) {
  if (!v) return;
  const Argument arg(op, name, *v);
  *rows = arg.dtype({dtype_of<T>()}).on(logits.device).shape_like(logits, logits.dims - 1).rows(logits.dims - 1);
  *pointer = data<const T>(*v);
}

template <class Acc>
Acc* row_output(const char* op, const char* name, const OptionalView& v, const View& logits) {
  if (!v) return nullptr;
  Argument(op, name, *v).dtype({dtype_of<Acc>()}).on(logits.device).shape_like(logits, logits.dims - 1).contiguous();
  return data<Acc>(*v);
}

// What forward and backward have in common.
template <class T>
TokenLogprobArgs<T> token_logprob_args(const char* op, const View& logits, const View& targets, const LogprobOptions& o,
                                       const View& stats) {
  const int lead = logits.dims - 1;
  TokenLogprobArgs<T> args{};
  args.vocab = logits.sizes[lead];
  args.vocab_begin = o.vocab_begin;
  args.vocab_total = o.vocab_total < 0 ? args.vocab : o.vocab_total;
  if (args.vocab_begin < 0 || args.vocab_begin + args.vocab > args.vocab_total) {
    fail(op, ": columns [", args.vocab_begin, ", ", args.vocab_begin + args.vocab, ") are not within a vocabulary of ",
         args.vocab_total);
  }
  args.logits = data<const T>(logits);
  args.logits_rows = Argument(op, "logits", logits).rows(lead);
  per_row(op, "targets", targets, logits, &args.targets, &args.targets_rows);
  args.ignore_index = o.ignore_index;
  if (args.vocab_begin == 0) check_targets(op, targets, args.targets_rows, args.vocab_total, o.ignore_index);
  per_row(op, "temperature", o.temperature, logits, &args.temperature, &args.temperature_rows);
  args.temperature_scalar = o.temperature_scalar;
  for (int64_t r = 0; args.temperature && !logits.device.cuda && r < args.temperature_rows.count; ++r) {
    const float t = args.temperature[args.temperature_rows.offset(r)];
    if (!(t > 0)) fail(op, ": temperature must be above 0, got ", t, " in row ", r);
  }
  if (!args.temperature && !(o.temperature_scalar > 0)) {
    fail(op, ": temperature must be above 0, got ", o.temperature_scalar);
  }
  if (o.boosted) {
    Argument(op, "token_set", *o.boosted).dtype({DType::u8}).on(logits.device).shape({args.vocab}).contiguous();
    args.boosted = data<const uint8_t>(*o.boosted);
  }
  per_row(op, "delta", o.delta, logits, &args.delta, &args.delta_rows);
  args.delta_scalar = o.delta_scalar;
  if (o.kept) {
    const Argument arg(op, "kept_mask", *o.kept);
    arg.dtype({DType::u8}).on(logits.device).shape_like(logits, logits.dims).unit_stride_last();
    args.kept = data<const uint8_t>(*o.kept);
    args.kept_rows = arg.rows(lead);
  }
  Argument(op, "stats", stats).dtype({dtype_of<acc_t<T>>()}).on(logits.device).contiguous();
  if (stats.numel() != 2 * args.logits_rows.count)
    fail(op, ": stats must hold 2 values a row, got shape ", shape_of(stats));
  args.stats = data<acc_t<T>>(stats);
  return args;
}

}  // namespace detail

// logp, entropy, lse, sum_p2 (the last three optional) [...] and stats [..., 2] are written, with a slice that is not
// the last only state [..., 5]; see logprob/token_logprob.h.
inline void token_logprob(const View& logits, const View& targets, const LogprobOptions& options,
                          const OptionalView& state, const View& logp, const OptionalView& entropy,
                          const OptionalView& lse, const OptionalView& sum_p2, const View& stats) {
  const char* op = "token_logprob";
  Argument(op, "logits", logits).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    auto args = detail::token_logprob_args<T>(op, logits, targets, options, stats);
    if (state) {
      Argument(op, "state", *state).dtype({dtype_of<Acc>()}).on(logits.device).contiguous();
      if (state->numel() != 5 * args.logits_rows.count)
        fail(op, ": state must hold 5 values a row, got shape ", shape_of(*state));
    } else if (args.vocab < args.vocab_total) {
      fail(op, ": a slice of the vocabulary needs state");
    }
    args.state = data<Acc>(state);
    args.logp = detail::row_output<Acc>(op, "logp", logp, logits);
    args.entropy = detail::row_output<Acc>(op, "entropy", entropy, logits);
    args.lse = detail::row_output<Acc>(op, "lse", lse, logits);
    args.sum_p2 = detail::row_output<Acc>(op, "sum_p2", sum_p2, logits);
    WARPUP_RUN(token_logprob, T, logits.device, args);
  });
}

struct LogprobGradients {
  OptionalView logp, entropy, lse, sum_p2;  // one a row
};

// grad_logits (the shape of logits; may be logits itself) is written; the forward's entropy and sum_p2 are needed where
// their gradient is given.
inline void token_logprob_backward(const View& logits, const View& targets, const LogprobOptions& options,
                                   const View& stats, const OptionalView& entropy, const OptionalView& sum_p2,
                                   const LogprobGradients& grads, const View& grad_logits) {
  const char* op = "token_logprob_backward";
  Argument(op, "logits", logits).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    TokenLogprobBackwardArgs<T> args{};
    args.forward = detail::token_logprob_args<T>(op, logits, targets, options, stats);
    detail::per_row(op, "grad_logp", grads.logp, logits, &args.grad_logp, &args.grad_logp_rows);
    detail::per_row(op, "grad_entropy", grads.entropy, logits, &args.grad_entropy, &args.grad_entropy_rows);
    detail::per_row(op, "grad_lse", grads.lse, logits, &args.grad_lse, &args.grad_lse_rows);
    detail::per_row(op, "grad_sum_p2", grads.sum_p2, logits, &args.grad_sum_p2, &args.grad_sum_p2_rows);
    if (grads.entropy && !entropy) fail(op, ": grad_entropy needs the forward's entropy");
    if (grads.sum_p2 && !sum_p2) fail(op, ": grad_sum_p2 needs the forward's sum_p2");
    args.forward.entropy = detail::row_output<Acc>(op, "entropy", entropy, logits);
    args.forward.sum_p2 = detail::row_output<Acc>(op, "sum_p2", sum_p2, logits);
    const Argument out(op, "grad_logits", grad_logits);
    out.dtype({logits.dtype}).on(logits.device).shape_like(logits, logits.dims).unit_stride_last();
    for (int d = 0; d < logits.dims - 1 && grad_logits.numel() > 0; ++d) {
      if (grad_logits.sizes[d] > 1 && grad_logits.strides[d] == 0) {
        fail(
            op,
            ": rows of an expanded tensor share their memory, each needs its own gradient; leave inplace_backward off");
      }
    }
    args.grad_logits = data<T>(grad_logits);
    args.grad_logits_rows = out.rows(logits.dims - 1);
    WARPUP_RUN(token_logprob_backward, T, logits.device, args);
  });
}

}  // namespace warpup
