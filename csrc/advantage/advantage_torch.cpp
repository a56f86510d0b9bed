// torch ops of the advantage family: allocate the results, call the entry.
#include "advantage/advantage_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using Text = std::string;

Tensor group_advantage_op(const Tensor& rewards, const OptionalTensor& offsets, const OptionalTensor& order,
                          const OptionalTensor& lengths, const OptionalTensor& batch, int64_t group_size,
                          const Text& baseline, const Text& scale, double eps, int64_t correction,
                          const Text& singleton) {
  const View r = view(rewards);
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards);
  group_advantage(r, view(offsets), view(order), view(lengths), view(batch), group_size, baseline, scale, eps,
                  correction, singleton, view(advantages), {}, {}, {}, {}, {});
  return advantages;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_stats_op(
    const Tensor& rewards, const OptionalTensor& offsets, const OptionalTensor& order, const OptionalTensor& lengths,
    const OptionalTensor& batch, int64_t group_size, const Text& baseline, const Text& scale, double eps,
    int64_t correction, const Text& singleton) {
  const View r = view(rewards);
  const int64_t groups = offsets ? offsets->numel() - 1 : group_size > 0 ? rewards.numel() / group_size : 0;
  const auto statistic = [&](DType dtype) { return empty({std::max<int64_t>(groups, 0)}, dtype, rewards); };
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards);
  Tensor count = statistic(DType::i64), mean = statistic(r.dtype), std = statistic(r.dtype);
  Tensor mean_abs = statistic(r.dtype), zero_variance = statistic(DType::u8);
  group_advantage(r, view(offsets), view(order), view(lengths), view(batch), group_size, baseline, scale, eps,
                  correction, singleton, view(advantages), view(count), view(mean), view(std), view(mean_abs),
                  view(zero_variance));
  return {advantages, count, mean, std, mean_abs, zero_variance};
}

#ifndef WARPUP_HOST_CUDA
std::tuple<Tensor, Tensor> group_plan_op(const Tensor& ids) {
  Tensor order = empty({ids.numel()}, DType::i64, ids), offsets = empty({ids.numel() + 1}, DType::i64, ids);
  group_plan(view(ids), view(order), view(offsets));
  return {order, offsets};
}
#endif

std::tuple<Tensor, Tensor> reverse_scan_op(const Tensor& rewards, const OptionalTensor& values, const Tensor& mask,
                                           const OptionalTensor& bootstrap, double gamma, double decay, bool cut) {
  const View r = view(rewards);
  Tensor x = empty(sizes_of(rewards), r.dtype, rewards);
  Tensor returns = values ? empty(sizes_of(rewards), r.dtype, rewards) : empty({0}, r.dtype, rewards);
  reverse_scan(r, view(values), view(mask), view(bootstrap), gamma, decay, cut, view(x),
               values ? OptionalView(view(returns)) : std::nullopt);
  return {x, returns};
}

std::tuple<Tensor, Tensor> role_advantage_op(const Tensor& rewards, const Tensor& roles, const Tensor& state,
                                             double decay) {
  const View r = view(rewards);
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards), new_state = empty(sizes_of(state), r.dtype, rewards);
  role_advantage(r, view(roles), view(state), decay, view(advantages), view(new_state));
  return {advantages, new_state};
}

Tensor partials_for(const Tensor& x) { return empty({Moments::chunks(x.numel()), Moments::kPartial}, DType::f64, x); }

Tensor masked_moments_op(const Tensor& x, const OptionalTensor& mask, bool skip_nan, int64_t correction) {
  Tensor moments = empty({Moments::kResult}, DType::f64, x);
  const Tensor partials = partials_for(x);
  masked_moments(view(x), view(mask), skip_nan, correction, view(partials), view(moments));
  return moments;
}

Tensor masked_whiten_op(const Tensor& x, const OptionalTensor& mask, bool shift_mean, int64_t correction, double eps) {
  const View v = view(x);
  Tensor out = empty(sizes_of(x), v.dtype, x);
  const Tensor partials = partials_for(x), moments = empty({Moments::kResult}, DType::f64, x);
  masked_whiten(v, view(mask), shift_mean, correction, eps, view(out), view(partials), view(moments));
  return out;
}

Tensor tree_values_op(const Tensor& rewards, const Tensor& children, const Tensor& begin, const Tensor& end) {
  const View r = view(rewards);
  Tensor values = empty(sizes_of(rewards), r.dtype, rewards);
  const Tensor settled = empty(sizes_of(rewards), DType::u8, rewards);
  tree_values(r, view(children), view(begin), view(end), view(values), view(settled));
  return values;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage_op));
  m.impl("group_advantage_stats", TORCH_BOX(&group_advantage_stats_op));
  m.impl("reverse_scan", TORCH_BOX(&reverse_scan_op));
  m.impl("role_advantage", TORCH_BOX(&role_advantage_op));
  m.impl("masked_moments", TORCH_BOX(&masked_moments_op));
  m.impl("masked_whiten", TORCH_BOX(&masked_whiten_op));
  m.impl("tree_values", TORCH_BOX(&tree_values_op));
}

}  // namespace
}  // namespace warpup

#define GROUP_ADVANTAGE_ARGUMENTS                                                                     \
  "(Tensor rewards, Tensor? offsets, Tensor? order, Tensor? lengths, Tensor? batch, int group_size, " \
  "str baseline, str scale, float eps, int correction, str singleton) -> "

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("group_advantage" GROUP_ADVANTAGE_ARGUMENTS "Tensor");
  m.def("group_advantage_stats" GROUP_ADVANTAGE_ARGUMENTS
        "(Tensor advantages, Tensor count, Tensor mean, Tensor std, Tensor mean_abs, Tensor zero_variance)");
  m.def(
      "reverse_scan(Tensor rewards, Tensor? values, Tensor mask, Tensor? bootstrap, float gamma, float decay, bool "
      "cut) "
      "-> (Tensor x, Tensor returns)");
  m.def("role_advantage(Tensor rewards, Tensor roles, Tensor state, float decay) -> (Tensor advantages, Tensor state)");
  m.def("masked_moments(Tensor x, Tensor? mask, bool skip_nan, int correction) -> Tensor");
  m.def("masked_whiten(Tensor x, Tensor? mask, bool shift_mean, int correction, float eps) -> Tensor");
  m.def("tree_values(Tensor rewards, Tensor children, Tensor begin, Tensor end) -> Tensor");
#ifndef WARPUP_HOST_CUDA
  m.def("group_plan(Tensor ids) -> (Tensor order, Tensor offsets)");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) {
  warpup::implement(m);
#ifndef WARPUP_HOST_CUDA
  m.impl("group_plan", TORCH_BOX(&warpup::group_plan_op));
#endif
}
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
