"""A box through a linear map: center and radius of W x + b for every x in a box, and for every W in one.

A box is (center, radius), radius >= 0: all x with |x - center| <= radius, element by element.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup._products import widest
from warpup.interval.interval_product import (
    BOX,
    GRADIENTS,
    OPERAND_GRADIENTS,
    OPERANDS,
    Product,
    add,
    apply,
    box,
    box_backward,
    checked,
    filled,
    reference_box,
)
from warpup.interval.sound import sound_product

PIECE = 1 << 20  # elements of |W| at once, on a CPU: as much new memory as W costs page faults, as long as the product


def reference_interval_linear(
    center, radius, weight, bias=None, *, weight_radius=None, mode="midpoint", clean=None, sound=False, out_dtype=None
):  # fmt: skip
    """`interval_linear` in plain torch, without what `sound` adds."""
    if weight_radius is not None and mode == "exact":
        ends = [
            x.unsqueeze(-2) * w
            for x in (center - radius, center + radius)
            for w in (weight - weight_radius, weight + weight_radius)
        ]
        ends = torch.stack(ends)
        low, high = ends.amin(0).sum(-1), ends.amax(0).sum(-1)
        c, r = (high + low) / 2 + (0 if bias is None else bias), (high - low) / 2
        return (c, r) if clean is None else (c, r, F.linear(clean, weight, bias))
    return reference_box(F.linear, center, radius, weight, bias, weight_radius, clean)


# ---- The product, with |W| of a large weight made in pieces ---------------------------------------------------------


def _linear_backward(g, x, w, need_x, need_w):
    return g @ w if need_x else None, g.t() @ x if need_w else None


def _pieces(w: Tensor) -> list[tuple[int, int]]:
    """Rows of W, so many that |W| of them is a PIECE."""
    rows = max(1, PIECE // max(1, w.shape[1])) if w.is_cpu and w.element_size() > 2 else len(w)
    return [(begin, min(begin + rows, len(w))) for begin in range(0, len(w), max(1, rows))]


def _linear_absolute(x, w):
    pieces = _pieces(w)
    if len(pieces) < 2:
        return F.linear(x, w.abs())
    out, piece = x.new_empty(len(x), len(w)), torch.empty_like(w[: pieces[0][1]])
    for begin, end in pieces:
        torch.mm(x, torch.abs(w[begin:end], out=piece[: end - begin]).t(), out=out[:, begin:end])
    return out


def _linear_absolute_backward(g, x, w, need_x, need_w):
    pieces = _pieces(w)
    if len(pieces) < 2 or not need_x:
        return _linear_backward(g, x, w.abs() if need_x else w, need_x, need_w)
    dx, piece = torch.zeros_like(x), torch.empty_like(w[: pieces[0][1]])
    for begin, end in pieces:
        dx.addmm_(g[:, begin:end], torch.abs(w[begin:end], out=piece[: end - begin]))
    return dx, g.t() @ x if need_w else None


LINEAR = Product(F.linear, _linear_backward, _linear_absolute, _linear_absolute_backward, lambda g: g.sum(0))


# ---- The op ---------------------------------------------------------------------------------------------------------


@_op.composite(f"interval_linear({OPERANDS}, bool exact, bool sound, bool wide) -> {BOX}")
def _(center, radius, weight, bias, weight_radius, clean, exact, sound, wide):
    if sound:
        c, r = sound_product(center, radius, weight, bias, weight_radius, wide)
        return c, r, center.new_empty(0) if clean is None else widest(F.linear)(clean, weight, bias)
    c, r, x = box(LINEAR, center, radius, weight, bias, weight_radius, clean)
    if exact:
        shift, excess = _op.ops.interval_linear_exact(center, radius, weight, weight_radius)
        c, r = c.add_(shift), r.sub_(excess)
    return c, r, x


@_op.composite(f"interval_linear_backward({GRADIENTS}, {OPERANDS}, bool exact, bool[] needs) -> {OPERAND_GRADIENTS}")
def _(gc, gr, gx, center, radius, weight, bias, weight_radius, clean, exact, needs):
    gc, gr, gx = (None if g is None else g.to(center.dtype) for g in (gc, gr, gx))  # a wide box has wide gradients
    found = box_backward(LINEAR, gc, gr, gx, center, radius, weight, weight_radius, clean, needs)
    dc, dr, dw, db, dwr, dx = found
    if exact and (gc is not None or gr is not None):
        shape = center.new_zeros(()).expand(center.shape[0], weight.shape[0])
        by = [(shape if g is None else s * g).contiguous() for g, s in ((gc, 1), (gr, -1))]
        if needs[0] or needs[1]:
            c, r = _op.ops.interval_linear_exact_backward(center, radius, weight, weight_radius, *by, False)
            dc, dr = add(dc, c), add(dr, r)
        if needs[2] or needs[4]:
            w, wr = _op.ops.interval_linear_exact_backward(weight, weight_radius, center, radius, *by, True)
            dw, dwr = add(dw, w), add(dwr, wr)
    return (*filled((dc, dr, dw, db, dwr, dx), (center, radius, weight, bias, weight_radius, clean), needs),)


@_op.fake("interval_linear")
def _(center, radius, weight, bias, weight_radius, clean, exact, sound, wide):
    shape = (center.shape[0], weight.shape[0])
    dtype = accumulator(center) if wide else center.dtype
    out_center, out_radius = (center.new_empty(shape, dtype=dtype) for _ in range(2))
    return out_center, out_radius, center.new_empty(0 if clean is None else shape)


@_op.fake("interval_linear_exact")
def _(a_center, a_radius, b_center, b_radius):
    return tuple(a_center.new_empty(a_center.shape[0], b_center.shape[0]) for _ in range(2))


@_op.fake("interval_linear_exact_backward")
def _(a_center, a_radius, *rest):
    return torch.empty_like(a_center), torch.empty_like(a_radius)


def _backward_fake(gc, gr, gx, *rest):
    return (*filled((None,) * 6, rest[:6], rest[-1]),)


_interval_linear = _autograd.differentiable(
    "interval_linear", when={"out_clean": "clean"}, backward_fake=_backward_fake, strided=True
)


@explained
def interval_linear(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_radius: Tensor | None = None,
    mode: str = "midpoint",
    clean: Tensor | None = None,
    sound: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple:
    """The box of `W x + b` over all x with |x - center| <= radius: `center' = W center + b`, `radius' = |W| radius`.

    With `weight_radius`, over all W with |W - weight| <= weight_radius as well, whatever the signs: `midpoint` (three
    products; up to 1.5 times as wide as need be) `radius' = |W| radius + Wr (|center| + radius)`, or `exact`, the hull
    sum_k [w_k] [x_k] element by element, whose center is not W center + b (the three products, and a kernel that takes
    ten times as long as one). Kept for the backward: the operands. `d radius'/d W` has sign(0) = 0.

    Args:
        center: (..., K) float32, bfloat16, float16 or float64; under autocast, but where `sound`, all operands are cast
            to its type, as by `torch.nn.functional.linear`.
        radius: (..., K), >= 0.
        weight: (N, K). bias: (N,).
        weight_radius: (N, K), >= 0. It gets a gradient too.
        mode: `midpoint`, or `exact`, which needs a weight_radius.
        clean: (..., K), an operand that goes through the same map; center itself costs nothing.
        sound: radius' also covers the rounding of this very call; see `warpup.interval.sound` for the proof. Its
            gradient is the plain one.
        out_dtype: of a sound box; float32 keeps what 16-bit inputs gave. None: center's.

    Returns:
        (center', radius'[, clean']), each (..., N), in center's dtype.

    Raises:
        ValueError: a shape, dtype, device or name does not fit, `sound` with `exact`, `exact` without
            a weight_radius, or (on a CPU, not compiled) a
            radius is below 0. On a GPU, where checking would synchronise, such a radius goes through the map as it is.
            NaN stays NaN.

    Source: Gowal et al. 2018 (arXiv 1810.12715); midpoint-radius arithmetic, Rump 1999.
    """
    op = "interval_linear"
    operands = checked(op, (center, radius, weight, bias, weight_radius, clean), 2, mode, sound, out_dtype)
    center, radius, weight, bias, weight_radius, clean = operands
    if center.dim() < 1 or center.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: center must be (..., {weight.shape[1]}), got {tuple(center.shape)}")
    lead, exact = center.shape[:-1], mode == "exact"
    same = clean is center and not exact
    weight = weight.contiguous()
    center, radius = (t.reshape(-1, t.shape[-1]) for t in (center, radius))
    clean = center if same else None if clean is None else clean.reshape(center.shape)
    dtype, acc = center.dtype, accumulator(center)
    operands = (center, radius, weight, bias, weight_radius, clean)
    if exact:  # what is taken off the radius again is not rounded to 16 bits first
        operands = [None if t is None else t.to(acc).contiguous() for t in operands]
    wide = sound and out_dtype not in (None, dtype)
    found = apply(_interval_linear, operands, exact, sound, wide, shared=not exact)  # the hull's center is not W c + b
    found = [(t.to(dtype) if exact else t).reshape(*lead, weight.shape[0]) for t in found[: 2 if same else 3]]
    return (*found, found[0]) if same else tuple(found)
