// torch ops of group_advantage and group_plan: allocate the results, call the entry.
#include "advantage/group_advantage_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

Tensor group_advantage_op(const Tensor& rewards, int64_t group_size, const OptionalTensor& offsets,
                          const OptionalTensor& order, const OptionalTensor& lengths, const OptionalTensor& batch,
                          std::string baseline, std::string scale, double eps, int64_t correction,
                          std::string singleton) {
  const View r = view(rewards);
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards);
  group_advantage(r, view(offsets), view(order), view(lengths), view(batch), group_size, baseline, scale, eps,
                  correction, singleton, view(advantages), {}, {}, {}, {}, {});
  return advantages;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_advantage_stats_op(
    const Tensor& rewards, int64_t group_size, const OptionalTensor& offsets, const OptionalTensor& order,
    const OptionalTensor& lengths, const OptionalTensor& batch, std::string baseline, std::string scale, double eps,
    int64_t correction, std::string singleton) {
  const View r = view(rewards);
  const int64_t groups = offsets ? offsets->numel() - 1 : group_size > 0 ? rewards.numel() / group_size : 0;
  const auto statistic = [&](DType dtype) { return empty({std::max<int64_t>(groups, 0)}, dtype, rewards); };
  Tensor advantages = empty(sizes_of(rewards), r.dtype, rewards);
  Tensor count = statistic(DType::i64), mean = statistic(r.dtype), std = statistic(r.dtype);
  Tensor mean_abs = statistic(r.dtype), zero_variance = statistic(DType::u8);
  group_advantage(r, view(offsets), view(order), view(lengths), view(batch), group_size, baseline, scale, eps,
                  correction, singleton, view(advantages), view(count), view(mean), view(std), view(mean_abs),
                  view(zero_variance));
  return results(advantages, count, mean, std, mean_abs, zero_variance);
}

#ifndef WARPUP_HOST_CUDA
std::tuple<Tensor, Tensor> group_plan_op(const Tensor& ids) {
  Tensor order = empty({ids.numel()}, DType::i64, ids), offsets = empty({ids.numel() + 1}, DType::i64, ids);
  group_plan(view(ids), view(order), view(offsets));
  return results(order, offsets);
}
#endif

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("group_advantage", boxed<group_advantage_op>);
  m.impl("group_advantage_stats", boxed<group_advantage_stats_op>);
}

}  // namespace
}  // namespace warpup

#define GROUP_ADVANTAGE_ARGUMENTS                                                                       \
  "(Tensor rewards, int group_size=0, Tensor? offsets=None, Tensor? order=None, Tensor? lengths=None, " \
  "Tensor? batch=None, str baseline=\"mean\", str scale=\"std\", float eps=0.0001, int correction=1, "  \
  "str singleton=\"zero\") -> "

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def("group_advantage" GROUP_ADVANTAGE_ARGUMENTS "Tensor");
  m.def("group_advantage_stats" GROUP_ADVANTAGE_ARGUMENTS
        "(Tensor advantages, Tensor count, Tensor mean, Tensor std, Tensor mean_abs, Tensor zero_variance)");
#ifndef WARPUP_HOST_CUDA
  m.def("group_plan(Tensor ids) -> (Tensor order, Tensor offsets)");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) {
  warpup::implement(m);
#ifndef WARPUP_HOST_CUDA
  m.impl("group_plan", warpup::boxed<warpup::group_plan_op>);
#endif
}
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
