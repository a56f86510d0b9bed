// Entries of token_logprob: check every argument, choose dtype and device, call the twin.
#pragma once

#include "bind/dispatch.h"
#include "logprob/token_logprob.h"

namespace warpup {

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

// What forward and backward have in common.
template <class T>
TokenLogprobArgs<T> token_logprob_args(const char* op, const View& logits, const View& targets,
                                       const OptionalView& temperature, double temperature_scalar, int64_t ignore_index,
                                       const View& stats) {
  const int lead = logits.dims - 1;
  const Argument logits_arg(op, "logits", logits), targets_arg(op, "targets", targets);
  TokenLogprobArgs<T> args{};
  args.vocab = logits.sizes[lead];
  args.logits = data<const T>(logits);
  args.logits_rows = logits_arg.rows(lead);
  targets_arg.dtype({DType::i64}).on(logits.device).shape_like(logits, lead);
  args.targets = data<const int64_t>(targets);
  args.targets_rows = targets_arg.rows(lead);
  args.ignore_index = ignore_index;
  check_targets(op, targets, args.targets_rows, args.vocab, ignore_index);
  if (temperature) {
    const Argument arg(op, "temperature", *temperature);
    arg.dtype({DType::f32}).on(logits.device).shape_like(logits, lead);
    args.temperature = data<const float>(*temperature);
    args.temperature_rows = arg.rows(lead);
    for (int64_t r = 0; !logits.device.cuda && r < args.temperature_rows.count; ++r) {
      const float t = args.temperature[args.temperature_rows.offset(r)];
      if (!(t > 0)) fail(op, ": temperature must be above 0, got ", t, " in row ", r);
    }
  } else if (!(temperature_scalar > 0)) {
    fail(op, ": temperature must be above 0, got ", temperature_scalar);
  }
  args.temperature_scalar = temperature_scalar;
  Argument(op, "stats", stats).dtype({dtype_of<acc_t<T>>()}).on(logits.device).contiguous();
  if (stats.numel() != 2 * args.logits_rows.count)
    fail(op, ": stats must hold 2 values a row, got shape ", shape_of(stats));
  args.stats = data<acc_t<T>>(stats);
  return args;
}

}  // namespace detail

// logp, entropy (optional) [...] and stats [..., 2] are written; see logprob/token_logprob.h.
inline void token_logprob(const View& logits, const View& targets, const OptionalView& temperature,
                          double temperature_scalar, int64_t ignore_index, const View& logp,
                          const OptionalView& entropy, const View& stats) {
  const char* op = "token_logprob";
  Argument(op, "logits", logits).unit_stride_last();
  const int lead = logits.dims - 1;
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    auto args =
        detail::token_logprob_args<T>(op, logits, targets, temperature, temperature_scalar, ignore_index, stats);
    const DType acc = dtype_of<acc_t<T>>();
    Argument(op, "logp", logp).dtype({acc}).on(logits.device).shape_like(logits, lead).contiguous();
    args.logp = data<acc_t<T>>(logp);
    if (entropy) Argument(op, "entropy", *entropy).dtype({acc}).on(logits.device).shape_like(logits, lead).contiguous();
    args.entropy = data<acc_t<T>>(entropy);
    WARPUP_RUN(token_logprob, T, logits.device, args);
  });
}

// grad_logits (the shape of logits; may be logits itself) is written; entropy is needed where grad_entropy is given.
inline void token_logprob_backward(const View& logits, const View& targets, const OptionalView& temperature,
                                   double temperature_scalar, int64_t ignore_index, const View& stats,
                                   const OptionalView& entropy, const OptionalView& grad_logp,
                                   const OptionalView& grad_entropy, const View& grad_logits) {
  const char* op = "token_logprob_backward";
  Argument(op, "logits", logits).unit_stride_last();
  const int lead = logits.dims - 1;
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const DType acc = dtype_of<Acc>();
    TokenLogprobBackwardArgs<T> args{};
    args.forward =
        detail::token_logprob_args<T>(op, logits, targets, temperature, temperature_scalar, ignore_index, stats);
    const auto per_row = [&](const char* name, const OptionalView& v, const Acc** pointer, Rows* rows) {
      if (!v) return;
      const Argument arg(op, name, *v);
      *rows = arg.dtype({acc}).on(logits.device).shape_like(logits, lead).rows(lead);
      *pointer = data<const Acc>(*v);
    };
    per_row("grad_logp", grad_logp, &args.grad_logp, &args.grad_logp_rows);
    per_row("grad_entropy", grad_entropy, &args.grad_entropy, &args.grad_entropy_rows);
    if (grad_entropy) {
      if (!entropy) fail(op, ": grad_entropy needs the forward's entropy");
      Argument(op, "entropy", *entropy).dtype({acc}).on(logits.device).shape_like(logits, lead).contiguous();
    }
    args.forward.entropy = data<Acc>(entropy);
    const Argument out(op, "grad_logits", grad_logits);
    out.dtype({logits.dtype}).on(logits.device).shape_like(logits, logits.dims).unit_stride_last();
    args.grad_logits = data<T>(grad_logits);
    args.grad_logits_rows = out.rows(lead);
    WARPUP_RUN(token_logprob_backward, T, logits.device, args);
  });
}

}  // namespace warpup
