// torch ops of interval_batch_norm and interval_relu: allocate the results, call the entry.
#include "interval/interval_batch_norm_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

// Operands [outer, channels, inner]. mean and var are null where nothing is normalised, read where source is -1.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> interval_batch_norm_op(
    const Tensor& center, const Tensor& radius, const OptionalTensor& clean, const OptionalTensor& mean,
    const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias, int64_t source, double eps,
    bool relu, bool sums, bool sound) {
  const View c = view(center);
  const DType acc = accumulator_of(center);
  const ChannelLayout layout = channel_layout("interval_batch_norm", c);
  const bool normalized = mean || source >= 0;
  const int64_t n = normalized ? layout.channels : 0;
  Tensor out_center = empty(sizes_of(center), c.dtype, center), out_radius = empty(sizes_of(center), c.dtype, center);
  Tensor out_clean = clean ? empty(sizes_of(center), c.dtype, center) : empty({0}, c.dtype, center);
  Tensor own_mean = empty({source < 0 ? 0 : n}, acc, center), own_var = empty({source < 0 ? 0 : n}, acc, center);
  Tensor scale = empty({n}, acc, center), shift = empty({n}, acc, center);
  Tensor partials = empty({source < 0 ? 0 : layout.chunks(), n, 2}, acc, center);
  Tensor sum_partials = empty({kBoxSumGroups, kBoxSums}, DType::f64, center);
  Tensor totals = empty({sums ? kBoxSums : 0}, DType::f64, center);
  const auto where = [](bool asked, const Tensor& t) { return asked ? OptionalView(view(t)) : std::nullopt; };
  const ChannelParameters parameters{source < 0 ? view(mean) : OptionalView(view(own_mean)),
                                     source < 0 ? view(var) : OptionalView(view(own_var)), view(weight), view(bias),
                                     eps};
  interval_batch_norm(c, view(radius), view(clean), parameters, source, relu, sound, where(source >= 0, partials),
                      where(normalized, scale), where(normalized, shift), view(out_center), view(out_radius),
                      where(clean.has_value(), out_clean), where(sums, sum_partials), where(sums, totals));
  return results(out_center, out_radius, out_clean, own_mean, own_var, totals);
}

// The scale and shift are made again from mean and var: two numbers a channel.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> interval_batch_norm_backward_op(
    const OptionalTensor& grad_center, const OptionalTensor& grad_radius, const OptionalTensor& grad_clean,
    const Tensor& center, const Tensor& radius, const OptionalTensor& clean, bool from_outputs,
    const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
    int64_t source, double eps, bool relu, const OptionalTensor& added) {
  const View c = view(center);
  const DType acc = accumulator_of(center);
  const ChannelLayout layout = channel_layout("interval_batch_norm_backward", c);
  const bool normalized = mean.has_value();
  const int64_t n = normalized ? layout.channels : 0;
  Tensor out_center = empty(sizes_of(center), c.dtype, center), out_radius = empty(sizes_of(center), c.dtype, center);
  Tensor out_clean = clean ? empty(sizes_of(center), c.dtype, center) : empty({0}, c.dtype, center);
  Tensor out_weight = empty({n}, acc, center), out_bias = empty({n}, acc, center);
  Tensor partials = empty({layout.chunks(), n, 2}, acc, center), totals = empty({2, n}, acc, center);
  const auto where = [](bool asked, const Tensor& t) { return asked ? OptionalView(view(t)) : std::nullopt; };
  Tensor scale = empty({n}, acc, center), shift = empty({n}, acc, center);
  const ChannelParameters parameters{view(mean), view(var), view(weight), view(bias), eps};
  channel_scale(c, parameters, where(normalized, scale), where(normalized, shift));
  interval_batch_norm_backward({view(grad_center), view(grad_radius), view(grad_clean)}, c, view(radius), view(clean),
                               from_outputs, parameters, where(normalized, scale), where(normalized, shift), source,
                               relu, view(added), where(normalized, partials), where(normalized, totals),
                               view(out_center), view(out_radius), where(clean.has_value(), out_clean),
                               where(normalized, out_weight), where(normalized, out_bias));
  return results(out_center, out_radius, out_clean, out_weight, out_bias);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("interval_batch_norm", boxed<interval_batch_norm_op>);
  m.impl("interval_batch_norm_backward", boxed<interval_batch_norm_backward_op>);
}

#define PARAMETERS "Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, int source, float eps, bool relu, "

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("interval_batch_norm(Tensor center, Tensor radius, Tensor? clean, " PARAMETERS
        "bool sums, bool sound) -> "
        "(Tensor out_center, Tensor out_radius, Tensor out_clean, Tensor out_mean, Tensor out_var, Tensor out_sums)");
  m.def(
      "interval_batch_norm_backward(Tensor? grad_out_center, Tensor? grad_out_radius, Tensor? grad_out_clean, Tensor "
      "center, "
      "Tensor radius, Tensor? clean, bool from_outputs, " PARAMETERS
      "Tensor? added) -> (Tensor grad_center, Tensor grad_radius, Tensor grad_clean, Tensor grad_weight, Tensor "
      "grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
