// torch ops of moe_route: allocate the results, call the entry.
#include "moe/moe_route.h"
#include "moe/moe_route_check.h"
#include "torch/torch.h"

namespace warpup {
namespace {

using RouteResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

RouteResult moe_route_op(const Tensor& logits, const OptionalTensor& bias, const OptionalTensor& replay,
                         const OptionalTensor& mask, const OptionalTensor& bounds, int64_t k, std::string score,
                         bool over_chosen, bool renormalize, double epsilon, double scale, int64_t groups,
                         int64_t kept_groups, int64_t group_top) {
  const View z = view(logits);
  Argument("moe_route", "logits", z).dims(2);
  if (bounds) Argument("moe_route", "sequences", view(*bounds)).dims(1);
  if (k < 1 || k > z.sizes[1]) fail("moe_route: k must be in [1, ", z.sizes[1], "], got ", k);
  const DType acc = accumulator_of(logits);
  const int64_t tokens = z.sizes[0], experts = z.sizes[1], sequences = bounds ? bounds->numel() - 1 : 1;
  const auto output = [&](const Sizes& sizes, DType dtype) { return empty(sizes, dtype, logits); };
  Tensor weights = output({tokens, k}, acc), indices = output({tokens, k}, DType::i64);
  Tensor counts = output({sequences, experts}, DType::i64), mean_score = output({sequences, experts}, acc);
  Tensor z_loss = output({}, acc), stats = output({tokens, 2}, acc), lengths = output({sequences + 1}, DType::i64);
  const int64_t slots = RouteChunks::slots(tokens, sequences);
  const Tensor scores = output({slots, experts + 1}, acc), chosen = output({slots, experts + 1}, DType::i64);
  moe_route(z, view(bias), view(replay), view(mask), view(bounds), k,
            {.score = score,
             .over_chosen = over_chosen,
             .renormalize = renormalize,
             .epsilon = epsilon,
             .scale = scale,
             .groups = groups,
             .kept_groups = kept_groups,
             .group_top = group_top},
            {.weights = view(weights),
             .indices = view(indices),
             .counts = view(counts),
             .mean_score = view(mean_score),
             .z_loss = view(z_loss),
             .stats = view(stats),
             .lengths = view(lengths)},
            view(scores), view(chosen));
  return results(weights, indices, counts, mean_score, z_loss, stats, lengths);
}

Tensor moe_route_backward_op(const Tensor& logits, const OptionalTensor& bounds, std::string score, bool over_chosen,
                             bool renormalize, double epsilon, double scale, const Tensor& indices, const Tensor& stats,
                             const Tensor& lengths, const OptionalTensor& grad_weights,
                             const OptionalTensor& grad_mean_score, const OptionalTensor& grad_z_loss) {
  Tensor grad = empty(sizes_of(logits), view(logits).dtype, logits);
  const RouteOptions options{
      .score = score, .over_chosen = over_chosen, .renormalize = renormalize, .epsilon = epsilon, .scale = scale};
  moe_route_backward(view(logits), view(bounds), options, view(indices), view(stats), view(lengths), view(grad_weights),
                     view(grad_mean_score), view(grad_z_loss), view(grad));
  return grad;
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("moe_route", boxed<moe_route_op>);
  m.impl("moe_route_backward", boxed<moe_route_backward_op>);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "moe_route(Tensor logits, Tensor? bias, Tensor? replay, Tensor? mask, Tensor? bounds, int k, str score, "
      "bool over_chosen, bool renormalize, float epsilon, float scale, int groups, int kept_groups, int group_top) -> "
      "(Tensor weights, Tensor indices, Tensor counts, Tensor mean_score, Tensor z_loss, Tensor stats, "
      "Tensor lengths)");
  m.def(
      "moe_route_backward(Tensor logits, Tensor? bounds, str score, bool over_chosen, bool renormalize, "
      "float epsilon, float scale, Tensor indices, Tensor stats, Tensor lengths, Tensor? grad_weights, "
      "Tensor? grad_mean_score, Tensor? grad_z_loss) -> (Tensor grad_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { warpup::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CUDA, m) { warpup::implement(m); }
