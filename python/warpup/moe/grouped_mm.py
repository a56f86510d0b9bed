"""grouped_mm: one matrix product a group, D = A B: rows sorted by expert, and a matrix for each expert.

Layouts are named as BLAS names them, A before B, n stored as it is multiplied, t transposed:

    grouped_mm_nt   D[s] = A[s] B[e]^T          the forward, with a weight (E, N, K); `w.mT` makes it the gradient of A
    grouped_mm_tn   D[e] = sum_s A[s]^T B[s]    the gradient of the weights

Both run without autograd; `grouped_mm` is the public function that has gradients. On a CPU they are a kernel of our own
(csrc/moe/grouped_mm.h is its contract), or, where that is faster, one library product an expert, each into its slice of
one result: `cpu_kernels` says which. On a GPU they are torch's grouped product where the hardware has one, else the
Triton kernels of grouped_mm_triton.py. Rows may be taken from an unsorted operand: what an expert needs of it is
gathered when it is its turn, so that the sorted copies never exist as a whole.
"""

from __future__ import annotations

import os
from itertools import pairwise

import torch
from torch import Tensor

from warpup import _autograd, _op, _products
from warpup._arguments import explained
from warpup._op import autocast
from warpup._products import AVAILABLE, library_has

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def reference_grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """`grouped_mm` in plain torch."""
    parts = [x[a:b] @ m.t() for (a, b), m in zip(pairwise(offsets.tolist()), w, strict=True)]
    return torch.cat([*parts, x.new_zeros(x.shape[0] - int(offsets[-1]), w.shape[1])])


# ---- The products, without autograd ---------------------------------------------------------------------------------


def grouped_mm_nt(a: Tensor, b: Tensor, offsets: Tensor, a_rows: Tensor | None = None) -> Tensor:
    """(S, N): row s of expert e is a[s] @ b[e].T, or a[a_rows[s]] @ b[e].T; b is (E, N, K) in any layout. On a GPU what
    is in rows past the last is undefined."""
    if not a.is_cpu:
        if library_groups(a, b):
            a = a if a_rows is None else a.index_select(0, a_rows.clamp_min(0))
            return torch.nn.functional.grouped_mm(a, b.mT, offs=offsets[1:].int())
        from warpup.moe import grouped_mm_triton

        return grouped_mm_triton.grouped_mm_nt(a, b, offsets, a_rows)
    if cpu_kernels.get(a.dtype):
        if stored_transposed(b):  # b.mT is as it is in memory
            return _op.ops.grouped_mm_cpu(unit_stride(a), b.mT, offsets, a_rows, None, "nn")
        return _op.ops.grouped_mm_cpu(unit_stride(a), unit_stride(b), offsets, a_rows, None, "nt")
    out = a.new_empty((a if a_rows is None else a_rows).shape[0], b.shape[1])
    bounds = bounds_of(offsets, out.shape[0])
    out[bounds[-1] :].zero_()
    for (first, last), m in zip(pairwise(bounds), b, strict=True):
        if first < last:
            torch.mm(rows_of(a, a_rows, first, last), m.t(), out=out[first:last])
    return out


def grouped_mm_tn(
    a: Tensor, b: Tensor, offsets: Tensor, a_rows: Tensor | None = None, b_rows: Tensor | None = None
) -> Tensor:
    """(E, M, N): of expert e, a.T @ b over its rows, those of each operand from where its `rows` say, if given."""
    if not a.is_cpu:
        if library_groups(a, b):
            a = a if a_rows is None else a.index_select(0, a_rows.clamp_min(0))
            b = b if b_rows is None else b.index_select(0, b_rows.clamp_min(0))
            return torch.nn.functional.grouped_mm(a.t(), b, offs=offsets[1:].int())
        from warpup.moe import grouped_mm_triton

        return grouped_mm_triton.grouped_mm_tn(a, b, offsets, a_rows, b_rows)
    if cpu_kernels.get(a.dtype):
        return _op.ops.grouped_mm_cpu(unit_stride(a), unit_stride(b), offsets, a_rows, b_rows, "tn")
    out = a.new_empty(offsets.shape[0] - 1, a.shape[1], b.shape[1])
    bounds = bounds_of(offsets, (a if a_rows is None else a_rows).shape[0])
    for (first, last), m in zip(pairwise(bounds), out, strict=True):
        if first == last:
            m.zero_()
        else:
            torch.mm(rows_of(a, a_rows, first, last).t(), rows_of(b, b_rows, first, last), out=m)
    return out


