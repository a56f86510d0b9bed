// Entries of token_logprob: check every argument, choose dtype and device, call the kernel. Contract: token_logprob.h.
#pragma once

#include "core/logit_form_check.h"
#include "core/per_row_check.h"

namespace warpup {

// The tokens whose log-probs are asked for, and the sampler under which they were drawn.
struct SampledTokens {
  View targets;  // int64, one a row or K
  int64_t ignore_index = -100;
  PerRowOrScalarView temperature{std::nullopt, 1.0};
  OptionalView token_set;    // uint8 [vocab]: the tokens whose logits the sampler moved by delta
  PerRowOrScalarView delta;  // unused without token_set
  OptionalView kept_mask;    // uint8, the shape of logits: what the sampler's filter left
  LogitFormOptions form;     // what the model does to the logits first
};

// The columns of the vocabulary that the logits are.
struct VocabSlice {
  int64_t begin = 0, total = -1;  // -1: the logits are all of it
};

struct LogprobOutputs {
  View logp, stats;                   // the shape of targets; [..., 2]
  OptionalView entropy, lse, sum_p2;  // computed where given
  OptionalView state;                 // [..., 4 + K]; needed where the logits are a slice of the vocabulary
};

// All outputs are written; with a slice that is not the last only the state.
void token_logprob(const View& logits, const SampledTokens& tokens, const VocabSlice& slice, const LogprobOutputs& out);

// What the backward takes of the forward's outputs, and their gradients.
struct LogprobGradients {
  View stats;
  OptionalView entropy, sum_p2;                                 // needed where their gradient is given
  OptionalView grad_logp, grad_entropy, grad_lse, grad_sum_p2;  // not given: zero
};

// grad_logits (the shape of logits; may be logits itself) is written.
void token_logprob_backward(const View& logits, const SampledTokens& tokens, const VocabSlice& slice,
                            const LogprobGradients& gradients, const View& grad_logits);

}  // namespace warpup
