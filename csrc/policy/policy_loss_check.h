// Entries of policy_loss: check every argument, choose dtype and device, call the twin.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "policy/policy_loss.h"

namespace warpup {

// What the Python layer chooses by name, in the form of the kernels' enums; see logprob/policy_loss.h.
struct PolicyOptions {
  PolicyFormula formula = PolicyFormula::clip;
  PolicyLevel level = PolicyLevel::token;
  bool kl_corrected = false, per_sequence = false;
  Denominator denominator = Denominator::tokens;
  PolicyParams params{};
  double denominator_value = 0;

  PolicyOptions() = default;
  // choices: the members above in their order; numbers: those of PolicyParams, then denominator_value.
  PolicyOptions(const std::vector<int64_t>& choices, const std::vector<double>& numbers) {
    const char* op = "policy_loss";
    if (choices.size() != 5) fail(op, ": options must hold 5 choices, got ", choices.size());
    if (numbers.size() != kPolicyParams + 1) {
      fail(op, ": options must hold ", kPolicyParams + 1, " numbers, got ", numbers.size());
    }
    const auto choice = [&](int i, const char* name, int64_t last) {
      if (choices[i] < 0 || choices[i] > last) fail(op, ": ", name, " ", choices[i], " is not one of 0 to ", last);
      return choices[i];
    };
    formula = static_cast<PolicyFormula>(choice(0, "formula", int64_t(PolicyFormula::geometric)));
    level = static_cast<PolicyLevel>(choice(1, "level", int64_t(PolicyLevel::gamma)));
    kl_corrected = choice(2, "kl_corrected", 1), per_sequence = choice(3, "per_sequence", 1);
    denominator = static_cast<Denominator>(choice(4, "denominator", int64_t(Denominator::given)));
    std::memcpy(&params, numbers.data(), sizeof(params));
    denominator_value = numbers.back();
    if (!(params.floor <= params.ceiling)) {
      fail(op, ": clip must leave an interval, got [", params.floor, ", ", params.ceiling, "]");
    }
    if (formula == PolicyFormula::sapo && !(params.gate[0] > 0 && params.gate[1] > 0)) {
      fail(op, ": tau must be two numbers above 0, got (", params.gate[0], ", ", params.gate[1], ")");
    }
  }

  bool has_kl() const {
    for (int i = 0; i < 3; ++i) {
      if (params.kl[i] != 0 || params.kl_slope[i] != 0) return true;
    }
    return false;
  }
};

// The inputs, all like logp but where their comments in logprob/policy_loss.h say otherwise.
struct PolicyInputs {
  View logp, old_logp, advantages, mask;
  OptionalView ref_logp, weights, penalty, ref_kl, entropy, cu_seqlens;
};

namespace detail {

inline void check_cu_seqlens(const char* op, const View& v, int64_t tokens) {
  if (v.device.cuda) return;  // the kernels stay within the tokens whatever stands there
  const int64_t *o = data<const int64_t>(v), rows = v.sizes[0] - 1;
  for (int64_t b = 0; b < rows; ++b) {
    if (o[b] > o[b + 1]) fail(op, ": cu_seqlens must not descend, got ", o[b], " and then ", o[b + 1]);
  }
  if (o[0] != 0 || o[rows] != tokens) {
    fail(op, ": cu_seqlens must begin with 0 and end with the number of tokens, ", tokens, "; got ", o[0], " and ",
         o[rows]);
  }
}

inline PolicyLayout policy_layout(const char* op, const PolicyInputs& in) {
  PolicyLayout layout{};
  if (!in.cu_seqlens) {
    Argument(op, "logp", in.logp).dims(2);
    layout.batch = in.logp.sizes[0], layout.length = in.logp.sizes[1];
    return layout;
  }
  const View& v = *in.cu_seqlens;
  Argument(op, "logp", in.logp).dims(1);  // beside cu_seqlens
  Argument(op, "cu_seqlens", v).dtype({DType::i64}).on(in.logp.device).dims(1).contiguous();
  layout.total = in.logp.sizes[0];
  layout.batch = v.sizes[0] - 1;
  if (layout.batch < 0 || (layout.batch == 0 && layout.total > 0)) {
    fail(op, ": cu_seqlens must have sequences + 1 entries, got shape ", shape_of(v), " for ", layout.total, " tokens");
  }
  check_cu_seqlens(op, v, layout.total);
  layout.offsets = data<const int64_t>(v);
  return layout;
}

template <class T>
PolicyLossArgs<T> policy_loss_args(const char* op, const PolicyInputs& in, const PolicyOptions& o) {
  PolicyLossArgs<T> args{};
  args.layout = policy_layout(op, in);
  const View& like = in.logp;
  const auto stream = [&]<class U>(const char* name, const View& v, bool one_a_row, PolicyStream<U>* out) {
    const Argument argument(op, name, v);
    argument.dtype({dtype_of<U>()}).on(like.device);
    // Packed, a value a row and one a token both have one dimension; where both fit it is one a row.
    const bool row = one_a_row && v.dims == 1 && (like.dims == 2 || v.sizes[0] == args.layout.batch);
    if (row) {
      argument.shape({args.layout.batch});
    } else {
      argument.shape_like(like, like.dims).unit_stride_last();
    }
    out->data = data<const U>(v);
    out->stride = row || like.dims == 2 ? v.strides[0] : 0;
    out->step = row ? 0 : 1;
  };
  const auto optional = [&](const char* name, const OptionalView& v, bool one_a_row, PolicyStream<T>* out) {
    if (v) stream(name, *v, one_a_row, out);
  };
  stream("logp", in.logp, false, &args.logp);
  stream("old_logp", in.old_logp, false, &args.old_logp);
  stream("mask", in.mask, false, &args.mask);
  stream("advantages", in.advantages, true, &args.advantages);
  optional("ref_logp", in.ref_logp, false, &args.ref_logp);
  optional("weights", in.weights, true, &args.weights);
  optional("penalty", in.penalty, false, &args.penalty);
  optional("ref_kl", in.ref_kl, false, &args.ref_kl);
  optional("entropy", in.entropy, false, &args.entropy);
  if (o.has_kl() && !in.ref_logp) fail(op, ": a KL coefficient needs ref_logp");
  args.formula = o.formula;
  args.level = o.level;
  args.kl_corrected = o.kl_corrected;
  args.params = o.params;
  args.per_sequence = o.per_sequence;
  args.denominator = o.denominator;
  args.denominator_value = o.denominator_value;
  return args;
}

template <class Body>
void dispatch_policy(const char* op, const View& logp, const Body& body) {
  if (logp.dtype == DType::f32) return body.template operator()<float>();
  if (logp.dtype == DType::f64) return body.template operator()<double>();
  fail(op, ": logp must be float32 or float64, got ", name_of(logp.dtype),
       "; 16-bit log-probs round the ratio to 1, take them from token_logprob");
}

template <class T>
T* policy_output(const char* op, const char* name, const View& v, const View& like, int64_t numel) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(like.device).contiguous();
  if (v.numel() != numel) fail(op, ": ", name, " must hold ", numel, " values, got shape ", shape_of(v));
  return data<T>(v);
}

}  // namespace detail

