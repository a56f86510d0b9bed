// policy_loss on views: the entries, and the inputs and options that they share.
//
// Each input and each option is written down once, in one of the two lists below. The structs here, the torch schema
// (policy_loss_torch.cpp) and the keywords of warpup.arrays (policy_loss_arrays.cpp) are made from the lists:
// everything goes by its name, and no two numbers can change places on the way from Python to the kernel.
#pragma once

#include <limits>
#include <string>

#include "core/view.h"

namespace warpup {

// Shapes and dtypes: policy_loss.h. An optional input that is not given adds nothing.
#define WARPUP_POLICY_INPUTS(REQUIRED, OPTIONAL) \
  REQUIRED(logp)                                 \
  REQUIRED(old_logp)                             \
  REQUIRED(advantages)                           \
  REQUIRED(mask)                                 \
  OPTIONAL(ref_logp)                             \
  OPTIONAL(weights)                              \
  OPTIONAL(penalty)                              \
  OPTIONAL(ref_kl)                               \
  OPTIONAL(entropy)                              \
  OPTIONAL(upstream)                             \
  OPTIONAL(cu_seqlens)

// Names of formulas and levels, and what the numbers mean: policy_loss_math.h, PolicyParams. Names of KL estimators and
// normalizers: policy_loss_check.cpp. denominator_scalar: what the sum over tokens is divided by, or 0: what the
// normalizer counts. Defaults are those of kind "grpo", and of "sapo" and "vespo" for the constants of these.
#define WARPUP_POLICY_OPTIONS(TEXT, NUMBER, FLAG)                   \
  TEXT(formula, "clip")                                             \
  TEXT(level, "token")                                              \
  NUMBER(floor, 0.8)                                                \
  NUMBER(ceiling, 1.2)                                              \
  NUMBER(ceiling_negative, std::numeric_limits<double>::infinity()) \
  NUMBER(tau_positive, 1.0)                                         \
  NUMBER(tau_negative, 1.05)                                        \
  NUMBER(k_positive, 2.0)                                           \
  NUMBER(lambda_positive, 3.0)                                      \
  NUMBER(k_negative, 3.0)                                           \
  NUMBER(lambda_negative, 2.0)                                      \
  NUMBER(cap, std::numeric_limits<double>::infinity())              \
  NUMBER(proximal, 0.0)                                             \
  TEXT(kl, "k3")                                                    \
  NUMBER(kl_input_limit, std::numeric_limits<double>::infinity())   \
  NUMBER(kl_output_limit, std::numeric_limits<double>::infinity())  \
  NUMBER(kl_coef, 0.0)                                              \
  FLAG(kl_corrected, false)                                         \
  NUMBER(entropy_coef, 0.0)                                         \
  TEXT(normalizer, "token")                                         \
  NUMBER(denominator_scalar, 0.0)

#define WARPUP_REQUIRED(name) View name;
#define WARPUP_OPTIONAL(name) OptionalView name;
struct PolicyInputs {
  WARPUP_POLICY_INPUTS(WARPUP_REQUIRED, WARPUP_OPTIONAL)
};
#undef WARPUP_REQUIRED
#undef WARPUP_OPTIONAL

#define WARPUP_TEXT(name, value) std::string name = value;
#define WARPUP_NUMBER(name, value) double name = value;
#define WARPUP_FLAG(name, value) bool name = value;
struct PolicyOptions {
  WARPUP_POLICY_OPTIONS(WARPUP_TEXT, WARPUP_NUMBER, WARPUP_FLAG)
};
#undef WARPUP_TEXT
#undef WARPUP_NUMBER
#undef WARPUP_FLAG

// How many pieces of rows scratch is needed for; see PolicyLayout.
int64_t policy_slots(const View& logp, const OptionalView& cu_seqlens);

// loss [], metrics [9] and row_state [sequences, 4] are written; partials [slots, 13] is scratch. denominator: one
// float32 number on the device, in place of denominator_scalar. losses, where given, is written, like logp.
void policy_loss(const PolicyInputs& inputs, const PolicyOptions& options, const OptionalView& denominator,
                 const View& loss, const View& metrics, const View& row_state, const View& partials,
                 const OptionalView& losses = std::nullopt);

// grad_logp, and grad_ref_kl and grad_entropy where they are given, are written, all like logp.
void policy_loss_backward(const PolicyInputs& inputs, const PolicyOptions& options, const View& row_state,
                          const View& grad_loss, const View& grad_logp, const OptionalView& grad_ref_kl,
                          const OptionalView& grad_entropy);

}  // namespace warpup
