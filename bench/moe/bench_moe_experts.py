"""moe_experts: the experts of a layer beside transformers' implementations of them, and their products in one piece.

transformers' eager loop takes minutes at these sizes (its backward is quadratic in the experts), and so do its
`grouped_mm` and `batched_mm` in bfloat16 on a CPU without instructions for it: they are peers where WARPUP_BENCH_SLOW
is set. `batched_mm`, which copies an expert's matrices for each of its tokens, is for few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from types import SimpleNamespace

import torch

from bench.harness.measure import Comparison, Work, differentiable, expected, moved
from bench.harness.timing import Candidate
from bench.peers import SLOW, slow_products
from tests.support.cases import OPS, gradients_of
from warpup._products import widened
from warpup.moe.moe_plan import moe_plan

LAYERS = {"DeepSeekMoE-16B": (2048, 1408, 64, 6), "Qwen3-30B-A3B": (2048, 768, 128, 8)}  # H, I, E, k
TOKENS = {"cpu": 512, "cuda": 8192}
FEW = 8  # tokens of a step that samples
GROUPED, BATCHED, EAGER = (f"transformers {name}" for name in ("grouped_mm", "batched_mm", "eager"))
PRODUCTS = "its GEMMs, one expert"
BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = {BF16: "bf16", FP32: "fp32"}
WEIGHTS = ("w_gate_up", "w_down")
WRT = ("x", "weights", *WEIGHTS)


def cases(device: str, size: str) -> Iterator[Comparison]:
    layers = {"tiny": (16, 24, 4, 2)} if size == "quick" else LAYERS
    many = TOKENS.get(size, 20)
    both = "forward+backward"
    forms = [(many, BF16, "forward"), (many, BF16, both), (many, FP32, both), (FEW, BF16, "forward")]
    forms += [(FEW, FP32, "forward")] if device == "cpu" else []
    for name, (width, inner, experts, k) in layers.items():
        for tokens, dtype, direction in forms:
            shape = (tokens, width, inner, experts, k)
            goals = {GROUPED: 2.5, PRODUCTS: 0.5, EAGER: 20} if (tokens, dtype, direction) == (512, BF16, both) else {}
            label = f"moe_experts {direction} {DTYPES[dtype]} {name} {list(shape)}"
            yield Comparison(label, partial(layer, device, shape, dtype, direction), goals)


def test_moe_experts(case, measure):
    measure(case)


@lru_cache(1)  # the cases of one layer follow each other
def inputs_of(device, shape, dtype):
    x = OPS["moe_experts"].inputs(shape, dtype, device, 0, "plain")
    return {k: x[k] for k in ("x", "weights", "indices", *WEIGHTS)}


@lru_cache(1)
def results_of(device, shape, dtype):
    """The output and the gradients, an expert at a time in float64; kept in float32, which is nearer than bfloat16."""
    x = inputs_of(device, shape, dtype)
    tokens, k = x["indices"].shape
    plan = moe_plan(x["indices"], shape[3])
    copies = plan.permutation
    (g,) = (t.double() for t in gradients_of([x["x"]]))
    out, grad_x = (torch.zeros(tokens, shape[1], dtype=torch.float64, device=device) for _ in range(2))
    grad_weights = torch.zeros(tokens * k, dtype=torch.float64, device=device)
    grads = [torch.zeros(x[name].shape, device=device) for name in WEIGHTS]
    for e, (a, b) in enumerate(pairwise(plan.offsets.tolist())):
        at = copies[a:b]
        mine = [x["x"][at // k], x["weights"].flatten()[at], *(x[name][e] for name in WEIGHTS)]
        mine = [t.double().requires_grad_() for t in mine]
        gate, up = (mine[0] @ mine[2].t()).chunk(2, -1)
        y = (torch.nn.functional.silu(gate) * up) @ mine[3].t() * mine[1].unsqueeze(1)
        found = torch.autograd.grad(y, mine, g[at // k])
        out.index_add_(0, at // k, y.detach()), grad_x.index_add_(0, at // k, found[0])
        grad_weights[at] = found[1]
        for grad, part in zip(grads, found[2:], strict=True):
            grad[e] = part
    return tuple(t.float() for t in (out, grad_x, grad_weights.view(tokens, k), *grads))


def transformers_peers(few: bool):
    """Their functions on our tensors, without a model around them."""
    from transformers.integrations import moe
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def peer(function):
        def call(x, weights, indices, w_gate_up, w_down):
            experts = SimpleNamespace(
                gate_up_proj=w_gate_up, down_proj=w_down, num_experts=len(w_down), act_fn=torch.nn.functional.silu,
                has_gate=True, has_bias=False, has_post_expert_norm=False, is_transposed=False,
                _is_expert_parallel=False,
            )  # fmt: skip
            experts._apply_gate = partial(moe._default_apply_gate, experts)
            return function(experts, x, indices, weights.to(x.dtype))

        return call

    peers = {GROUPED: peer(moe.grouped_mm_experts_forward)}
    if few:
        peers[BATCHED] = peer(moe.batched_mm_experts_forward)
    if few or SLOW:
        peers[EAGER] = peer(Qwen3MoeExperts.forward.__wrapped__)
    return peers


def products(x, direction) -> Candidate:
    """As many operations in products of all copies with one expert's matrices, on memory that is there; in float32
    where the library is slow at bfloat16."""
    rows = x["x"].repeat_interleave(x["indices"].shape[1], 0)
    rows, up, down = widened(rows, *(x[name][0] for name in WEIGHTS))
    h = rows @ up.t()
    a, d_up, d_down = h[:, : down.shape[1]].contiguous(), torch.empty_like(up), torch.empty_like(down)
    out, d_rows, d_a = torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(a)

    def run():
        torch.mm(rows, up.t(), out=h)
        torch.mm(a, down.t(), out=out)
        if "backward" in direction:
            torch.mm(out, down, out=d_a)
            torch.mm(out.t(), a, out=d_down)
            torch.mm(h, up, out=d_rows)
            torch.mm(h.t(), rows, out=d_up)

    return Candidate(run, result=None)


def layer(device, shape, dtype, direction) -> Work:
    op, x = OPS["moe_experts"], inputs_of(device, shape, dtype)
    tokens, width, inner, _, k = shape
    flops = 2 * tokens * k * 3 * width * inner * (3 if "backward" in direction else 1)
    peers, left_out = slow_products(transformers_peers(tokens == FEW), dtype, device, flops)
    functions = {"warpup": op.call, "warpup, down": partial(op.call, weight_placement="down")} | peers
    candidates = {name: differentiable(f, x, WRT, direction) for name, f in functions.items()}
    candidates[PRODUCTS] = products(x, direction)
    chosen = len(x["indices"].unique())  # few tokens do not choose all, and the others' matrices are not read
    read = {name: x[name][:chosen] for name in WEIGHTS}
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(x | read)),
        reference=lambda: expected(direction, results_of(device, shape, dtype), len(WRT)),
        flops=flops,
        dtype=dtype,
        left_out=left_out,
    )
