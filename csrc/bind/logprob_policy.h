// Entries of policy_loss: check every argument, choose dtype and device, call the twin.
#pragma once

#include "bind/dispatch.h"
#include "logprob/policy_loss.h"

namespace warpup {

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
