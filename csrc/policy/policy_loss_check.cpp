#include "policy/policy_loss_check.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <tuple>
#include <utility>

#include "core/dispatch.h"
#include "core/option_check.h"
#include "policy/policy_loss.h"

namespace warpup {

namespace {

// ---- Names ----------------------------------------------------------------------------------------------------------

template <class Value>
struct Named {
  std::string_view name;
  Value value;
};

constexpr Named<PolicyFormula> kFormulas[] = {
    {"clip", PolicyFormula::clip},       {"weighted", PolicyFormula::weighted},
    {"sapo", PolicyFormula::sapo},       {"geometric", PolicyFormula::geometric},
    {"tv", PolicyFormula::tv},           {"kl", PolicyFormula::kl},
    {"tv_both", PolicyFormula::tv_both},
};
constexpr Named<PolicyLevel> kLevels[] = {
    {"one", PolicyLevel::one},           {"token", PolicyLevel::token},
    {"sequence", PolicyLevel::sequence}, {"sequence_token", PolicyLevel::sequence_token},
    {"product", PolicyLevel::product},   {"geometric", PolicyLevel::geometric},
    {"gamma", PolicyLevel::gamma},
};
// What the normalizer counts where no denominator is given.
constexpr Named<Denominator> kNormalizers[] = {
    {"token", Denominator::tokens},
    {"sequence", Denominator::sequences},
    {"sequence_sum", Denominator::sequences},
    {"constant", Denominator::elements},
};

using Kl = KlWeights<double>;

constexpr Kl estimator(double Kl::* value, double Kl::* slope, Kl weights = {}) {
  weights.*value = weights.*slope = 1;
  return weights;
}

constexpr Kl held(double input_limit, double output_limit) {
  Kl weights;
  weights.input_limit = input_limit, weights.output_limit = output_limit;
  return weights;
}

constexpr Named<Kl> kEstimators[] = {
    {"k1", estimator(&Kl::k1, &Kl::slope1)},
    {"k2", estimator(&Kl::k2, &Kl::slope2)},
    {"k3", estimator(&Kl::k3, &Kl::slope3)},
    {"k1+", estimator(&Kl::k1, &Kl::slope2)},  // straight-through: that value with the gradient of k2
    {"k3+", estimator(&Kl::k3, &Kl::slope2)},
    {"k3_verl", estimator(&Kl::k3, &Kl::slope3, held(20, 10))},  // verl's low_var_kl
    {"full", Kl{}},                                              // no estimate: the caller's own KL
};

template <class Value, size_t N>
Value find(const char* op, const char* what, const std::string& name, const Named<Value> (&table)[N]) {
  std::string names;
  for (const Named<Value>& entry : table) {
    if (entry.name == name) return entry.value;
    names.append(names.empty() ? "" : ", ").append(entry.name);
  }
  fail(op, ": ", what, " must be one of ", names, ", got '", name, "'");
}

// ---- Options and inputs ---------------------------------------------------------------------------------------------

template <class T>
PolicyParams params_of(const char* op, PolicyFormula formula, PolicyLevel level, const PolicyOptions& o) {
  if (!(o.floor <= o.ceiling)) fail(op, ": clip must leave an interval, got [", o.floor, ", ", o.ceiling, "]");
  if (formula == PolicyFormula::sapo) {
    divisor_option<T>(op, "tau_positive", o.tau_positive), divisor_option<T>(op, "tau_negative", o.tau_negative);
  }
  if (level == PolicyLevel::gamma) {
    finite_option<T>(op, "k_positive", o.k_positive), finite_option<T>(op, "k_negative", o.k_negative);
    finite_option<T>(op, "lambda_positive", o.lambda_positive);
    finite_option<T>(op, "lambda_negative", o.lambda_negative);
  }
  if (!(o.cap > 0)) fail(op, ": cap must be above 0, got ", o.cap);
  if (!(o.proximal >= 0)) fail(op, ": proximal must be at least 0, got ", o.proximal);
  finite_option<T>(op, "proximal", o.proximal);
  finite_option<T>(op, "kl_coef", o.kl_coef), finite_option<T>(op, "entropy_coef", o.entropy_coef);
  PolicyParams params{};
  params.floor = o.floor, params.ceiling = o.ceiling, params.ceiling_negative = o.ceiling_negative;
  params.tau_positive = o.tau_positive, params.tau_negative = o.tau_negative;
  params.k_positive = o.k_positive, params.lambda_positive = o.lambda_positive;
  params.k_negative = o.k_negative, params.lambda_negative = o.lambda_negative;
  params.cap = o.cap, params.proximal = o.proximal;
  params.kl = find(op, "kl", o.kl, kEstimators);
  for (const auto& [name, given, limit] : {std::tuple{"kl_input_limit", o.kl_input_limit, &params.kl.input_limit},
                                           std::tuple{"kl_output_limit", o.kl_output_limit, &params.kl.output_limit}}) {
    if (!(given > 0)) fail(op, ": ", name, " must be above 0, got ", given);
    *limit = std::min(*limit, given);
  }
  params.kl_coef = o.kl_coef, params.entropy_coef = o.entropy_coef;
  return params;
}

// Options that need an input, and inputs that an option makes useless: neither is passed over in silence.
void check_together(const char* op, const PolicyInputs& in, const PolicyOptions& o) {
  const bool full = o.kl == "full";
  if (full && in.ref_logp) fail(op, ": kl='full' takes the KL from ref_kl and has no use for ref_logp");
  if (!full && in.ref_kl) fail(op, ": ref_kl belongs to kl='full', got kl='", o.kl, "'");
  if (o.kl_coef != 0 && !(full ? in.ref_kl : in.ref_logp)) {
    fail(op, full ? ": kl='full' needs ref_kl" : ": kl_coef needs ref_logp");
  }
  if (o.kl_corrected && !in.ref_logp && !in.ref_kl)
    fail(op, ": kl_corrected needs a KL to correct, by ref_logp or ref_kl");
  if (o.entropy_coef != 0 && !in.entropy) fail(op, ": entropy_coef needs entropy");
}

void check_cu_seqlens(const char* op, const View& v, int64_t tokens) {
  if (v.device.cuda) return;  // the kernels stay within the tokens, whatever the offsets are
  const int64_t *o = data<const int64_t>(v), rows = v.sizes[0] - 1;
  for (int64_t b = 0; b < rows; ++b) {
    if (o[b] > o[b + 1]) fail(op, ": cu_seqlens must not descend, got ", o[b], " and then ", o[b + 1]);
  }
  if (o[0] != 0 || o[rows] != tokens) {
    fail(op, ": cu_seqlens must begin with 0 and end with the number of tokens, ", tokens, "; got ", o[0], " and ",
         o[rows]);
  }
}

PolicyLayout layout_of(const char* op, const PolicyInputs& in) {
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

// What forward and backward have in common.
template <class T>
PolicyLossArgs<T> args_of(const char* op, const PolicyInputs& in, const PolicyOptions& o) {
  check_together(op, in, o);
  PolicyLossArgs<T> args{};
  args.layout = layout_of(op, in);
  const View& like = in.logp;

  const auto stream = [&]<class U>(const char* name, const View& v, bool may_be_a_row, PolicyStream<U>* out) {
    const Argument argument(op, name, v);
    argument.dtype({dtype_of<U>()}).on(like.device);
    // Packed, a value a row and one a token both have one dimension; where both fit it is one a row.
    const bool row = may_be_a_row && v.dims == 1 && (like.dims == 2 || v.sizes[0] == args.layout.batch);
    if (row) {
      argument.shape({args.layout.batch});
    } else {
      argument.shape_like(like, like.dims).unit_stride_last();
    }
    out->data = data<const U>(v);
    out->stride = row || like.dims == 2 ? v.strides[0] : 0;
    out->step = row ? 0 : 1;
  };
  const auto optional = [&](const char* name, const OptionalView& v, bool may_be_a_row, PolicyStream<T>* out) {
    if (v) stream(name, *v, may_be_a_row, out);
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
  optional("upstream", in.upstream, false, &args.upstream);

  args.formula = find(op, "formula", o.formula, kFormulas);
  args.level = find(op, "level", o.level, kLevels);
  args.params = params_of<T>(op, args.formula, args.level, o);
  args.kl_corrected = o.kl_corrected;
  args.denominator = find(op, "normalizer", o.normalizer, kNormalizers);
  args.per_sequence = o.normalizer == "sequence";
  if (o.denominator_scalar != 0) {
    divisor_option<T>(op, "normalizer", o.denominator_scalar);
    args.denominator = Denominator::given, args.denominator_scalar = o.denominator_scalar;
  }
  return args;
}

template <class Body>
void dispatch(const char* op, const View& logp, const Body& body) {
  if (logp.dtype == DType::f32) return body.template operator()<float>();
  if (logp.dtype == DType::f64) return body.template operator()<double>();
  fail(op, ": logp must be float32 or float64, got ", name_of(logp.dtype),
       "; 16-bit log-probs round the ratio to 1, take them from token_logprob");
}

template <class T>
T* output(const char* op, const char* name, const View& v, const View& like, int64_t numel) {
  Argument(op, name, v).dtype({dtype_of<T>()}).on(like.device).contiguous();
  if (v.numel() != numel) fail(op, ": ", name, " must hold ", numel, " values, got shape ", shape_of(v));
  return data<T>(v);
}

}  // namespace

// ---- Entries --------------------------------------------------------------------------------------------------------

int64_t policy_slots(const View& logp, const OptionalView& cu_seqlens) {
  const bool fits = cu_seqlens ? logp.dims == 1 && cu_seqlens->dims == 1 && cu_seqlens->sizes[0] > 0 : logp.dims == 2;
  if (!fits) return 0;  // the entry raises
  if (cu_seqlens) return logp.sizes[0] / kPolicyPiece + cu_seqlens->sizes[0] - 1;
  return logp.sizes[0] * ((logp.sizes[1] + kPolicyPiece - 1) / kPolicyPiece);
}

void policy_loss(const PolicyInputs& inputs, const PolicyOptions& options, const OptionalView& denominator,
                 const View& loss, const View& metrics, const View& row_state, const View& partials,
                 const OptionalView& losses) {
  const char* op = "policy_loss";
  const View& logp = inputs.logp;
  dispatch(op, logp, [&]<class T>() {
    auto args = args_of<T>(op, inputs, options);
    if (denominator) {
      Argument(op, "normalizer", *denominator).dtype({DType::f32}).on(logp.device);
      if (denominator->numel() != 1) fail(op, ": normalizer must hold 1 number, got shape ", shape_of(*denominator));
      args.denominator = Denominator::given;
      args.denominator_tensor = data<const float>(*denominator);
    }
    if (args.denominator == Denominator::elements && inputs.cu_seqlens) {
      fail(op, ": normalizer 'constant' needs a number beside cu_seqlens: ('constant', number)");
    }
    args.loss = output<T>(op, "loss", loss, logp, 1);
    args.metrics = output<T>(op, "metrics", metrics, logp, kPolicyMetrics);
    args.row_state = output<T>(op, "row_state", row_state, logp, args.layout.batch * kPolicyState);
    const int64_t scratch = policy_slots(logp, inputs.cu_seqlens) * kPolicyScratch;
    args.partials = output<T>(op, "partials", partials, logp, scratch);
    if (losses) {
      Argument(op, "losses", *losses).dtype({logp.dtype}).on(logp.device).shape_like(logp, logp.dims).contiguous();
      args.losses = data<T>(*losses);
    }
    WARPUP_RUN(policy_loss, T, logp.device, args);
  });
}

void policy_loss_backward(const PolicyInputs& inputs, const PolicyOptions& options, const View& row_state,
                          const View& grad_loss, const View& grad_logp, const OptionalView& grad_ref_kl,
                          const OptionalView& grad_entropy) {
  const char* op = "policy_loss_backward";
  const View& logp = inputs.logp;
  dispatch(op, logp, [&]<class T>() {
    PolicyLossBackwardArgs<T> args{};
    args.forward = args_of<T>(op, inputs, options);
    if (options.kl_coef == 0) {  // a metric has no gradient, and 0 * inf would be one
      args.forward.ref_logp = {}, args.forward.ref_kl = {}, args.forward.kl_corrected = false;
    }
    args.forward.row_state = output<T>(op, "row_state", row_state, logp, args.forward.layout.batch * kPolicyState);
    Argument(op, "grad_loss", grad_loss).dtype({logp.dtype}).on(logp.device).dims(0);
    args.grad_loss = data<const T>(grad_loss);
    const auto gradient = [&](const char* name, const View& v) {
      Argument(op, name, v).dtype({logp.dtype}).on(logp.device).shape_like(logp, logp.dims).contiguous();
      return data<T>(v);
    };
    args.grad_logp = gradient("grad_logp", grad_logp);
    if (grad_ref_kl) args.grad_ref_kl = gradient("grad_ref_kl", *grad_ref_kl);
    if (grad_entropy) args.grad_entropy = gradient("grad_entropy", *grad_entropy);
    WARPUP_RUN(policy_loss_backward, T, logp.device, args);
  });
}

}  // namespace warpup
