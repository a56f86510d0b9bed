"""The case table's entry of moe_route."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs, New, Thunk, gradients_of, name_of
from warpup import arrays
from warpup._op import accumulator
from warpup.moe.moe_route import Rule, reference_moe_route, route_rule

OPTIONS = {  # of each variant
    "plain": {},
    "renormalized": {"renormalize": True, "scale": 0.5},
    "topk_softmax": {"order": "topk_softmax"},
    "deepseek_v3": {"score": "sigmoid", "groups": (4, 2, "top2"), "renormalize": True, "scale": 2.5},
    "sqrt_softplus": {"score": "sqrt_softplus", "renormalize": True},
    "replay": {"renormalize": True, "groups": None},
    "replay_topk_softmax": {"order": "topk_softmax", "scale": 1.5},
    "sequences": {"groups": (4, 3, "topk")},
}
WEIGHING = ("score", "over_chosen", "renormalize", "epsilon", "scale")  # what the backward needs of a rule
SIZES = {  # T, E, k (a constant of a compiled function)
    "grad": (7, 8, 4),
    "small": (67, 40, 4),
    "threads": (700, 128, 8),
    "overhead": (4, 8, 2),
    "bench": (4096, 128, 8),
}


def route_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: see OPTIONS; all but plain with -inf logits; deepseek_v3 with a bias; replay with experts that come
    twice and dropped ones; sequences (ragged, an empty one) with a mask."""
    tokens, experts, k = size
    rng = torch.Generator().manual_seed(seed)
    inputs: Inputs = {
        "logits": (2 * torch.randn(tokens, experts, generator=rng, dtype=torch.float64)).to(dtype),
        "k": k,
    }
    inputs |= OPTIONS[variant]
    if variant == "deepseek_v3":
        inputs["bias"] = 0.1 * torch.randn(experts, generator=rng)
    if variant.startswith("replay"):
        inputs["replay_indices"] = torch.randint(-1, experts // 2, (tokens, k), generator=rng)
    if variant == "sequences":
        inputs["sequences"] = torch.tensor([0, tokens // 3, tokens // 3, tokens])
        inputs["token_mask"] = torch.rand(tokens, generator=rng) < 0.7
    if variant != "plain":
        inputs["logits"][::3, -1] = -torch.inf
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}


def tensors_of(x: Inputs) -> tuple:
    """bias, replay, mask, bounds as the raw ops take them."""
    acc = accumulator(x["logits"])
    return (None if (bias := x.get("bias")) is None else bias.to(acc)), *map(
        x.get, ("replay_indices", "token_mask", "sequences")
    )


def rule_of(x: Inputs) -> Rule:
    names = ("score", "order", "renormalize", "groups", "scale")
    return route_rule(x["k"], **{name: x[name] for name in names if name in x})


def route_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, rule = tensors_of(x), rule_of(x)
    arguments = (x["logits"], *tensors, x["k"], *vars(rule).values())
    weights, indices, _, mean_score, z_loss, stats, lengths = ops.moe_route(*arguments)
    backward = (
        x["logits"],
        tensors[-1],
        *(vars(rule)[name] for name in WEIGHING),
        indices,
        stats,
        lengths,
        weights,
        mean_score,
        z_loss,
    )
    return [("moe_route", arguments), ("moe_route_backward", backward)]


def route_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    logits, k, rule = x["logits"], x["k"], rule_of(x)
    (tokens, experts), dtype = tuple(logits.shape), name_of(logits.dtype)
    acc = "float64" if dtype == "float64" else "float32"
    given = {name: x[key] for name, key in (("replay", "replay_indices"), ("mask", "token_mask")) if key in x}
    if "bias" in x:
        given["bias"] = torch.as_tensor(x["bias"]).to(getattr(torch, acc))
    bounds = {"bounds": x["sequences"]} if "sequences" in x else {}
    sequences = x["sequences"].shape[0] - 1 if bounds else 1
    shapes = {
        "weights": ((tokens, k), acc), "indices": ((tokens, k), "int64"), "counts": ((sequences, experts), "int64"),
        "mean_score": ((sequences, experts), acc), "z_loss": ((), acc),
    }  # fmt: skip
    outputs = {name: new(*shape) for name, shape in shapes.items()}
    saved = {"stats": new((tokens, 2), acc), "lengths": new((sequences + 1,), "int64")}
    slots = (-(-tokens // 8) + sequences, experts + 1)  # up to 16,384 tokens
    scratch = {"slot_scores": new(slots, acc), "slot_counts": new(slots, "int64")}
    grad = new((tokens, experts), dtype)

    def squeezed():
        return outputs if bounds else outputs | {n: outputs[n][0] for n in ("counts", "mean_score")}

    def forward():
        arrays.moe_route(logits, k=k, **given, **bounds, **vars(rule), **outputs, **saved, **scratch)
        return tuple(squeezed().values())

    def backward():
        floating = ("weights", "mean_score", "z_loss")  # `run` draws for those that have a gradient, in their order
        drawn = gradients_of([torch.as_tensor(squeezed()[name]) for name in floating])
        by_name = dict(zip(floating, drawn, strict=True))
        options = {name: vars(rule)[name] for name in WEIGHING}
        by_name["mean_score"] = by_name["mean_score"].view(sequences, experts)
        grads = {f"grad_{name}": g for name, g in by_name.items()}
        arrays.moe_route_backward(
            logits, **bounds, **options, indices=outputs["indices"], **saved, **grads, grad_logits=grad
        )
        return (grad,)

    return forward, backward


def route_bytes(x: Inputs) -> tuple[int, int]:
    tokens, size = x["logits"].shape[0], x["logits"].numel() * x["logits"].element_size()
    return size + 12 * tokens * x["k"], 2 * size + 12 * tokens * x["k"]


CASES = [
    Case(
        op="moe_route",
        family="moe",
        call=warpup.moe_route,
        reference=reference_moe_route,
        sizes=SIZES,
        variants=tuple(OPTIONS),
        inputs=route_inputs,
        differentiable=("logits",),
        raw=route_raw,
        core=route_core,
        bytes=route_bytes,
    )
]
