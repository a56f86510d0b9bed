"""The case table's entries of family `moe` from the grouped product on: the products, the activation, the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.moe import glu as moe_glu
from warpup.moe import grouped_mm as moe_grouped
from warpup.moe import moe_experts
from warpup.moe.moe_gather import moe_plan


def normal(generator, *shape, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def moved_to(device: str, inputs: Inputs) -> Inputs:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- grouped_mm -----------------------------------------------------------------------------------------------------


def grouped_mm_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(S, E, N, K). Variants: plain; uneven (empty experts, rows without one); turned (w a view of (E, K, N))."""
    rows, experts, n, k = size
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.arange(1, experts) * rows // experts
    if variant == "uneven":
        cuts = torch.randint(rows, (experts - 1,), generator=generator).sort().values
        cuts[experts // 2 :] = cuts[experts // 2]  # and the last ones empty but for the very last
    end = rows - (rows // 4 if variant == "uneven" else 0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts.clamp_max(end), torch.tensor([end])])
    w = normal(generator, experts, *((k, n) if variant == "turned" else (n, k)), dtype=dtype)
    x = normal(generator, rows, k, dtype=dtype)
    return moved_to(device, {"x": x, "w": w.mT if variant == "turned" else w, "offsets": offsets})


def grouped_mm_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    dy, made = ops.grouped_mm(x["x"], x["w"], x["offsets"]), []
    if x["x"].is_cpu and x["x"].dtype == torch.bfloat16:
        made = [
            ("grouped_product", (dy, x["w"].contiguous(), x["offsets"], None, None, False)),
            ("grouped_product", (x["x"], x["w"].contiguous(), x["offsets"], None, None, True)),
            ("grouped_product", (dy, x["x"], x["offsets"], None, None, False)),
        ]
    return [
        ("grouped_mm", (x["x"], x["w"], x["offsets"])),
        ("grouped_mm_weight", (dy, x["x"], x["offsets"])),
        *made,
    ]


# ---- glu ------------------------------------------------------------------------------------------------------------


def glu_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(S, I). Variants: the activations; weighted (silu, a weight a copy, some rows without one)."""
    rows, width = size
    generator = torch.Generator().manual_seed(seed)
    weighted = variant == "weighted"
    scale = 4 if variant == "swiglu_oai" and rows > 3 else 1  # beyond the clamps, but not where they bend
    inputs: Inputs = {"h": normal(generator, rows, 2 * width).mul(scale).to(dtype)}
    inputs["weights"] = inputs["permutation"] = None
    if weighted:
        permutation = torch.randperm(rows + 2, generator=generator)[:rows]
        permutation[rows - rows // 4 :] = -1
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        inputs |= {"weights": torch.rand(rows + 2, generator=generator).to(acc), "permutation": permutation}
    return moved_to(device, {**inputs, "activation": "silu" if weighted else variant})


def glu_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    given = (x["h"], x["weights"], x["permutation"])
    a, sums = ops.moe_glu(*given, x["activation"]), None if x["weights"] is None else torch.zeros_like(x["weights"])
    return [
        ("moe_glu", (*given, x["activation"])),
        ("moe_glu_backward", (*given, a, x["activation"], True, sums)),
    ]


def glu_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    (rows, width), dtype = x["h"].shape, name_of(x["h"].dtype)
    a, grad_h = new((rows, width // 2), dtype), new((rows, width), dtype)
    given = (x["h"], x["weights"], x["permutation"])

    def forward():
        core.moe_glu(*given, activation=x["activation"], a=a)
        return (a,)

    def backward():
        core.moe_glu_backward(*given, grad_a=gradients[0], activation=x["activation"], grad_h=grad_h)
        return (grad_h,)

    return forward, backward


# ---- moe_experts ----------------------------------------------------------------------------------------------------


def moe_experts_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(T, H, I, E, k). Variants: plain (float32 weights); dropped (copies left out, empty experts, "down"); activation
    (its placement); oai (gpt-oss: biases, transposed weights, its activation)."""
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
        inputs |= {"placement": "down"}
    if variant == "activation":
        inputs |= {"placement": "activation", "activation": "gelu_tanh"}
    if variant == "oai":
        inputs |= {"activation": "swiglu_oai", "placement": "down"}
        inputs |= {"b_gate_up": normal(generator, experts, 2 * inner, dtype=dtype)}
        inputs |= {"b_down": normal(generator, experts, width, dtype=dtype)}
    return moved_to(device, inputs)


def moe_experts_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    plan = moe_plan(x["indices"], x["w_gate_up"].shape[0])
    names = ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down")
    acc = torch.float64 if x["x"].dtype == torch.float64 else torch.float32
    tensors = tuple(x[k].to(acc) if k == "weights" else x[k] for k in names)
    rest = (
        plan.offsets, plan.permutation, plan.inverse, x.get("activation", "silu"), x.get("placement", "combine"),
    )  # fmt: skip
    out, h, o = ops.moe_experts(*tensors, *rest)
    needs = [t is not None for t in tensors]
    return [
        ("moe_experts", (*tensors, *rest)),
        ("moe_experts_backward", (out, *tensors, *rest, h, o, needs)),
    ]


def moe_experts_bytes(x: Inputs) -> tuple[int, int]:
    weights = size_of(x["w_gate_up"], x["w_down"])
    return weights + 2 * size_of(x["x"]), 2 * weights + 3 * size_of(x["x"])


CASES = [
    Case(
        op="grouped_mm",
        family="moe",
        call=warpup.grouped_mm,
        reference=moe_grouped.reference_grouped_mm,
        sizes={"grad": (7, 3, 4, 5), "small": (37, 5, 19, 22), "threads": (96, 4, 130, 70), "overhead": (4, 2, 8, 8)},
        variants=("plain", "uneven", "turned"),
        inputs=grouped_mm_inputs,
        differentiable=("x", "w"),
        raw=grouped_mm_raw,
        core=None,
        bytes=lambda x: (size_of(x["x"], x["w"]), 2 * size_of(x["x"], x["w"])),
        products=True,
    ),
    Case(
        op="moe_glu",
        family="moe",
        call=moe_glu.glu,
        reference=moe_glu.reference_glu,
        sizes={"grad": (3, 4), "small": (9, 37), "threads": (70, 1100), "overhead": (2, 8), "bench": (4096, 1408)},
        variants=(*moe_glu.ACTIVATIONS, "weighted"),
        inputs=glu_inputs,
        differentiable=("h",),
        raw=glu_raw,
        core=glu_core,
        bytes=lambda x: (3 * size_of(x["h"]) // 2, 5 * size_of(x["h"]) // 2),
    ),
    Case(
        op="moe_experts",
        family="moe",
        call=warpup.moe_experts,
        reference=moe_experts.reference_moe_experts,
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
