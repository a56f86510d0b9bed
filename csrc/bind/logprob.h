// Entries of the logprob family: check every argument, choose dtype and device, call the twin.
#pragma once

#include "bind/dispatch.h"
#include "logprob/policy_loss.h"
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

// What the Python layer chooses by name, in the form of the kernels' enums; see logprob/policy_loss.h.
struct PolicyOptions {
  int64_t kind = 0;
  double clip_low = 0.2, clip_high = 0.2, kl_k1 = 0, kl_k2 = 0, kl_k3 = 0;
  bool per_sequence = false;
  int64_t denominator = 0;
  double denominator_value = 0;
};

namespace detail {

template <class T>
PolicyLossArgs<T> policy_loss_args(const char* op, const View& logp, const View& old_logp, const View& advantages,
                                   const View& mask, const OptionalView& ref_logp, const PolicyOptions& o) {
  const auto floating = [&](const char* name, const View& v, const T** pointer, int64_t* stride) {
    Argument(op, name, v).dtype({dtype_of<T>()}).on(logp.device).shape_like(logp, 2).unit_stride_last();
    *pointer = data<const T>(v);
    *stride = v.strides[0];
  };
  PolicyLossArgs<T> args{};
  args.batch = logp.sizes[0];
  args.length = logp.sizes[1];
  floating("logp", logp, &args.logp, &args.logp_stride);
  floating("old_logp", old_logp, &args.old_logp, &args.old_logp_stride);
  if (ref_logp) floating("ref_logp", *ref_logp, &args.ref_logp, &args.ref_logp_stride);
  Argument(op, "mask", mask).dtype({DType::u8}).on(logp.device).shape_like(logp, 2).unit_stride_last();
  args.mask = data<const uint8_t>(mask);
  args.mask_stride = mask.strides[0];
  const Argument advantages_arg(op, "advantages", advantages);
  advantages_arg.dtype({logp.dtype}).on(logp.device);
  args.advantages = data<const T>(advantages);
  if (advantages.dims == 1) {
    advantages_arg.shape({args.batch});
    args.advantages_stride = advantages.strides[0];
  } else {
    advantages_arg.shape({args.batch, args.length}).unit_stride_last();
    args.advantages_stride = advantages.strides[0];
    args.advantage_step = 1;
  }
  if (o.kind != static_cast<int64_t>(PolicyKind::clip)) fail(op, ": kind ", o.kind, " is not a PolicyKind");
  if (!(o.clip_low >= 0 && o.clip_high >= 0)) {
    fail(op, ": clip must be two numbers >= 0, got (", o.clip_low, ", ", o.clip_high, ")");
  }
  if ((o.kl_k1 != 0 || o.kl_k2 != 0 || o.kl_k3 != 0) && !ref_logp) fail(op, ": a KL coefficient needs ref_logp");
  if (o.denominator < 0 || o.denominator > 3) fail(op, ": denominator ", o.denominator, " is not a Denominator");
  args.kind = static_cast<PolicyKind>(o.kind);
  args.params = {o.clip_low, o.clip_high, o.kl_k1, o.kl_k2, o.kl_k3};
  args.per_sequence = o.per_sequence;
  args.denominator = static_cast<Denominator>(o.denominator);
  args.denominator_value = o.denominator_value;
  return args;
}

template <class Body>
void dispatch_policy(const char* op, const View& logp, const Body& body) {
  Argument(op, "logp", logp).dims(2);
  if (logp.dtype == DType::f32) return body.template operator()<float>();
  if (logp.dtype == DType::f64) return body.template operator()<double>();
  fail(op, ": logp must be float32 or float64, got ", name_of(logp.dtype),
       "; 16-bit log-probs round the ratio to 1, take them from token_logprob");
}

}  // namespace detail

inline int64_t policy_pieces(int64_t length) { return (length + kPolicyPiece - 1) / kPolicyPiece; }

// loss [], metrics [7] and row_weight [batch] are written; partials [batch * pieces, 8] is scratch.
inline void policy_loss(const View& logp, const View& old_logp, const View& advantages, const View& mask,
                        const OptionalView& ref_logp, const OptionalView& denominator, const PolicyOptions& options,
                        const View& loss, const View& metrics, const View& row_weight, const View& partials) {
  const char* op = "policy_loss";
  detail::dispatch_policy(op, logp, [&]<class T>() {
    auto args = detail::policy_loss_args<T>(op, logp, old_logp, advantages, mask, ref_logp, options);
    if (denominator) {
      Argument(op, "normalizer", *denominator).dtype({DType::f32}).on(logp.device);
      if (denominator->numel() != 1) fail(op, ": normalizer must hold 1 number, got shape ", shape_of(*denominator));
      args.denominator_data = data<const float>(*denominator);
    }
    const auto output = [&](const char* name, const View& v, int64_t numel) {
      Argument(op, name, v).dtype({dtype_of<T>()}).on(logp.device).contiguous();
      if (v.numel() != numel) fail(op, ": ", name, " must hold ", numel, " values, got shape ", shape_of(v));
      return data<T>(v);
    };
    args.loss = output("loss", loss, 1);
    args.metrics = output("metrics", metrics, kPolicyMetrics);
    args.row_weight = output("row_weight", row_weight, args.batch);
    args.partials = output("partials", partials, args.batch * policy_pieces(args.length) * kPolicySums);
    WARPUP_RUN(policy_loss, T, logp.device, args);
  });
}

// grad_logp [batch, length] is written.
inline void policy_loss_backward(const View& logp, const View& old_logp, const View& advantages, const View& mask,
                                 const OptionalView& ref_logp, const PolicyOptions& options, const View& row_weight,
                                 const View& grad_loss, const View& grad_logp) {
  const char* op = "policy_loss_backward";
  detail::dispatch_policy(op, logp, [&]<class T>() {
    PolicyLossBackwardArgs<T> args{};
    args.forward = detail::policy_loss_args<T>(op, logp, old_logp, advantages, mask, ref_logp, options);
    Argument(op, "row_weight", row_weight).dtype({logp.dtype}).on(logp.device).shape({args.forward.batch}).contiguous();
    args.forward.row_weight = data<T>(row_weight);
    Argument(op, "grad_loss", grad_loss).dtype({logp.dtype}).on(logp.device).dims(0);
    args.grad_loss = data<const T>(grad_loss);
    Argument(op, "grad_logp", grad_logp).dtype({logp.dtype}).on(logp.device).shape_like(logp, 2).contiguous();
    args.grad_logp = data<T>(grad_logp);
    WARPUP_RUN(policy_loss_backward, T, logp.device, args);
  });
}

}  // namespace warpup
