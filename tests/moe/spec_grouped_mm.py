"""The case table's entry of grouped_mm."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs
from tests.support.inputs import moved_to, normal, size_of
from warpup.moe.grouped_mm import reference_grouped_mm


def grouped_mm_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(S, E, N, K). Variants: plain; uneven (empty experts, rows without one); transposed (w a view of (E, K, N))."""
    rows, experts, n, k = size
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.arange(1, experts) * rows // experts
    if variant == "uneven":
        cuts = torch.randint(rows, (experts - 1,), generator=generator).sort().values
        cuts[experts // 2 :] = cuts[experts // 2]  # and the last ones empty but for the very last
    end = rows - (rows // 4 if variant == "uneven" else 0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), cuts.clamp_max(end), torch.tensor([end])])
    w = normal(generator, experts, *((k, n) if variant == "transposed" else (n, k)), dtype=dtype)
    x = normal(generator, rows, k, dtype=dtype)
    return moved_to(device, {"x": x, "w": w.mT if variant == "transposed" else w, "offsets": offsets})


def grouped_mm_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    dy, offsets = ops.grouped_mm(x["x"], x["w"], x["offsets"]), x["offsets"]
    calls = [
        ("grouped_mm", (x["x"], x["w"], offsets)),
        ("grouped_mm_backward", (x["x"], x["w"], offsets, dy, [True, True])),
        ("grouped_mm_backward", (None, x["w"], offsets, dy, [True, False])),
    ]
    if x["x"].is_cpu and x["x"].dtype != torch.float64:  # the kernel under them
        w = x["w"].contiguous()
        calls += [
            ("grouped_mm_cpu", (x["x"], w, offsets, None, None, "nt")),
            ("grouped_mm_cpu", (dy, w, offsets, None, None, "nn")),
            ("grouped_mm_cpu", (dy, x["x"], offsets, None, None, "tn")),
        ]
    return calls


CASES = [
    Case(
        op="grouped_mm",
        family="moe",
        call=warpup.grouped_mm,
        reference=reference_grouped_mm,
        sizes={"grad": (7, 3, 4, 5), "small": (37, 5, 19, 22), "threads": (96, 4, 130, 70), "overhead": (4, 2, 8, 8)},
        variants=("plain", "uneven", "transposed"),
        inputs=grouped_mm_inputs,
        differentiable=("x", "w"),
        raw=grouped_mm_raw,
        core=None,
        bytes=lambda x: (size_of(x["x"], x["w"]), 2 * size_of(x["x"], x["w"])),
        products=True,
    ),
]
