"""The case table's entry of moe_experts."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs
from tests.support.inputs import moved_to, normal, size_of
from warpup.moe.grouped_mm import cpu_kernels
from warpup.moe.moe_experts import reference_moe_experts
from warpup.moe.moe_plan import moe_plan


def moe_experts_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(T, H, I, E, k). Variants: plain (float32 weights); dropped (copies left out, empty experts, "down"); activation
    (its weight placement); oai (gpt-oss: biases, transposed weights, its activation)."""
    tokens, width, inner, experts, k = size
    generator = torch.Generator().manual_seed(seed)

    def matrix(n, m):
        if variant == "oai":
            return (normal(generator, experts, m, n) / m**0.5).to(dtype).mT
        return (normal(generator, experts, n, m) / m**0.5).to(dtype)

    acc = torch.float64 if dtype == torch.float64 else torch.float32
    inputs: Inputs = {
        "x": normal(generator, tokens, width, dtype=dtype),
        "weights": torch.rand(tokens, k, generator=generator).to(acc if variant == "plain" else dtype),
        "indices": torch.rand(tokens, experts, generator=generator).topk(k).indices,
        "w_gate_up": matrix(2 * inner, width),
        "w_down": matrix(width, inner),
        "b_gate_up": None,
        "b_down": None,
    }
    if variant == "dropped":
        inputs["indices"] = torch.where(inputs["indices"] % 3 == 1, -1, inputs["indices"])
        inputs |= {"weight_placement": "down"}
    if variant == "activation":
        inputs |= {"weight_placement": "activation", "activation": "gelu_tanh"}
    if variant == "oai":
        inputs |= {"activation": "swiglu_oai", "weight_placement": "down"}
        inputs |= {"b_gate_up": normal(generator, experts, 2 * inner, dtype=dtype)}
        inputs |= {"b_down": normal(generator, experts, width, dtype=dtype)}
    return moved_to(device, inputs)


def moe_experts_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    plan = moe_plan(x["indices"], x["w_gate_up"].shape[0])
    acc = torch.float64 if x["x"].dtype == torch.float64 else torch.float32
    tensors = (x["x"], x["weights"].to(acc), x["w_gate_up"], x["w_down"])
    biases = (x["b_gate_up"], x["b_down"])
    rest = (
        plan.offsets, plan.permutation, plan.inverse, *biases, x.get("activation", "silu"),
        x.get("weight_placement", "combine"),
    )  # fmt: skip
    library = cpu_kernels.get(x["x"].dtype) is None
    out, h, o = ops.moe_experts(*tensors, *rest, library)
    needs = [t is not None for t in (*tensors, *biases)]
    return [
        ("moe_experts", (*tensors, *rest, library)),
        ("moe_experts_backward", (*tensors, *rest, h, o, out, needs)),
    ]


def moe_experts_bytes(x: Inputs) -> tuple[int, int]:
    weights = size_of(x["w_gate_up"], x["w_down"])
    return weights + 2 * size_of(x["x"]), 2 * weights + 3 * size_of(x["x"])


CASES = [
    Case(
        op="moe_experts",
        family="moe",
        call=warpup.moe_experts,
        reference=reference_moe_experts,
        sizes={
            "grad": (5, 3, 6, 4, 2),  # the number of experts is a constant of a compiled graph
            "small": (11, 22, 19, 4, 2),
            "threads": (64, 70, 66, 5, 3),
            "overhead": (2, 8, 8, 2, 1),
            "bench": (512, 2048, 1408, 64, 6),
        },
        variants=("plain", "dropped", "activation", "oai"),
        inputs=moe_experts_inputs,
        differentiable=("x", "weights", "w_gate_up", "w_down"),
        raw=moe_experts_raw,
        core=None,
        bytes=moe_experts_bytes,
        products=True,
    ),
]
