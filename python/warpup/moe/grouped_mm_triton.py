"""grouped_mm on GPUs without a good library for it: Triton kernels, nt and tn, that gather rows as they load them.

The grid is the most tiles that S rows in E groups can make, so that nothing waits for the counts; a program finds its
group by the counts before it, and leaves if there is no tile for it. No atomics: a tile has one program. The
grid of nt is flat, since only its first dimension may exceed 65535: the column tiles of the same rows are neighbors, so
that those rows stay in the L2 cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = (
    64,
    128,
    32,
)  # of a tile; float64 takes a quarter of each: its products are summed in all three at once


@triton.jit
def _product(a, b, exact: tl.constexpr, widen: tl.constexpr):
    """a @ b summed in float32, and in float64 for float64."""
    if widen:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if a.dtype == tl.float64:
        return tl.sum(a[:, :, None] * b[None, :, :], 1)
    return tl.dot(a, b, input_precision="ieee" if exact else None)


@triton.jit
def _nt_kernel(
    a, b, out, offsets, a_rows, experts, n, k, a_row, b_expert, b_n, b_k,
    gathered: tl.constexpr, exact: tl.constexpr, widen: tl.constexpr, wide: tl.constexpr,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[s] = a[s or a_rows[s]] b[e]^T: a tile of ROWS rows of one expert by COLUMNS."""
    # Which expert has this tile: the first one whose tiles, and those of all before it, are more than come before.
    across, program, ids = tl.cdiv(n, COLUMNS), tl.program_id(0).to(tl.int64), tl.arange(0, EXPERTS)
    tile = program // across
    begin = tl.load(offsets + ids, mask=ids < experts, other=0)
    end = tl.load(offsets + ids + 1, mask=ids < experts, other=0)
    last_tiles = tl.cumsum((end - begin + ROWS - 1) // ROWS, 0)
    expert = tl.sum((last_tiles <= tile).to(tl.int64), 0)
    if expert >= experts:
        return

    # Its rows and columns.
    mine = ids == expert
    before = tl.sum(tl.where(ids + 1 == expert, last_tiles, 0), 0)
    first, stop = tl.sum(tl.where(mine, begin, 0), 0), tl.sum(tl.where(mine, end, 0), 0)
    rows = first + (tile - before) * ROWS + tl.arange(0, ROWS)
    columns = program % across * COLUMNS + tl.arange(0, COLUMNS)
    inside, some = rows < stop, columns < n
    source = tl.load(a_rows + rows, mask=inside, other=0) if gathered else rows

    # The sum.
    sums = tl.zeros((ROWS, COLUMNS), dtype=wide)
    for start in range(0, k, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        a_at = a + source[:, None] * a_row + depth[None, :]
        b_at = b + expert * b_expert + columns[None, :] * b_n + depth[:, None] * b_k
        left = tl.load(a_at, mask=inside[:, None] & (depth < k)[None, :], other=0.0)
        right = tl.load(b_at, mask=some[None, :] & (depth < k)[:, None], other=0.0)
        sums += _product(left, right, exact, widen)
    to = out + rows[:, None] * n + columns[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside[:, None] & some[None, :])


@triton.jit
def _tn_kernel(
    a, b, out, offsets, a_rows, b_rows, m, n, a_row, b_row,
    a_gathered: tl.constexpr, b_gathered: tl.constexpr, exact: tl.constexpr, widen: tl.constexpr, wide: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out[e] = a^T b over the expert's rows: a tile of ROWS by COLUMNS; 0 for an expert without rows."""
    expert = tl.program_id(2).to(tl.int64)
    first, stop = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    i = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), dtype=wide)
    for start in range(first, stop, DEPTH):
        rows = start + tl.arange(0, DEPTH)
        inside = rows < stop
        mine = tl.load(a_rows + rows, mask=inside, other=0) if a_gathered else rows
        other = tl.load(b_rows + rows, mask=inside, other=0) if b_gathered else rows
        left = tl.load(a + mine[None, :] * a_row + i[:, None], mask=inside[None, :] & (i < m)[:, None], other=0.0)
        right = tl.load(b + other[:, None] * b_row + j[None, :], mask=inside[:, None] & (j < n)[None, :], other=0.0)
        sums += _product(left, right, exact, widen)
    to = out + (expert * m + i[:, None]) * n + j[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=(i < m)[:, None] & (j < n)[None, :])


def _options(x: Tensor) -> dict[str, Any]:
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


def grouped_mm_nt(a: Tensor, b: Tensor, offsets: Tensor, a_rows: Tensor | None = None) -> Tensor:
    """As in grouped_mm.py."""
    a = a if a.stride(-1) == 1 else a.contiguous()
    count, (experts, n, k) = (a if a_rows is None else a_rows).shape[0], b.shape
    out = a.new_empty(count, n)
    options: dict[str, Any] = {
        "gathered": a_rows is not None,
        "EXPERTS": triton.next_power_of_2(experts),
        **_options(a),
    }
    tiles = min(count, triton.cdiv(count, options["ROWS"]) + experts)
    if out.numel():
        _nt_kernel[(tiles * triton.cdiv(n, options["COLUMNS"]),)](
            a, b, out, offsets, offsets if a_rows is None else a_rows, experts, n, k, a.stride(0), b.stride(0),
            b.stride(1), b.stride(2), **options,
        )  # fmt: skip
    return out


def grouped_mm_tn(
    a: Tensor, b: Tensor, offsets: Tensor, a_rows: Tensor | None = None, b_rows: Tensor | None = None
) -> Tensor:
    """As in grouped_mm.py."""
    a, b = (t if t.stride(-1) == 1 else t.contiguous() for t in (a, b))
    m, n, experts = a.shape[1], b.shape[1], offsets.shape[0] - 1
    options: dict[str, Any] = {"a_gathered": a_rows is not None, "b_gathered": b_rows is not None, **_options(a)}
    out = a.new_empty(experts, m, n)
    if out.numel():
        grid = (triton.cdiv(n, options["COLUMNS"]), triton.cdiv(m, options["ROWS"]), experts)
        _tn_kernel[grid](
            a, b, out, offsets, offsets if a_rows is None else a_rows, offsets if b_rows is None else b_rows,
            m, n, a.stride(0), b.stride(0), **options,
        )  # fmt: skip
    return out
