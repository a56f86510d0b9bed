#include "moe/moe_route_check.h"

#include "core/dispatch.h"
#include "core/option_check.h"
#include "moe/moe_route.h"

namespace warpup {

namespace {

RouteScore route_score_of(const char* op, const std::string& name) {
  if (name == "softmax") return RouteScore::softmax;
  if (name == "sigmoid") return RouteScore::sigmoid;
  if (name == "sqrt_softplus") return RouteScore::sqrt_softplus;
  fail(op, ": score must be softmax, sigmoid or sqrt_softplus, got ", name);
}

template <class T>
MoeRouteArgs<T> moe_route_args(const char* op, const View& logits, const OptionalView& bounds, int64_t k,
                               const RouteOptions& o) {
  MoeRouteArgs<T> args{};
  args.tokens = logits.sizes[0], args.experts = logits.sizes[1], args.k = k;
  args.sequences = bounds ? bounds->sizes[0] - 1 : 1;
  args.logits = data<const T>(logits), args.stride = logits.strides[0];
  args.score = route_score_of(op, o.score);
  args.over_chosen = o.over_chosen, args.renormalize = o.renormalize;
  args.epsilon = o.epsilon, args.scale = o.scale;
  args.groups = o.groups, args.kept_groups = o.kept_groups, args.group_top = o.group_top;
  if (args.experts < 1 || args.experts > kMaxExperts) {
    fail(op, ": logits must be of 1 to ", kMaxExperts, " experts, got ", args.experts);
  }
  if (k < 1 || k > args.experts) fail(op, ": k must be in [1, ", args.experts, "], got ", k);
  if (o.over_chosen && args.score != RouteScore::softmax) {
    fail(op, ": order topk_softmax needs score softmax, got ", o.score);
  }
  if (!(o.epsilon >= 0)) fail(op, ": epsilon must be at least 0, got ", o.epsilon);
  finite_option<acc_t<T>>(op, "scale", o.scale);
  if (o.groups != 0) {
    if (o.groups < 1 || o.groups > kMaxGroups || args.experts % o.groups != 0) {
      fail(op, ": groups must be 1 to ", kMaxGroups, " and divide the ", args.experts, " experts, got ", o.groups);
    }
    const int64_t size = args.experts / o.groups;
    if (o.kept_groups < 1 || o.kept_groups > o.groups || o.kept_groups * size < k) {
      fail(op, ": the groups kept must be in [1, ", o.groups, "] and have k = ", k, " experts, got ", o.kept_groups,
           " of ", size);
    }
    if (o.group_top < 1 || o.group_top > size) {
      fail(op, ": a group of ", size, " experts cannot be scored by its top ", o.group_top);
    }
  }
  if (bounds) {
    Argument(op, "sequences", *bounds).dtype({DType::i64}).on(logits.device).dims(1).contiguous();
    args.bounds = data<const int64_t>(*bounds);
    bool spans = args.sequences >= 0;
    if (!logits.device.cuda && spans) {
      spans = args.bounds[0] == 0 && args.bounds[args.sequences] == args.tokens;
      for (int64_t b = 0; b < args.sequences; ++b) spans = spans && args.bounds[b] <= args.bounds[b + 1];
    }
    if (!spans) fail(op, ": sequences must ascend from 0 to the ", args.tokens, " tokens");
  }
  return args;
}

template <class V>
V* route_array(const char* op, const char* name, const View& v, const Device& device,
               std::initializer_list<int64_t> shape) {
  Argument(op, name, v).dtype({dtype_of<std::remove_const_t<V>>()}).on(device).shape(shape).contiguous();
  return data<V>(v);
}

template <class V>
V* route_array(const char* op, const char* name, const OptionalView& v, const Device& device,
               std::initializer_list<int64_t> shape) {
  return v ? route_array<V>(op, name, *v, device, shape) : nullptr;
}

// On a GPU this would synchronize. indices may be null.
void check_experts(const char* op, const char* name, const int64_t* indices, int64_t tokens, int64_t k, int64_t experts,
                   const Device& device) {
  for (int64_t i = 0; indices && !device.cuda && i < tokens * k; ++i) {
    if (indices[i] < -1 || indices[i] >= experts) {
      fail(op, ": ", name, "[", i / k, ", ", i % k, "] = ", indices[i], " is outside [-1, ", experts, ")");
    }
  }
}

}  // namespace

void moe_route(const View& logits, const OptionalView& bias, const OptionalView& replay, const OptionalView& mask,
               const OptionalView& bounds, int64_t k, const RouteOptions& options, const RouteResults& out,
               const View& slot_scores, const View& slot_counts) {
  const char* op = "moe_route";
  Argument(op, "logits", logits).dims(2).unit_stride_last();
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    const Device& device = logits.device;
    auto args = moe_route_args<T>(op, logits, bounds, k, options);
    const auto array = [&]<class V>(V** to, const char* name, const auto& v, std::initializer_list<int64_t> shape) {
      *to = route_array<V>(op, name, v, device, shape);
    };
    const int64_t tokens = args.tokens, experts = args.experts, sequences = args.sequences;
    array(&args.bias, "bias", bias, {experts});
    array(&args.replay, "replay_indices", replay, {tokens, k});
    check_experts(op, "replay_indices", args.replay, tokens, k, experts, device);
    array(&args.mask, "token_mask", mask, {tokens});
    array(&args.weights, "weights", out.weights, {tokens, k});
    array(&args.indices, "indices", out.indices, {tokens, k});
    array(&args.counts, "counts", out.counts, {sequences, experts});
    array(&args.mean_score, "mean_score", out.mean_score, {sequences, experts});
    array(&args.z_loss, "z_loss", out.z_loss, {});
    array(&args.stats, "stats", out.stats, {tokens, 2});
    array(&args.lengths, "lengths", out.lengths, {sequences + 1});
    const int64_t slots = RouteChunks::slots(tokens, sequences);
    array(&args.slot_scores, "slot_scores", slot_scores, {slots, experts + 1});
    array(&args.slot_counts, "slot_counts", slot_counts, {slots, experts + 1});
    WARPUP_RUN(moe_route, T, device, args);
  });
}