def cpu_kernel(dtype: torch.dtype) -> str | None:
    """What our kernel computes grouped products of this dtype with on this CPU; None where the library's products, one
    an expert, are taken.

    Measured, in GFLOP/s on one thread: bfloat16 on a Sapphire Rapids (AMX), 48 rows an expert, library 145, our kernel
    50; float32 on a Zen 3 (AVX2), 64 rows an expert of 1408 x 1024, nt, nn, tn, library 66, 66, 72, kernel 77, 58, 71,
    whose threads wait for each other once, not in each product. On AVX-512 float32 was not compared.
    """
    path, panels = _products.FORCED, "float32 panels"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16) or path == "library":
        return None
    if dtype == torch.float32:
        mine = torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_supported()
        return panels if path or mine else None
    instructions = [] if path else AVAILABLE[dtype]
    if "AVX512-BF16" in instructions and "AMX" not in instructions:
        lower = os.environ.get("WARPUP_CPU") in ("x86-64", "x86-64-v3")  # whose library has no such loops
        return panels if lower else "AVX512-BF16"
    return None if instructions else panels


cpu_kernels = {dtype: cpu_kernel(dtype) for dtype in DTYPES}  # asked once: torch.compile cannot trace the question


def rows_of(x: Tensor, at: Tensor | None, first: int, last: int) -> Tensor:
    return x[first:last] if at is None else x.index_select(0, at[first:last])


def weight_gradient(w: Tensor, dy: Tensor, x: Tensor, offsets: Tensor, dy_rows=None, x_rows=None) -> Tensor:
    """(E, N, K), the gradient of w in the layout of w."""
    if stored_transposed(w):
        return grouped_mm_tn(x, dy, offsets, x_rows, dy_rows).mT
    return grouped_mm_tn(dy, x, offsets, dy_rows, x_rows)


def stored_transposed(w: Tensor) -> bool:
    """Whether w (E, N, K) is a view of a tensor (E, K, N)."""
    return w.stride(-1) != 1 and w.stride(-2) == 1


def unit_stride(x: Tensor) -> Tensor:
    """Rows may be any distance apart, their elements must be neighbors."""
    return x if x.dim() == 0 or x.stride(-1) == 1 else x.contiguous()


def unit_stride_or_transposed(w: Tensor) -> Tensor:
    """w (E, N, K) as a product takes it: it, or what it is a transposed view of, has neighboring elements."""
    return w if stored_transposed(w) else unit_stride(w)


def library_groups(*operands: Tensor) -> bool:
    """Whether torch's grouped product has kernels for these operands that do not wait for the host: it wants one stride
    of 1, the others and the address in multiples of 16 bytes."""

    def aligned(t):
        one, *others = sorted(t.stride())
        return one == 1 and all(s % 8 == 0 for s in others) and t.data_ptr() % 16 == 0

    fit = all(t.dtype == torch.bfloat16 and aligned(t) for t in operands)
    return fit and torch.cuda.get_device_capability(operands[0].device)[0] in (9, 10)


def expert_of(offsets: Tensor, rows: int) -> Tensor:
    """(S,) each row's expert; of rows that hold no copy, the last one."""
    at = torch.arange(rows, device=offsets.device)
    return torch.searchsorted(offsets[1:], at, right=True).clamp_max(offsets.shape[0] - 2)


# ---- The op ---------------------------------------------------------------------------------------------------------


@_op.fake("grouped_mm_cpu")
def _(a, b, offsets, a_rows, b_rows, layout):
    if layout == "tn":
        return a.new_empty(offsets.shape[0] - 1, a.shape[1], b.shape[1])
    return a.new_empty((a if a_rows is None else a_rows).shape[0], b.shape[1 if layout == "nt" else 2])


@_op.composite("grouped_mm(Tensor x, Tensor w, Tensor offsets) -> (Tensor out)")
def _forward(x, w, offsets):
    out = grouped_mm_nt(x, w, offsets)
    if not x.is_cpu:
        out.masked_fill_((torch.arange(out.shape[0], device=x.device) >= offsets[-1]).unsqueeze(1), 0)
    return out


