// torch ops of the interval family's affine pass and weights: allocate the results, call the entry.
#include "interval/interval_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

// Operands [outer, channels, inner]. mean and var are null where nothing is normalised, read where source is -1.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> interval_affine_op(
    const Tensor& center, const Tensor& radius, const OptionalTensor& clean, const OptionalTensor& mean,
    const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias, int64_t source, double eps,
    bool relu, bool sums, bool sound) {
  const View c = view(center);
  const DType acc = accumulator_of(center);
  const ChannelLayout layout = detail::channel_layout("interval_affine", c);
  const bool affine = mean || source >= 0;
  const int64_t n = affine ? layout.channels : 0;
  Tensor out_center = empty(sizes_of(center), c.dtype, center), out_radius = empty(sizes_of(center), c.dtype, center);
  Tensor out_clean = clean ? empty(sizes_of(center), c.dtype, center) : empty({0}, c.dtype, center);
  Tensor own_mean = empty({source < 0 ? 0 : n}, acc, center), own_var = empty({source < 0 ? 0 : n}, acc, center);
  Tensor scale = empty({n}, acc, center), shift = empty({n}, acc, center);
  Tensor partials = empty({source < 0 ? 0 : layout.chunks(), n, 2}, acc, center);
  Tensor sum_partials = empty({BoxSumsPart::kGroups, BoxSumsPart::kCount}, DType::f64, center);
  Tensor totals = empty({sums ? BoxSumsPart::kCount : 0}, DType::f64, center);
  const auto where = [](bool asked, const Tensor& t) { return asked ? OptionalView(view(t)) : std::nullopt; };
  const ChannelParameters parameters{source < 0 ? view(mean) : OptionalView(view(own_mean)),
                                     source < 0 ? view(var) : OptionalView(view(own_var)), view(weight), view(bias),
                                     eps};
  interval_affine(c, view(radius), view(clean), parameters, source, relu, sound, where(source >= 0, partials),
                  where(affine, scale), where(affine, shift), view(out_center), view(out_radius),
                  where(clean.has_value(), out_clean), where(sums, sum_partials), where(sums, totals));
  return {out_center, out_radius, out_clean, own_mean, own_var, totals};
}

// The scale and shift are made again from mean and var: two numbers a channel.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> interval_affine_backward_op(
    const OptionalTensor& grad_center, const OptionalTensor& grad_radius, const OptionalTensor& grad_clean,
    const Tensor& center, const Tensor& radius, const OptionalTensor& clean, bool from_outputs,
    const OptionalTensor& mean, const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
    int64_t source, double eps, bool relu, const OptionalTensor& added) {
  const View c = view(center);
  const DType acc = accumulator_of(center);
  const ChannelLayout layout = detail::channel_layout("interval_affine_backward", c);
  const bool affine = mean.has_value();
  const int64_t n = affine ? layout.channels : 0;
  Tensor out_center = empty(sizes_of(center), c.dtype, center), out_radius = empty(sizes_of(center), c.dtype, center);
  Tensor out_clean = clean ? empty(sizes_of(center), c.dtype, center) : empty({0}, c.dtype, center);
  Tensor out_weight = empty({n}, acc, center), out_bias = empty({n}, acc, center);
  Tensor partials = empty({layout.chunks(), n, 2}, acc, center), totals = empty({2, n}, acc, center);
  const auto where = [](bool asked, const Tensor& t) { return asked ? OptionalView(view(t)) : std::nullopt; };
  Tensor scale = empty({n}, acc, center), shift = empty({n}, acc, center);
  const ChannelParameters parameters{view(mean), view(var), view(weight), view(bias), eps};
  channel_scale(c, parameters, where(affine, scale), where(affine, shift));
  interval_affine_backward({view(grad_center), view(grad_radius), view(grad_clean)}, c, view(radius), view(clean),
                           from_outputs, parameters, where(affine, scale), where(affine, shift), source, relu,
                           view(added), where(affine, partials), where(affine, totals), view(out_center),
                           view(out_radius), where(clean.has_value(), out_clean), where(affine, out_weight),
                           where(affine, out_bias));
  return {out_center, out_radius, out_clean, out_weight, out_bias};
}

void interval_sign_op(Tensor gradient, const Tensor& weight, const OptionalTensor& base) {
  interval_sign(view(gradient), view(weight), view(base));
}

std::tuple<Tensor, Tensor> interval_product_op(const Tensor& a_center, const Tensor& a_radius, const Tensor& b_center,
                                               const Tensor& b_radius) {
  const View a = view(a_center), b = view(b_center);
  Tensor shift = empty({a.sizes[0], b.sizes[0]}, a.dtype, a_center), excess = empty(sizes_of(shift), a.dtype, a_center);
  interval_product(a, view(a_radius), b, view(b_radius), view(shift), view(excess));
  return {shift, excess};
}

std::tuple<Tensor, Tensor> interval_product_backward_op(const Tensor& a_center, const Tensor& a_radius,
                                                        const Tensor& b_center, const Tensor& b_radius,
                                                        const Tensor& grad_shift, const Tensor& grad_excess,
                                                        bool transposed) {
  const View a = view(a_center);
  Tensor center = empty(sizes_of(a_center), a.dtype, a_center), radius = empty(sizes_of(a_center), a.dtype, a_center);
  interval_product_backward(a, view(a_radius), view(b_center), view(b_radius), view(grad_shift), view(grad_excess),
                            transposed, view(center), view(radius));
  return {center, radius};
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("interval_affine", TORCH_BOX(&interval_affine_op));
  m.impl("interval_affine_backward", TORCH_BOX(&interval_affine_backward_op));
  m.impl("interval_sign_", TORCH_BOX(&interval_sign_op));
  m.impl("interval_product", TORCH_BOX(&interval_product_op));
  m.impl("interval_product_backward", TORCH_BOX(&interval_product_backward_op));
}

#define PARAMETERS "Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, int source, float eps, bool relu, "

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("interval_affine(Tensor center, Tensor radius, Tensor? clean, " PARAMETERS
        "bool sums, bool sound) -> (Tensor center, Tensor radius, Tensor clean, Tensor mean, Tensor var, Tensor sums)");
  m.def(
      "interval_affine_backward(Tensor? grad_center, Tensor? grad_radius, Tensor? grad_clean, Tensor center, "
      "Tensor radius, Tensor? clean, bool from_outputs, " PARAMETERS
      "Tensor? added) -> (Tensor center, Tensor radius, Tensor clean, Tensor weight, Tensor bias)");
  m.def("interval_sign_(Tensor(a!) gradient, Tensor weight, Tensor? base) -> ()");
  m.def(
      "interval_product(Tensor a_center, Tensor a_radius, Tensor b_center, Tensor b_radius) -> (Tensor shift, "
      "Tensor excess)");
  m.def(
      "interval_product_backward(Tensor a_center, Tensor a_radius, Tensor b_center, Tensor b_radius, "
      "Tensor grad_shift, Tensor grad_excess, bool transposed) -> (Tensor center, Tensor radius)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
