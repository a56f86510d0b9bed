// The entries of moe_route: check every argument, choose dtype and device, call the kernel. See moe_route.h.
#pragma once

#include <string>

#include "core/view.h"

namespace warpup {

// How experts are scored, chosen and weighed; the same for forward and backward, which does not choose.
struct RouteOptions {
  std::string score = "softmax";
  bool over_chosen = false, renormalize = false;
  double epsilon = 0, scale = 1;
  int64_t groups = 0, kept_groups = 0, group_top = 0;
};

struct RouteResults {
  View weights, indices;            // (T, k)
  View counts, mean_score, z_loss;  // (B, E), (B, E), ()
  View stats, lengths;              // (T, 2), (B + 1,): what the backward needs
};

// All of `out` is written; slot_scores and slot_counts (RouteChunks::slots, E + 1) are scratch.
void moe_route(const View& logits, const OptionalView& bias, const OptionalView& replay, const OptionalView& mask,
               const OptionalView& bounds, int64_t k, const RouteOptions& options, const RouteResults& out,
               const View& slot_scores, const View& slot_counts);

// grad_logits (T, E) is written, from the forward's indices, stats and lengths.
void moe_route_backward(const View& logits, const OptionalView& bounds, const RouteOptions& options,
                        const View& indices, const View& stats, const View& lengths, const OptionalView& grad_weights,
                        const OptionalView& grad_mean_score, const OptionalView& grad_z_loss, const View& grad_logits);

}  // namespace warpup