void moe_route_backward(const View& logits, const OptionalView& bounds, const RouteOptions& options,
                        const View& indices, const View& stats, const View& lengths, const OptionalView& grad_weights,
                        const OptionalView& grad_mean_score, const OptionalView& grad_z_loss, const View& grad_logits) {
  const char* op = "moe_route_backward";
  Argument(op, "logits", logits).dims(2).unit_stride_last();
  Argument(op, "indices", indices).dims(2);
  dispatch_floating(op, "logits", logits.dtype, [&]<class T>() {
    using Acc = acc_t<T>;
    const Device& device = logits.device;
    MoeRouteBackwardArgs<T> args{};
    args.forward = moe_route_args<T>(op, logits, bounds, indices.sizes[1], options);
    MoeRouteArgs<T>& f = args.forward;
    f.indices = route_array<int64_t>(op, "indices", indices, device, {f.tokens, f.k});
    check_experts(op, "indices", f.indices, f.tokens, f.k, f.experts, device);
    f.stats = route_array<Acc>(op, "stats", stats, device, {f.tokens, 2});
    f.lengths = route_array<int64_t>(op, "lengths", lengths, device, {f.sequences + 1});
    args.grad_weights = route_array<const Acc>(op, "grad_weights", grad_weights, device, {f.tokens, f.k});
    args.grad_mean_score =
        route_array<const Acc>(op, "grad_mean_score", grad_mean_score, device, {f.sequences, f.experts});
    args.grad_z_loss = route_array<const Acc>(op, "grad_z_loss", grad_z_loss, device, {});
    args.grad_logits = route_array<T>(op, "grad_logits", grad_logits, device, {f.tokens, f.experts});
    WARPUP_RUN(moe_route_backward, T, device, args);
  });
}

}  // namespace warpup
