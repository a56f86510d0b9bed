"""Grouped products on GPUs without a good library for them: Triton kernels that gather rows as they load them.

The grid is the most tiles that S rows in E groups can make, so that nothing waits for the counts; a program finds its
group by the counts before it, and leaves if there is no tile for it. No atomics: a tile has one program. The
grid of the rows is flat, since only its first dimension may exceed 65535: the column tiles of the same rows are
neighbours, so that those rows stay in the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = 64, 128, 32  # of a tile; float64 takes half of each, its values being twice as long


@triton.jit
def _product(a, b, exact: tl.constexpr, widen: tl.constexpr):
    """a @ b summed in float32, and in float64 for float64."""
    if widen:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if a.dtype == tl.float64:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)
    return tl.dot(a, b, input_precision="ieee" if exact else None)


@triton.jit
def _rows_kernel(
    x, w, out, offsets, at, experts, n, k, x_row, w_expert, w_n, w_k,
    gathered: tl.constexpr, exact: tl.constexpr, widen: tl.constexpr, wide: tl.constexpr,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[s] = w[e] x[s or at[s]]: a tile of ROWS rows of one expert by COLUMNS."""
    across, program, ids = tl.cdiv(n, COLUMNS), tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    tile = program // across
    begin = tl.load(offsets + ids, mask=ids < experts, other=0)
    end = tl.load(offsets + ids + 1, mask=ids < experts, other=0)
    last_tiles = tl.cumsum((end - begin + ROWS - 1) // ROWS, 0)
    expert = tl.sum((last_tiles <= tile).to(tl.int64), 0)  # those whose tiles all come before
    if expert >= experts:
        return
    mine = ids == expert
    before = tl.sum(tl.where(ids == expert - 1, last_tiles, 0), 0)
    first, stop = tl.sum(tl.where(mine, begin, 0), 0), tl.sum(tl.where(mine, end, 0), 0)
    rows = first + (tile - before) * ROWS + tl.arange(0, ROWS)
    columns = program % across * COLUMNS + tl.arange(0, COLUMNS)
    inside, some = rows < stop, columns < n
    source = tl.load(at + rows, mask=inside, other=0) if gathered else rows
    sums = tl.zeros((ROWS, COLUMNS), dtype=wide)
    for start in range(0, k, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        a_at = x + source[:, None] * x_row + depth[None, :]
        b_at = w + expert * w_expert + columns[None, :] * w_n + depth[:, None] * w_k
        a = tl.load(a_at, mask=inside[:, None] & (depth < k)[None, :], other=0.0)
        b = tl.load(b_at, mask=some[None, :] & (depth < k)[:, None], other=0.0)
        sums += _product(a, b, exact, widen)
    to = out + rows[:, None] * n + columns[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[:, None] & some[None, :])


@triton.jit
def _weights_kernel(
    dy, x, out, offsets, dy_at, x_at, n, k, dy_row, x_row,
    dy_gathered: tl.constexpr, x_gathered: tl.constexpr, exact: tl.constexpr, widen: tl.constexpr, wide: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[e] = dy^T x over the expert's rows: a tile of ROWS by COLUMNS; 0 for an expert without rows."""
    expert = tl.program_id(2).to(tl.int64)
    first, stop = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    i = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), dtype=wide)
    for start in range(first, stop, DEPTH):
        rows = start + tl.arange(0, DEPTH)
        inside = rows < stop
        mine = tl.load(dy_at + rows, mask=inside, other=0) if dy_gathered else rows
        other = tl.load(x_at + rows, mask=inside, other=0) if x_gathered else rows
        a = tl.load(dy + mine[None, :] * dy_row + i[:, None], mask=inside[None, :] & (i < n)[:, None], other=0.0)
        b = tl.load(x + other[:, None] * x_row + j[None, :], mask=inside[:, None] & (j < k)[None, :], other=0.0)
        sums += _product(a, b, exact, widen)
    to = out + (expert * n + i[:, None]) * k + j[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=(i < n)[:, None] & (j < k)[None, :])


def _options(x: Tensor) -> dict:
    double = x.dtype == torch.float64
    scale = 4 if double else 1
    return {
        "exact": x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32,
        "widen": x.dtype == torch.bfloat16 and not x.is_cuda,  # Triton's interpreter has no such products
        "wide": tl.float64 if double else tl.float32,
        "ROWS": ROWS // scale,
        "COLUMNS": COLUMNS // scale,
        "DEPTH": DEPTH // scale,
    }


def products(x: Tensor, w: Tensor, offsets: Tensor, rows: Tensor | None = None) -> Tensor:
    """As `moe_grouped.products`."""
    x, options = x if x.stride(-1) == 1 else x.contiguous(), _options(x)
    count, (experts, n, k) = (x if rows is None else rows).shape[0], w.shape
    out = x.new_empty(count, n)
    tiles = min(count, triton.cdiv(count, options["ROWS"]) + experts)
    if out.numel():
        _rows_kernel[(tiles * triton.cdiv(n, options["COLUMNS"]),)](
            x, w, out, offsets, offsets if rows is None else rows, experts, n, k, x.stride(0), *w.stride(),
            gathered=rows is not None, EXPERTS=triton.next_power_of_2(experts), **options,
        )  # fmt: skip
    return out


def weight_products(
    dy: Tensor, x: Tensor, offsets: Tensor, dy_rows: Tensor | None = None, x_rows: Tensor | None = None
) -> Tensor:
    """As `moe_grouped.weight_products`."""
    dy, x = (t if t.stride(-1) == 1 else t.contiguous() for t in (dy, x))
    options, n, k, experts = _options(x), dy.shape[1], x.shape[1], offsets.shape[0] - 1
    out = dy.new_empty(experts, n, k)
    if out.numel():
        grid = (triton.cdiv(k, options["COLUMNS"]), triton.cdiv(n, options["ROWS"]), experts)
        _weights_kernel[grid](
            dy, x, out, offsets, offsets if dy_rows is None else dy_rows, offsets if x_rows is None else x_rows,
            n, k, dy.stride(0), x.stride(0), dy_gathered=dy_rows is not None, x_gathered=x_rows is not None, **options,
        )  # fmt: skip
    return out
