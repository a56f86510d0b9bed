// policy_loss for arrays of any framework: inputs by position or name, options by name only.
#include "arrays/arrays.h"
#include "policy/policy_loss_check.h"

namespace warpup {
namespace {

#define WARPUP_VIEW(name) const View &name,
#define WARPUP_OPTIONAL(name) const OptionalView &name,
#define WARPUP_TEXT(name, value) const std::string &name,
#define WARPUP_NUMBER(name, value) double name,
#define WARPUP_FLAG(name, value) bool name,
#define WARPUP_POLICY_PARAMETERS                     \
  WARPUP_POLICY_INPUTS(WARPUP_VIEW, WARPUP_OPTIONAL) \
  WARPUP_POLICY_OPTIONS(WARPUP_TEXT, WARPUP_NUMBER, WARPUP_FLAG)

#define WARPUP_GIVE_VIEW(name) .name = name,
#define WARPUP_GIVE(name, value) .name = name,
#define WARPUP_GIVEN                                                                      \
  PolicyInputs{WARPUP_POLICY_INPUTS(WARPUP_GIVE_VIEW, WARPUP_GIVE_VIEW)}, PolicyOptions { \
    WARPUP_POLICY_OPTIONS(WARPUP_GIVE, WARPUP_GIVE, WARPUP_GIVE)                          \
  }

#define WARPUP_KEYWORD(name) py::arg(#name),
#define WARPUP_OPTIONAL_KEYWORD(name) py::arg(#name) = py::none(),
#define WARPUP_OPTION_KEYWORD(name, value) py::arg(#name) = value,
#define WARPUP_POLICY_KEYWORDS                                  \
  WARPUP_POLICY_INPUTS(WARPUP_KEYWORD, WARPUP_OPTIONAL_KEYWORD) \
  py::kw_only(), WARPUP_POLICY_OPTIONS(WARPUP_OPTION_KEYWORD, WARPUP_OPTION_KEYWORD, WARPUP_OPTION_KEYWORD)

void forward(WARPUP_POLICY_PARAMETERS const OptionalView& denominator, const View& loss, const View& metrics,
             const View& row_state, const View& partials, const OptionalView& losses) {
  policy_loss(WARPUP_GIVEN, denominator, loss, metrics, row_state, partials, losses);
}

void backward(WARPUP_POLICY_PARAMETERS const View& row_state, const View& grad_loss, const View& grad_logp,
              const OptionalView& grad_ref_kl, const OptionalView& grad_entropy) {
  policy_loss_backward(WARPUP_GIVEN, row_state, grad_loss, grad_logp, grad_ref_kl, grad_entropy);
}

}  // namespace

WARPUP_ARRAYS(m) {
  m.def("policy_loss",
        "A policy-gradient loss of token log-probs, padded [batch, length] or packed [total] with cu_seqlens.\n\n"
        "loss [], metrics [9] and, for the backward, row_state [sequences, 4] are written; partials [slots, 13] is\n"
        "scratch; losses, where given, is written, like logp; slots = batch * ceil(length / 8192), packed total // "
        "8192 + sequences. All floating arrays have one\n"
        "dtype, float32 or float64; mask is bool or uint8, cu_seqlens int64, denominator one float32 number.\n"
        "What the options mean: csrc/policy/policy_loss_math.h; which of them make a published loss: POLICY_KINDS in\n"
        "warpup/policy/kinds.py.",
        &forward, WARPUP_POLICY_KEYWORDS "denominator"_a = py::none(), "loss"_w, "metrics"_w, "row_state"_w,
        "partials"_w, "losses"_w = py::none());
  m.def("policy_loss_backward",
        "Its gradients, of the same inputs and options: grad_logp, and grad_ref_kl and grad_entropy where they are\n"
        "given, are written, all like logp.",
        &backward, WARPUP_POLICY_KEYWORDS "row_state"_a, "grad_loss"_a, "grad_logp"_w, "grad_ref_kl"_w = py::none(),
        "grad_entropy"_w = py::none());
}

}  // namespace warpup
