// Entries of interval_batch_norm and interval_relu: check every argument, choose dtype and device, call the kernel.
#pragma once

#include "core/view.h"
#include "interval/interval_batch_norm.h"

namespace warpup {

// What the pass is given for each channel, all optional: without a mean nothing is normalized.
struct ChannelParameters {
  OptionalView mean, var, weight, bias;
  double eps = 1e-5;
  bool normalized() const { return mean.has_value(); }
};

struct BoxGradients {
  OptionalView center, radius, clean;
};

// How the work on operands [outer, channels, inner] is cut, of which the size of `partials` follows.
ChannelLayout channel_layout(const char* op, const View& center);

// Statistics of center (source 0) or clean (2) into mean and var, or from there (-1), then scale and shift from them,
// where there are parameters; then the pass. partials [chunks, channels, 2]; sum_partials [1024, 8] and sums [8]
// float64.
void interval_batch_norm(const View& center, const View& radius, const OptionalView& clean, const ChannelParameters& p,
                         int64_t source, bool relu, bool sound, const OptionalView& partials, const OptionalView& scale,
                         const OptionalView& shift, const View& out_center, const View& out_radius,
                         const OptionalView& out_clean, const OptionalView& sum_partials, const OptionalView& sums);

// scale and shift again, for the backward, from the mean and var of the forward.
void channel_scale(const View& center, const ChannelParameters& p, const OptionalView& scale,
                   const OptionalView& shift);

// partials as in the forward, totals [2, channels]; scale and shift from channel_scale.
void interval_batch_norm_backward(const BoxGradients& grads, const View& center, const View& radius,
                                  const OptionalView& clean, bool from_outputs, const ChannelParameters& p,
                                  const OptionalView& scale, const OptionalView& shift, int64_t source, bool relu,
                                  const OptionalView& added, const OptionalView& partials, const OptionalView& totals,
                                  const View& out_center, const View& out_radius, const OptionalView& out_clean,
                                  const OptionalView& out_weight, const OptionalView& out_bias);

}  // namespace warpup