// Pieces of rows that scratch is needed for; see PolicyLayout.
inline int64_t policy_slots(const View& logp, const OptionalView& cu_seqlens) {
  if (logp.dims != (cu_seqlens ? 1 : 2) || (cu_seqlens && (cu_seqlens->dims != 1 || cu_seqlens->sizes[0] < 1)))
    return 0;
  if (cu_seqlens) return logp.sizes[0] / kPolicyPiece + cu_seqlens->sizes[0] - 1;
  return logp.sizes[0] * ((logp.sizes[1] + kPolicyPiece - 1) / kPolicyPiece);
}

// loss [], metrics [8] and row_state [sequences, 4] are written; partials [slots, 12] is scratch.
inline void policy_loss(const View& logp, const View& old_logp, const View& advantages, const View& mask,
                        const OptionalView& ref_logp, const OptionalView& weights, const OptionalView& penalty,
                        const OptionalView& ref_kl, const OptionalView& entropy, const OptionalView& cu_seqlens,
                        const OptionalView& denominator, const PolicyOptions& options, const View& loss,
                        const View& metrics, const View& row_state, const View& partials) {
  const char* op = "policy_loss";
  const PolicyInputs in{logp, old_logp, advantages, mask, ref_logp, weights, penalty, ref_kl, entropy, cu_seqlens};
  detail::dispatch_policy(op, logp, [&]<class T>() {
    auto args = detail::policy_loss_args<T>(op, in, options);
    if (denominator) {
      Argument(op, "normalizer", *denominator).dtype({DType::f32}).on(logp.device);
      if (denominator->numel() != 1) fail(op, ": normalizer must hold 1 number, got shape ", shape_of(*denominator));
      args.denominator_data = data<const float>(*denominator);
    }
    args.loss = detail::policy_output<T>(op, "loss", loss, logp, 1);
    args.metrics = detail::policy_output<T>(op, "metrics", metrics, logp, kPolicyMetrics);
    args.row_state = detail::policy_output<T>(op, "row_state", row_state, logp, args.layout.batch * kPolicyState);
    const int64_t scratch = policy_slots(logp, cu_seqlens) * kPolicyScratch;
    args.partials = detail::policy_output<T>(op, "partials", partials, logp, scratch);
    WARPUP_RUN(policy_loss, T, logp.device, args);
  });
}

// grad_logp, and grad_ref_kl and grad_entropy where they are given, are written, all like logp.
inline void policy_loss_backward(const View& logp, const View& old_logp, const View& advantages, const View& mask,
                                 const OptionalView& ref_logp, const OptionalView& weights, const OptionalView& penalty,
                                 const OptionalView& ref_kl, const OptionalView& entropy,
                                 const OptionalView& cu_seqlens, const PolicyOptions& options, const View& row_state,
                                 const View& grad_loss, const View& grad_logp, const OptionalView& grad_ref_kl,
                                 const OptionalView& grad_entropy) {
  const char* op = "policy_loss_backward";
  const PolicyInputs in{logp, old_logp, advantages, mask, ref_logp, weights, penalty, ref_kl, entropy, cu_seqlens};
  detail::dispatch_policy(op, logp, [&]<class T>() {
    PolicyLossBackwardArgs<T> args{};
    args.forward = detail::policy_loss_args<T>(op, in, options);
    args.forward.row_state =
        detail::policy_output<T>(op, "row_state", row_state, logp, args.forward.layout.batch * kPolicyState);
    Argument(op, "grad_loss", grad_loss).dtype({logp.dtype}).on(logp.device).dims(0);
    args.grad_loss = data<const T>(grad_loss);
    const auto output = [&](const char* name, const View& v) {
      Argument(op, name, v).dtype({logp.dtype}).on(logp.device).shape_like(logp, logp.dims).contiguous();
      return data<T>(v);
    };
    args.grad_logp = output("grad_logp", grad_logp);
    if (grad_ref_kl) args.grad_ref_kl = output("grad_ref_kl", *grad_ref_kl);
    if (grad_entropy) args.grad_entropy = output("grad_entropy", *grad_entropy);
    WARPUP_RUN(policy_loss_backward, T, logp.device, args);
  });
}

}  // namespace warpup