@_op.composite(
    "grouped_mm_backward(Tensor? x, Tensor w, Tensor offsets, Tensor grad_out, bool[] needs) -> "
    "(Tensor grad_x, Tensor grad_w)"
)
def _backward(x, w, offsets, grad_out, needs):
    need_x, need_w = needs
    grad_x = _op.ops.grouped_mm(grad_out, w.mT, offsets) if need_x else w.new_empty(0)
    return grad_x, weight_gradient(w, grad_out, x, offsets) if need_w else w.new_empty(0)


@_op.fake("grouped_mm")
def _(x, w, offsets):
    return x.new_empty(x.shape[0], w.shape[1])


def _gradients(x, w, offsets, grad_out, needs):
    need_x, need_w = needs
    return w.new_empty((grad_out.shape[0], w.shape[2]) if need_x else 0), gradient_like(w, need_w)


def gradient_like(w: Tensor, needed: bool) -> Tensor:
    """An empty tensor in the layout of `weight_gradient`."""
    if not needed:
        return w.new_empty(0)
    return w.new_empty(w.mT.shape).mT if stored_transposed(w) else w.new_empty(w.shape)


_grouped_mm = _autograd.differentiable("grouped_mm", needed_by={"x": "w"}, backward_fake=_gradients)


@explained
def grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """Rows sorted by expert, each times its expert's matrix: `out[s] = w[e] @ x[s]`, s in [offsets[e], offsets[e + 1]).

    Args:
        x: (S, K) float32, bfloat16, float16 or float64; under autocast both are cast to its type.
        w: (E, N, K), of the same dtype: a `torch.nn.Linear` weight an expert. A transposed view of (E, K, N) is taken
            as it is, and its gradient has its layout.
        offsets: (E + 1,) int64, not descending, from 0 to at most S, as in `MoEPlan`. An expert may have no row.

    Returns:
        (S, N) of x's dtype, accumulated in float32 (float64 for float64); rows from offsets[E] on are 0. No host
        synchronization on a GPU. Gradients reach x and w, no work is done for one that is not needed.

    Raises:
        ValueError: a shape, dtype or device does not fit, or (CPU only) offsets descend or leave [0, S].
    """
    x, w = autocast(x, w)
    if x.dim() != 2 or w.dim() != 3 or x.shape[1] != w.shape[2]:
        raise ValueError(f"grouped_mm: x must be (S, K) and w (E, N, K), got {tuple(x.shape)} and {tuple(w.shape)}")
    check_like("grouped_mm", "x", x, w=w)
    check_offsets("grouped_mm", offsets, w.shape[0], x.device)
    return _grouped_mm(x, w, offsets)


def linear(x: Tensor, w: Tensor) -> Tensor:
    """x @ w.T, of x (S, K) and w (N, K), with gradients: the library's product, or a single group where a CPU's library
    is slow at their dtype."""
    x, w = autocast(x, w)
    if library_has(x.dtype, x.device):
        return torch.nn.functional.linear(x, w)
    return grouped_mm(x, w.unsqueeze(0), torch.tensor([0, x.shape[0]]))


# ---- Checks ---------------------------------------------------------------------------------------------------------


def check_like(op: str, first: str, like: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless `like` is of a dtype and device with kernels, and the others are of the same."""
    dtype, device = like.dtype, like.device
    if dtype not in DTYPES:
        raise ValueError(f"{op}: {first} must be float32, bfloat16, float16 or float64, got {dtype}")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: warpup has kernels for CPU and CUDA tensors only, {first} is on {device}")
    for name, t in others.items():
        if t is not None and (t.dtype != dtype or t.device != device):
            raise ValueError(f"{op}: {name} must be {dtype} on {device} like {first}, got {t.dtype} on {t.device}")


def check_offsets(op: str, offsets: Tensor, experts: int, device: torch.device) -> None:
    """All but their values, which the products look at when they read them (on a GPU nobody does: that would wait)."""
    if offsets.shape != (experts + 1,) or offsets.dtype != torch.int64 or offsets.device != device:
        raise ValueError(
            f"{op}: offsets must be int64 of shape ({experts + 1},) on {device}, got {offsets.dtype} of shape "
            f"{tuple(offsets.shape)} on {offsets.device}"
        )


def bounds_of(offsets: Tensor, rows: int) -> list[int]:
    """The offsets as numbers; raises ValueError if they do not rise from 0 to at most `rows`."""
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds != sorted(bounds) or bounds[-1] > rows:
        raise ValueError(f"grouped_mm: offsets must rise from 0 to at most {rows}, got {bounds}")
    return bounds
