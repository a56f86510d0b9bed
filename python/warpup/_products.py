"""Matrix products in 16 bits where the CPU's library is slow at them.

Without instructions for it, torch's product of bfloat16 or float16 matrices is slower than that of float32 by a factor
of 3 (`x @ w.T`) to 100 (`x @ w`), seen on a Zen 3. There the operands are converted to float32, piece by piece, the
product is made and summed in float32, and rounded once. Which CPUs have a fast product is a table, not a measurement:
`library_has`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor

CUT = 2048  # rows, columns and depth of a piece: three pieces of 16 MiB at most, each converted once in 2048 uses

# What says that a CPU can multiply matrices of a dtype, the fastest first. AVX512-FP16 is not here: on Sapphire Rapids
# torch's product in float16 does 77 GFLOP/s, in float32 107.
INSTRUCTIONS = {
    torch.bfloat16: {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"},
    torch.float16: {"AMX-FP16": "_is_amx_fp16_supported"},
}
# Of these, what this CPU has. Asked once: torch.compile cannot trace the question.
AVAILABLE = {
    dtype: [name for name, probe in probes.items() if getattr(torch.cpu, probe, bool)()]
    for dtype, probes in INSTRUCTIONS.items()
}
PATHS = ("library", "float32")


def path_of(value: str | None) -> str | None:
    """What WARPUP_PRODUCTS asks for on a CPU: "library", torch's product in the dtype of the operands; "float32", by
    conversion; None where it is not set. ValueError on anything else."""
    if value not in (None, "", *PATHS):
        raise ValueError(f"WARPUP_PRODUCTS: expected {' or '.join(PATHS)}, got {value!r}")
    return value or None


FORCED = path_of(os.environ.get("WARPUP_PRODUCTS"))  # read once, not in each product


def library_has(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's product in this dtype is not slower than in float32."""
    if device.type != "cpu" or dtype not in AVAILABLE:
        return True
    return FORCED == "library" or (FORCED is None and bool(AVAILABLE[dtype]))


def widened(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The operands of a product as they are, or in float32 where the library is slow at theirs."""
    return tuple(t if t is None or library_has(t.dtype, t.device) else t.float() for t in tensors)


def widest(function: Callable) -> Callable:
    """`function` with its tensors in float32 where the library is slow at the 16 bits of the first of them; what it
    gives, a tensor or a tuple of tensors or None, is rounded to these."""

    @wraps(function)
    def call(*arguments):
        like = next(t for t in arguments if isinstance(t, Tensor))
        if library_has(like.dtype, like.device):
            return function(*arguments)
        wide = (t.float() if isinstance(t, Tensor) else t for t in arguments)
        found = function(*wide)
        if isinstance(found, Tensor):
            return found.to(like.dtype)
        return tuple(t if t is None else t.to(like.dtype) for t in found)

    return call


def mm(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """out = a @ b + bias, all of one dtype; bias (columns,)."""
    if library_has(a.dtype, a.device):
        return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)
    for rows in _cut(a.shape[0]):
        for columns in _cut(b.shape[1]):
            part = out[rows, columns]
            total = torch.zeros(part.shape) if bias is None else bias[columns].float().repeat(part.shape[0], 1)
            _add(total, a[rows], b[:, columns])
            part.copy_(total)
    return out


def add_mm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where total is in the accumulator's type; never with a second total beside it."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif library_has(a.dtype, a.device):
        for part, rows in zip(total.split(4096), a.split(4096), strict=True):
            part += torch.mm(rows, b, out_dtype=total.dtype) if a.is_cuda else torch.mm(rows, b)
    else:
        for rows in _cut(a.shape[0]):
            for columns in _cut(b.shape[1]):
                _add(total[rows, columns], a[rows], b[:, columns])


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    for depth in _cut(a.shape[1]):
        total.addmm_(a[:, depth].float(), b[depth].float())


def _cut(n: int) -> Iterator[slice]:
    """[0, n) in equal parts of CUT at most."""
    parts = max(1, -(-n // CUT))
    each = max(1, -(-n // parts))
    return (slice(i, min(i + each, n)) for i in range(0, n, each))
