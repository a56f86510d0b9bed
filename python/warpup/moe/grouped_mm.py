"""Products grouped by expert: rows sorted by expert, and a matrix for each expert.

`grouped_mm` is the public operator, with gradients; `products` and `weight_products` are its forward and its weights'
gradient without autograd, and `grouped_product` is the CPU kernel in bfloat16 that both may end in.

On a CPU in bfloat16 a kernel of our own, for experts with few rows (csrc/moe/grouped_product.h), else one library
product an expert, each into its slice of one result; on a GPU torch's grouped product where the
hardware has one, else the Triton kernels of `moe_triton.py`. Rows may be taken from where they lie, unsorted: what an
expert needs of them is gathered when it is its turn, so that the sorted copies never exist as a whole.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from warpup import _op
from warpup._op import autocast, once_differentiable

library = torch.library.Library("warpup", "FRAGMENT")
library.define("grouped_mm(Tensor x, Tensor w, Tensor offsets) -> Tensor")
library.define("grouped_mm_weight(Tensor dy, Tensor x, Tensor offsets) -> Tensor")
_op.raw("grouped_mm", "grouped_mm_weight", "grouped_product")


def reference_grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """`grouped_mm` in plain torch."""
    parts = [x[a:b] @ m.t() for (a, b), m in zip(pairwise(offsets.tolist()), w, strict=True)]
    return torch.cat([*parts, x.new_zeros(x.shape[0] - int(offsets[-1]), w.shape[1])])


def expert_of(offsets: Tensor, rows: int) -> Tensor:
    """(S,) each row's expert; of rows that hold no copy, the last one."""
    at = torch.arange(rows, device=offsets.device)
    return torch.searchsorted(offsets[1:], at, right=True).clamp_max(offsets.shape[0] - 2)


def library_groups(*operands: Tensor) -> bool:
    """Whether torch's grouped product has kernels for these operands that do not wait for the host: it wants one stride
    of 1, the others and the address in multiples of 16 bytes."""

    def aligned(t):
        one, *others = sorted(t.stride())
        return one == 1 and all(s % 8 == 0 for s in others) and t.data_ptr() % 16 == 0

    fit = all(t.dtype == torch.bfloat16 and aligned(t) for t in operands)
    return fit and torch.cuda.get_device_capability(operands[0].device)[0] in (9, 10)


def products(x: Tensor, w: Tensor, offsets: Tensor, rows: Tensor | None = None) -> Tensor:
    """(S, N): row s of expert e is x[s] @ w[e].T, or x[rows[s]] @ w[e].T. On a GPU rows past the last hold anything."""
    if not x.is_cpu:
        if library_groups(x, w):
            x = x if rows is None else x.index_select(0, rows.clamp_min(0))
            return torch.nn.functional.grouped_mm(x, w.mT, offs=offsets[1:].int())
        from warpup.moe import grouped_mm_triton as moe_triton

        return moe_triton.products(x, w, offsets, rows)
    if x.dtype == torch.bfloat16:
        b = w.mT if turned(w) else unit_stride(w)
        return torch.ops.warpup.grouped_product(unit_stride(x), b, offsets, rows, None, not turned(w))
    out = x.new_empty((x if rows is None else rows).shape[0], w.shape[1])
    bounds = checked(offsets, out.shape[0])
    out[bounds[-1] :].zero_()
    for (a, b), m in zip(pairwise(bounds), w, strict=True):
        if a < b:
            torch.mm(x[a:b] if rows is None else x.index_select(0, rows[a:b]), m.t(), out=out[a:b])
    return out


def weight_products(
    dy: Tensor, x: Tensor, offsets: Tensor, dy_rows: Tensor | None = None, x_rows: Tensor | None = None
) -> Tensor:
    """(E, N, K): of expert e, dy.T @ x over its rows, each of the two from where its `rows` say, if given."""
    if not dy.is_cpu:
        if library_groups(dy, x):
            dy = dy if dy_rows is None else dy.index_select(0, dy_rows.clamp_min(0))
            x = x if x_rows is None else x.index_select(0, x_rows.clamp_min(0))
            return torch.nn.functional.grouped_mm(dy.t(), x, offs=offsets[1:].int())
        from warpup.moe import grouped_mm_triton as moe_triton

        return moe_triton.weight_products(dy, x, offsets, dy_rows, x_rows)
    if dy.dtype == torch.bfloat16:
        return torch.ops.warpup.grouped_product(unit_stride(dy), unit_stride(x), offsets, dy_rows, x_rows, False)
    out = dy.new_empty(offsets.shape[0] - 1, dy.shape[1], x.shape[1])
    bounds = checked(offsets, (dy if dy_rows is None else dy_rows).shape[0])
    for (a, b), m in zip(pairwise(bounds), out, strict=True):
        if a == b:
            m.zero_()
            continue
        mine, other = (
            t[a:b] if rows is None else t.index_select(0, rows[a:b]) for t, rows in ((dy, dy_rows), (x, x_rows))
        )
        torch.mm(mine.t(), other, out=m)
    return out


def unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def turned(w: Tensor) -> bool:
    """Whether w is stored (E, K, N): its gradient then is, too."""
    return w.stride(-1) != 1 and w.stride(-2) == 1


