"""What interval_linear and interval_conv1d/2d share: center and radius through any map that is linear in x and in W.

It has no public function of its own. The products are the library's; |W| lives for one of them and is never kept, and
sign(W) never exists: a kernel of ours (csrc/interval/interval_linear.h) puts the signs into the product that the
weight's gradient comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, autocast
from warpup._products import widest
from warpup._transforms import unwrapped

MODES = ("midpoint", "exact")

# Schemas of the two ops. Arguments and results are named for `_autograd.differentiable`.
OPERANDS = "Tensor center, Tensor radius, Tensor weight, Tensor? bias, Tensor? weight_radius, Tensor? clean"
GRADIENTS = "Tensor? grad_out_center, Tensor? grad_out_radius, Tensor? grad_out_clean"
BOX = "(Tensor out_center, Tensor out_radius, Tensor out_clean)"
OPERAND_GRADIENTS = (
    "(Tensor grad_center, Tensor grad_radius, Tensor grad_weight, Tensor grad_bias, Tensor grad_weight_radius, "
    "Tensor grad_clean)"
)


@_op.fake("interval_linear_sign_")
def _(gradient, weight, base):
    return None


class Product(NamedTuple):
    """A map that is linear in x and in W, from the library."""

    of: Callable  # (x, W, bias or None)
    backward: Callable  # (gradient, x, W, whether x's is needed, whether W's) -> (of x, of W), None where not needed
    absolute: Callable  # (x, W): of (x, |W|)
    absolute_backward: Callable  # as backward, of |W| in place of W's: sign(W) is put in later
    bias: Callable  # gradient -> of the bias


def reference_box(product: Callable, center, radius, weight, bias, weight_radius, clean) -> tuple:
    """The box in plain torch; product(x, W, bias=None)."""
    c, r = product(center, weight, bias), product(radius, weight.abs())
    if weight_radius is not None:
        r = r + product(center.abs() + radius, weight_radius)
    return (c, r) if clean is None else (c, r, product(clean, weight, bias))


@widest
def box(product: Product, center, radius, weight, bias, weight_radius, clean) -> tuple[Tensor, Tensor, Tensor]:
    """center W + b and |W| radius, with a box of weights also Wr (|center| + radius); and the clean operand's."""
    c, r = product.of(center, weight, bias), product.absolute(radius, weight)
    if weight_radius is not None:
        r += product.of(center.abs().add_(radius), weight_radius, None)
    return c, r, center.new_empty(0) if clean is None else product.of(clean, weight, bias)


def add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """total += more; either may be missing."""
    return more if total is None else total if more is None else total.add_(more)


def in_layout(t: Tensor | None, like: Tensor) -> Tensor | None:
    """t in the layout of `like`."""
    return t if t is None or t.stride() == like.stride() else torch.empty_like(like).copy_(t)


@widest
def box_backward(product: Product, gc, gr, gx, center, radius, weight, weight_radius, clean, needs) -> tuple:
    """Gradients of center, radius, weight, bias, weight_radius and clean; None for those without."""
    need_c, need_r, need_w, need_b, need_wr, need_x = needs
    dc = dr = dw = db = dwr = dx = None
    # The center and the clean operand go through W as they are.
    for g, x, needed in ((gc, center, need_c), (gx, clean, need_x)):
        if g is None or not (needed or need_w or need_b):
            continue
        d, more = product.backward(g, x, weight, needed, need_w)
        dw = add(dw, more)
        db = add(db, product.bias(g)) if need_b else None
        dc, dx = (d, dx) if x is center and g is gc else (dc, d)
    # The radius goes through |W|: its share of W's gradient gets W's signs, in place, on top of the others'.
    if gr is not None:
        if need_r or need_w:
            dr, signed = product.absolute_backward(gr, radius, weight, need_r, need_w)
            if need_w:
                _op.ops.interval_linear_sign_(signed, *(in_layout(t, signed) for t in (weight, dw)))
                dw = signed
        # The weights' radius meets |center| + radius.
        if weight_radius is not None and (need_c or need_r or need_wr):
            reach = center.abs().add_(radius) if need_wr else radius
            d, dwr = product.backward(gr, reach, weight_radius, need_c or need_r, need_wr)
            dr = add(dr, d) if need_r else None
            dc = add(dc, d * center.sign()) if need_c else None
    return dc, dr, dw, db, dwr, dx


def filled(found, operands, needs, layout=torch.contiguous_format) -> Iterator[Tensor]:
    """What an op returns: zeros where a needed gradient got nothing, an empty tensor where none is needed."""
    for d, operand, needed in zip(found, operands, needs, strict=True):
        if not needed:
            yield operands[0].new_empty(0)
        else:
            own = layout if operand.dim() == 4 else torch.contiguous_format
            yield torch.zeros_like(operand, memory_format=own) if d is None else d.contiguous(memory_format=own)


def apply(op: Callable, operands, *options, shared: bool) -> tuple:
    """(center, radius[, clean]) by the op. shared: one product serves center and clean where they are one tensor (of a
    first layer)."""
    center, clean = operands[0], operands[5]
    shared = shared and clean is center
    c, r, x = op(*operands[:5], None if shared else clean, *options)
    return (c, r) if clean is None else (c, r, c if shared else x)


def checked(op: str, operands, weight_dims: int, mode: str, sound: bool, out_dtype) -> tuple:
    """The operands, under autocast in its type; ValueError before any product where they do not fit."""
    same = operands[5] is operands[0]
    if not sound:
        operands = autocast(*operands)
        operands = (*operands[:5], operands[0] if same else operands[5])
    center, radius, weight, bias, weight_radius, clean = operands
    if mode not in MODES:
        raise ValueError(f"{op}: mode must be one of {', '.join(MODES)}; got {mode!r}")
    if weight.dim() != weight_dims:
        raise ValueError(f"{op}: weight must have {weight_dims} dimensions, got {tuple(weight.shape)}")
    if mode == "exact" and weight_radius is None:
        raise ValueError(
            f"{op}: mode 'exact' is for boxes of weights and needs a weight_radius; without one all bounds are exact"
        )
    if sound and mode == "exact":
        raise ValueError(f"{op}: sound goes with mode 'midpoint', got 'exact'")
    if out_dtype is not None and not (sound and out_dtype in (center.dtype, accumulator(center))):
        raise ValueError(f"{op}: out_dtype is center's or the accumulator's, of a sound box; got {out_dtype}")
    shapes = (("radius", radius, center), ("clean", clean, center), ("weight_radius", weight_radius, weight))
    for name, t, like in shapes:
        if t is not None and t.shape != like.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(like.shape)}, got {tuple(t.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if not center.is_floating_point():
        raise ValueError(f"{op}: center must be float32, bfloat16, float16 or float64, got {center.dtype}")
    names = ("radius", "weight", "bias", "weight_radius", "clean")
    for name, t in zip(names, operands[1:], strict=True):
        if t is not None and (t.dtype, t.device) != (center.dtype, center.device):
            raise ValueError(
                f"{op}: {name} must be {center.dtype} on {center.device} like center, got {t.dtype} on {t.device}"
            )
    for name, t in (("radius", radius), ("weight_radius", weight_radius)):
        if t is not None and t.is_cpu and not torch.compiler.is_compiling() and t.numel() and unwrapped(t).min() < 0:
            raise ValueError(f"{op}: {name} must be >= 0, got {float(t.detach().min()):.3g}; l > u is no box")
    return operands
