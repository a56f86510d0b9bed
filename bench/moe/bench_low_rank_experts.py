"""low_rank_experts: adapters of peft on fused experts, forward and backward, beside peft's own way.

The yardsticks compute the layer without adapters, its weights frozen (what the adapters are put on) or all trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import nn

from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from tests.support.cases import OPS, gradients_of

RANK, ALPHA = 16, 32
# H, I, E, k. peft makes several tensors of the weights' size: on a CPU a layer that is small enough for that.
LAYERS = {"cpu": {"Granite-1B-A400M": (1024, 512, 32, 8)}, "cuda": {"Qwen3-30B-A3B": (2048, 768, 128, 8)}}
TOKENS = {"cpu": 1024, "cuda": 8192, "quick": 20}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
WEIGHTS = {"gate_up_proj": "w_gate_up", "down_proj": "w_down"}  # transformers' name: ours
FROZEN, TRAINED, PEFT = "the layer, frozen", "the layer, trained", "peft"


def cases(device: str, size: str) -> Iterator[Comparison]:
    layers = {"tiny": (16, 24, 4, 2)} if size == "quick" else LAYERS[device]
    goals = {} if size == "quick" else {FROZEN: 1 / 1.15, PEFT: 1.0}
    for name, layer in layers.items():
        shape = (TOKENS[size], *layer)
        label = f"low_rank_experts forward+backward {name} {list(shape)}, rank {RANK}"
        yield Comparison(label, partial(layer_with_adapters, device, shape), goals)


def test_low_rank_experts(case, measure):
    measure(case)


@lru_cache(1)
def inputs_of(device, shape):
    x = OPS["moe_experts"].inputs(shape, DTYPES[device], device, 0, "plain")
    return {k: x[k] for k in ("x", "weights", "indices", *WEIGHTS.values())}


def adapted(device, shape, change) -> tuple[nn.Module, dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    """transformers' module of experts on the inputs' weights with peft's adapters on both, and their factors A and B:
    (E r, in) and (out, r E)."""
    import peft
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    import warpup.integrations.transformers_moe  # noqa: F401

    _, width, inner, experts, k = shape
    config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=inner, num_experts=experts, num_experts_per_tok=k)
    config._experts_implementation = "warpup"
    layer, x = nn.Module(), inputs_of(device, shape)
    with torch.device("meta"):
        layer.experts = Qwen3MoeExperts(config)
    for name, weight in WEIGHTS.items():
        setattr(layer.experts, name, nn.Parameter(x[weight], requires_grad=False))
    options = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=[], target_parameters=[f"experts.{name}" for name in WEIGHTS]
    )
    layer = change(peft.inject_adapter_in_model(options, layer).to(device))
    wrappers = {m.parameter_name: m for m in layer.modules() if hasattr(m, "parameter_name")}
    factors = {name: (wrappers[name].lora_A.default.weight, wrappers[name].lora_B.default.weight) for name in WEIGHTS}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flat(factors):
            p.copy_(torch.randn(p.shape, generator=generator) * p.shape[1] ** -0.5)
    return layer, factors


def flat(factors) -> list[nn.Parameter]:
    return [p for pair in factors.values() for p in pair]


def results_of(device, shape):
    """The output and the gradients of x, the weights and the adapters, with W + scaling B A made whole in float64."""
    x = inputs_of(device, shape)
    _, factors = adapted(device, shape, lambda layer: layer)
    factors = {name: [p.detach().double().requires_grad_() for p in pair] for name, pair in factors.items()}
    rows, weights = (x[name].double().requires_grad_() for name in ("x", "weights"))
    whole, experts = [], shape[3]
    for name, (a, b) in factors.items():
        delta = torch.einsum("ore,eri->eoi", b.view(len(b), RANK, experts), a.view(experts, RANK, -1))
        whole.append(x[WEIGHTS[name]].double() + ALPHA / RANK * delta)
    out = OPS["moe_experts"].reference(rows, weights, x["indices"], *whole)
    (g,) = gradients_of([x["x"]])
    return out.detach(), *torch.autograd.grad(out, [rows, weights, *flat(factors)], g.double())


def both_ways(x, call, trained, **options) -> Candidate:
    """`call(x, weights)` and the gradients of both and of `trained`."""
    (g,) = gradients_of([x["x"]])

    def run(rows, weights):
        out = call(rows, weights)
        return out.detach(), *torch.autograd.grad(out, [rows, weights, *trained], g)

    return Candidate(run, setup=lambda: tuple(x[k].detach().requires_grad_() for k in ("x", "weights")), **options)


def layer_with_adapters(device, shape) -> Work:
    from warpup import moe_experts
    from warpup.integrations.transformers_moe import low_rank_experts

    x = inputs_of(device, shape)
    candidates = {}
    for name, change in (("warpup", low_rank_experts), (PEFT, lambda layer: layer)):
        layer, factors = adapted(device, shape, change)
        call = partial(lambda layer, rows, weights: layer.experts(rows, x["indices"], weights), layer)
        candidates[name] = both_ways(x, call, flat(factors))
    matrices = [x[name] for name in WEIGHTS.values()]
    for name, own in ((FROZEN, matrices), (TRAINED, [w.detach().requires_grad_() for w in matrices])):

        def plain(rows, weights, own=own):
            return moe_experts(rows, weights, x["indices"], *own, weight_placement="down")

        candidates[name] = both_ways(x, plain, own if name == TRAINED else [], result=None)
    tokens, width, inner, _, k = shape
    products = 3 * width * inner * 2 + RANK * (2 * width + 3 * inner) * 3  # adapters have gradients, the weights none
    return Work(
        candidates,
        bytes=sum(w.nbytes for w in matrices) * 2,
        reference=lambda: results_of(device, shape),
        flops=2 * tokens * k * products,
        dtype=DTYPES[device],
    )