def weight_gradient(w: Tensor, dy: Tensor, x: Tensor, offsets: Tensor, dy_rows=None, x_rows=None) -> Tensor:
    """`weight_products` in the layout of w."""
    if turned(w):
        return weight_products(x, dy, offsets, x_rows, dy_rows).mT
    return weight_products(dy, x, offsets, dy_rows, x_rows)


@torch.no_grad()
def _forward(x, w, offsets):
    out = products(x, w, offsets)
    if not x.is_cpu:
        out.masked_fill_((torch.arange(out.shape[0], device=x.device) >= offsets[-1]).unsqueeze(1), 0)
    return out


@torch.no_grad()
def _weight(dy, x, offsets):
    return weight_products(dy, x, offsets)


library.impl("grouped_mm", _forward, "CompositeExplicitAutograd")
library.impl("grouped_mm_weight", _weight, "CompositeExplicitAutograd")


@torch.library.register_fake("warpup::grouped_product")
def _(a, b, offsets, a_rows, b_rows, turned):
    if b.dim() == 2:
        return a.new_empty(offsets.shape[0] - 1, a.shape[1], b.shape[1])
    return a.new_empty((a if a_rows is None else a_rows).shape[0], b.shape[1 if turned else 2])


@torch.library.register_fake("warpup::grouped_mm")
def _(x, w, offsets):
    return x.new_empty(x.shape[0], w.shape[1])


@torch.library.register_fake("warpup::grouped_mm_weight")
def _(dy, x, offsets):
    return dy.new_empty(offsets.shape[0] - 1, dy.shape[1], x.shape[1])


class GroupedMM(torch.autograd.Function):
    @staticmethod
    def forward(x, w, offsets):
        return torch.ops.warpup.grouped_mm(x, w, offsets)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, offsets = inputs
        ctx.turned = turned(w)
        need_x, need_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_w else None, w if need_x else None, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, w, offsets = ctx.saved_tensors
        dx = torch.ops.warpup.grouped_mm(dy, w.mT, offsets) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            first, second = (x, dy) if ctx.turned else (dy, x)
            dw = torch.ops.warpup.grouped_mm_weight(first, second, offsets)
            dw = dw.mT if ctx.turned else dw
        return dx, dw, None


def grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """Rows sorted by expert, each times its expert's matrix: `out[s] = w[e] @ x[s]`, s in [offsets[e], offsets[e + 1]).

    Args:
        x: (S, K) float32, bfloat16, float16 or float64; under autocast both are cast to its type.
        w: (E, N, K), of the same dtype: a `torch.nn.Linear` weight an expert. A transposed view of (E, K, N) is taken
            as it is, and its gradient has its layout.
        offsets: (E + 1,) int64, not descending, from 0 to at most S, as in `MoEPlan`. An expert may have no row.

    Returns:
        (S, N) of x's dtype, accumulated in float32 (float64 for float64); rows from offsets[E] on are 0. No host
        synchronisation on a GPU. Gradients reach x and w, no work is done for one that is not needed.

    Raises:
        ValueError: a shape, dtype or device does not fit, or (CPU only) offsets descend or leave [0, S].
    """
    x, w = autocast(x, w)
    if x.dim() != 2 or w.dim() != 3 or x.shape[1] != w.shape[2]:
        raise ValueError(f"grouped_mm: x must be (S, K) and w (E, N, K), got {tuple(x.shape)} and {tuple(w.shape)}")
    check_like("grouped_mm", "x", x, w=w)
    check_offsets("grouped_mm", offsets, w.shape[0], x.shape[0], x.device)
    if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        return GroupedMM.apply(x, w, offsets)
    return torch.ops.warpup.grouped_mm(x, w, offsets)


def check_like(op: str, first: str, like: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless `like` is of a dtype and device with kernels, and the others are of the same."""
    if like.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"{op}: {first} must be float32, bfloat16, float16 or float64, got {like.dtype}")
    if like.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: warpup has kernels for CPU and CUDA tensors only, {first} is on {like.device}")
    for name, t in others.items():
        if t is not None and (t.dtype, t.device) != (like.dtype, like.device):
            raise ValueError(
                f"{op}: {name} must be {like.dtype} on {like.device} like {first}, got {t.dtype} on {t.device}"
            )


def check_offsets(op: str, offsets: Tensor, experts: int, rows: int, device: torch.device) -> None:
    if offsets.shape != (experts + 1,) or offsets.dtype != torch.int64 or offsets.device != device:
        raise ValueError(
            f"{op}: offsets must be int64 of shape ({experts + 1},) on {device}, got {offsets.dtype} of shape "
            f"{tuple(offsets.shape)} on {offsets.device}"
        )
    if offsets.is_cpu and not torch.compiler.is_compiling():
        checked(offsets, rows, op)


def checked(offsets: Tensor, rows: int, op: str = "grouped_mm") -> list[int]:
    """The offsets as numbers; raises ValueError if they do not rise from 0 to at most `rows`."""
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > rows:
        raise ValueError(f"{op}: offsets must rise from 0 to at most {rows}, got {bounds}")
    return bounds
