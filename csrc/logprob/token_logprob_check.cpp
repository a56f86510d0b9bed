#include "logprob/token_logprob_check.h"

#include "logprob/token_logprob.h"

namespace warpup {

namespace {

void check_targets(const char* op, const PerRowList<int64_t>& targets, int64_t vocab, int64_t ignore_index) {
  for (int64_t i = 0; i < targets.rows.count * targets.count; ++i) {
    const int64_t y = targets.at(i / targets.count, i % targets.count);
    if ((y < 0 || y >= vocab) && y != ignore_index) {
      fail(op, ": targets[", i, "] = ", y, " is outside [0, ", vocab, ") and is not ignore_index (", ignore_index, ")");
    }
  }
}

// What forward and backward have in common.
template <class T>
TokenLogprobArgs<T> common_args(const char* op, const View& logits, const SampledTokens& tokens,
                                const VocabSlice& slice, const View& stats) {
  const int lead = logits.dims - 1;
  TokenLogprobArgs<T> args{};
  args.vocab = logits.sizes[lead];
  args.vocab_begin = slice.begin;
  args.vocab_total = slice.total < 0 ? args.vocab : slice.total;
  if (args.vocab_begin < 0 || args.vocab_begin + args.vocab > args.vocab_total) {
    fail(op, ": columns [", args.vocab_begin, ", ", args.vocab_begin + args.vocab, ") are not within a vocabulary of ",
         args.vocab_total);
  }
  args.logits = data<const T>(logits);
  args.logits_rows = Argument(op, "logits", logits).rows(lead);
  args.targets = per_row_list<int64_t>(op, "targets", tokens.targets, logits);
  args.ignore_index = tokens.ignore_index;
  // Once a row, on its first slice. On a GPU, where a look would synchronize, the kernel answers NaN.
  if (!logits.device.cuda && args.vocab_begin == 0) {
    check_targets(op, args.targets, args.vocab_total, args.ignore_index);
  }
  args.form = logit_form<acc_t<T>>(op, tokens.form);
  args.temperature = temperature_of<acc_t<T>>(op, tokens.temperature, logits);
  if (tokens.token_set) {
    Argument(op, "token_set", *tokens.token_set).dtype({DType::u8}).on(logits.device).shape({args.vocab}).contiguous();
    args.token_set = data<const uint8_t>(*tokens.token_set);
  }
  args.delta = per_row(op, "delta", tokens.delta, logits);
  if (args.delta.scalar != -HUGE_VAL) finite_option<acc_t<T>>(op, "delta", args.delta.scalar);  // -inf: a ban
  if (tokens.kept_mask) {
    const Argument mask(op, "kept_mask", *tokens.kept_mask);
    mask.dtype({DType::u8}).on(logits.device).shape_like(logits, logits.dims).unit_stride_last();
    args.kept_mask = data<const uint8_t>(*tokens.kept_mask);
    args.kept_rows = mask.rows(lead);
  }
  args.stats = row_state<acc_t<T>>(op, "stats", stats, logits, kLogprobStats);
  return args;
}

}  // namespace

void token_logprob(const View& logits, const SampledTokens& tokens, const VocabSlice& slice,
                   const LogprobOutputs& out) {
  const char* op = "token_logprob";
  Argument(op, "logits", logits).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    auto args = common_args<T>(op, logits, tokens, slice, out.stats);
    if (out.state) {
      args.state = row_state<Acc>(op, "state", *out.state, logits, kLogprobState + args.targets.count);
    } else if (args.vocab < args.vocab_total) {
      fail(op, ": a slice of the vocabulary needs state");
    }
    const Argument logp(op, "logp", out.logp);
    logp.dtype({dtype_of<Acc>()}).on(logits.device).shape_like(tokens.targets, tokens.targets.dims).contiguous();
    args.logp = data<Acc>(out.logp);
    args.entropy = row_output<Acc>(op, "entropy", out.entropy, logits);
    args.lse = row_output<Acc>(op, "lse", out.lse, logits);
    args.sum_p2 = row_output<Acc>(op, "sum_p2", out.sum_p2, logits);
    WARPUP_RUN(token_logprob, T, logits.device, args);
  });
}

void token_logprob_backward(const View& logits, const SampledTokens& tokens, const VocabSlice& slice,
                            const LogprobGradients& gradients, const View& grad_logits) {
  const char* op = "token_logprob_backward";
  Argument(op, "logits", logits).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    TokenLogprobBackwardArgs<T> args{};
    args.forward = common_args<T>(op, logits, tokens, slice, gradients.stats);
    args.grad_logp = per_row_list<Acc>(op, "grad_logp", gradients.grad_logp, logits);
    if (args.grad_logp && args.grad_logp.count != args.forward.targets.count) {
      fail(op, ": grad_logp must have the shape of targets, got ", shape_of(*gradients.grad_logp), " and ",
           shape_of(tokens.targets));
    }
    args.grad_entropy = per_row<Acc>(op, "grad_entropy", gradients.grad_entropy, logits);
    args.grad_lse = per_row<Acc>(op, "grad_lse", gradients.grad_lse, logits);
    args.grad_sum_p2 = per_row<Acc>(op, "grad_sum_p2", gradients.grad_sum_p2, logits);
    if (args.grad_entropy && !gradients.entropy) fail(op, ": grad_entropy needs the forward's entropy");
    if (args.grad_sum_p2 && !gradients.sum_p2) fail(op, ": grad_sum_p2 needs the forward's sum_p2");
    args.forward.entropy = row_output<Acc>(op, "entropy", gradients.entropy, logits);
    args.forward.sum_p2 = row_output<Acc>(op, "sum_p2", gradients.sum_p2, logits);
    const Argument out(op, "grad_logits", grad_logits);
    out.dtype({logits.dtype}).on(logits.device).shape_like(logits, logits.dims).unit_stride_last();
    for (int d = 0; d < logits.dims - 1 && grad_logits.numel() > 0; ++d) {
      if (grad_logits.sizes[d] > 1 && grad_logits.strides[d] == 0) {
        fail(op, ": rows of an expanded tensor share their memory, each needs its own gradient; leave ",
             "inplace_backward off");
      }
    }
    args.grad_logits = data<T>(grad_logits);
    args.grad_logits_rows = out.rows(logits.dims - 1);
    WARPUP_RUN(token_logprob_backward, T, logits.device, args);
  });
}

}  // namespace warpup
