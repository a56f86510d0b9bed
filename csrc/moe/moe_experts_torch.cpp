// torch op of moe_experts' forward on a CPU: the kernels of grouped_mm, glu and moe_combine in one call. Its backward,
// and what a GPU runs, is composed in python/warpup/moe/moe_experts.py.
#include <cstring>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "moe/expert_bias.h"
#include "moe/glu_check.h"
#include "moe/grouped_mm_check.h"
#include "moe/moe_gather_check.h"
#include "torch/product.h"

#ifndef WARPUP_HOST_CUDA

namespace warpup {
namespace {

// The rows of the plan by expert, and how their products are made.
struct Groups {
  View offsets;
  bool library;  // one library product an expert, in place of our kernel

  int64_t experts() const { return offsets.sizes[0] - 1; }
  const int64_t* bounds() const { return data<const int64_t>(offsets); }
};

// Rows `at` of `a`, one after the other in `to`.
void gather(const View& a, const int64_t* at, int64_t rows, std::byte* to) {
  const int64_t row = a.sizes[1] * bytes_of(a.dtype), step = a.strides[0] * bytes_of(a.dtype);
  const auto* from = static_cast<const std::byte*>(a.data);
  parallel_for(0, rows, (1 << 16) / (row + 1) + 1, [&](int64_t s, int64_t last) {
    for (; s < last; ++s) std::memcpy(to + s * row, from + at[s] * step, row);
  });
}

// (rows, N): row s of expert e is a[s] b[e]^T, or a[at[s]] b[e]^T; 0 in rows that are in no group.
Tensor product(const View& a, const View& b, const Groups& groups, const OptionalView& at, const Tensor& like) {
  Tensor out = empty({at ? at->sizes[0] : a.sizes[0], b.sizes[1]}, a.dtype, like);
  const View to = view(out);
  if (!groups.library) {
    const bool nn = b.strides[2] != 1 && b.strides[1] == 1;  // b^T is as it is in memory
    grouped_mm(a, nn ? transposed(b) : b, groups.offsets, at, {}, nn ? "nn" : "nt", to);
    return out;
  }
  const int64_t* bounds = groups.bounds();
  int64_t most = 0;
  for (int64_t e = 0; e < groups.experts(); ++e) most = std::max(most, bounds[e + 1] - bounds[e]);
  const Tensor gathered = empty({at ? most : 0, a.sizes[1]}, a.dtype, like);
  for (int64_t e = 0; e < groups.experts(); ++e) {
    const int64_t first = bounds[e], last = bounds[e + 1];
    if (first == last) continue;
    View rows = at ? rows_of(view(gathered), 0, last - first) : rows_of(a, first, last);
    if (at) gather(a, data<const int64_t>(*at) + first, last - first, static_cast<std::byte*>(rows.data));
    View matrix = rows_of(b, e, e + 1);
    for (int d : {0, 1}) matrix.sizes[d] = matrix.sizes[d + 1], matrix.strides[d] = matrix.strides[d + 1];
    matrix.dims = 2;
    library_product(rows, transposed(matrix), {}, rows_of(to, first, last));
  }
  const View rest = rows_of(to, bounds[groups.experts()], to.sizes[0]);
  std::memset(rest.data, 0, rest.numel() * bytes_of(rest.dtype));
  return out;
}

void add_bias(const OptionalTensor& bias, const Groups& groups, const OptionalView& weights, const View& permutation,
              const Tensor& y) {
  if (!bias) return;
  const View to = view(y), b = view(*bias);
  Argument("moe_experts", "bias", b).dtype({to.dtype}).shape({groups.experts(), to.sizes[1]}).contiguous();
  dispatch_floating("moe_experts", "x", to.dtype, [&]<class T>() {
    add_expert_bias<T>({groups.experts(), to.sizes[1], groups.bounds(), data<const int64_t>(permutation),
                        data<const acc_t<T>>(weights), data<const T>(b), data<T>(to)});
  });
}

std::tuple<Tensor, Tensor, Tensor> moe_experts_op(const Tensor& x, const Tensor& weights, const Tensor& w_gate_up,
                                                  const Tensor& w_down, const Tensor& offsets,
                                                  const Tensor& permutation, const Tensor& inverse,
                                                  const OptionalTensor& b_gate_up, const OptionalTensor& b_down,
                                                  std::string activation, std::string weight_placement, bool library) {
  const char* op = "moe_experts";
  const View tokens = view(x), plan = view(permutation), copies = view(inverse), w = view(weights);
  const Groups groups{view(offsets), library};
  // The plan, whose rows are read here; each kernel checks what it is given.
  Argument(op, "x", tokens).dims(2).unit_stride_last();
  const View up = view(w_gate_up), down = view(w_down);
  Argument(op, "w_gate_up", up).dtype({tokens.dtype}).dims(3);
  Argument(op, "w_gate_up", up).shape({up.sizes[0], up.sizes[1], tokens.sizes[1]});
  Argument(op, "w_down", down).dtype({tokens.dtype}).shape({up.sizes[0], tokens.sizes[1], up.sizes[1] / 2});
  Argument(op, "offsets", groups.offsets).dtype({DType::i64}).shape({up.sizes[0] + 1}).contiguous();
  Argument(op, "permutation", plan).dtype({DType::i64}).dims(1).contiguous();
  Argument(op, "inverse", copies).dtype({DType::i64}).dims(2).contiguous();
  const int64_t rows = plan.sizes[0], k = std::max<int64_t>(copies.sizes[1], 1);

  Tensor token_of = empty({rows}, DType::i64, x);
  const auto *copy = data<const int64_t>(plan), *bounds = groups.bounds();
  auto* token = data<int64_t>(view(token_of));
  for (int64_t s = 0; s < rows; ++s) token[s] = copy[s] < 0 ? -1 : copy[s] / k;
  bool rising = bounds[0] == 0 && bounds[groups.experts()] <= rows;
  for (int64_t e = 0; e < groups.experts(); ++e) rising = rising && bounds[e] <= bounds[e + 1];
  if (!rising) fail(op, ": offsets must rise from 0 to at most ", rows);
  for (int64_t s = 0; s < bounds[groups.experts()]; ++s) {
    if (token[s] < 0 || token[s] >= tokens.sizes[0]) {
      fail(op, ": permutation must hold the copies of ", tokens.sizes[0], " tokens, got ", copy[s], " in row ", s);
    }
  }

  Tensor h = product(tokens, up, groups, view(token_of), x);
  add_bias(b_gate_up, groups, {}, plan, h);
  const bool early = weight_placement == "activation";
  View flat = w;  // one weight a copy
  flat.dims = 1, flat.sizes[0] = w.numel(), flat.strides[0] = 1;
  Argument(op, "weights", w).shape_like(copies, 2).contiguous();
  const OptionalView on_a = early ? OptionalView(flat) : std::nullopt;
  const Tensor a = empty({rows, view(h).sizes[1] / 2}, tokens.dtype, x);
  glu(view(h), on_a, early ? OptionalView(plan) : std::nullopt, activation, view(a));
  Tensor o = product(view(a), down, groups, {}, x), out = empty(sizes_of(x), tokens.dtype, x);
  add_bias(b_down, groups, on_a, plan, o);
  moe_combine(view(o), early ? std::nullopt : OptionalView(w), copies, view(out));
  if (weight_placement != "combine") o = empty({0}, tokens.dtype, x);  // the backward has no use for it
  return results(out, h, o);
}

}  // namespace
}  // namespace warpup

STABLE_TORCH_LIBRARY_FRAGMENT(WARPUP_NAMESPACE, m) {
  m.def(
      "moe_experts(Tensor x, Tensor weights, Tensor w_gate_up, Tensor w_down, Tensor offsets, Tensor permutation, "
      "Tensor inverse, Tensor? b_gate_up=None, Tensor? b_down=None, str activation=\"silu\", "
      "str weight_placement=\"combine\", bool library=False) -> (Tensor out, Tensor h, Tensor o)");
}

STABLE_TORCH_LIBRARY_IMPL(WARPUP_NAMESPACE, CPU, m) { m.impl("moe_experts", warpup::boxed<warpup::moe_experts_op>); }

#endif
