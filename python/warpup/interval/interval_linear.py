"""Boxes through linear maps: center and radius of W x + b for every x in a box, and for every W in one.

A box is (center, radius), radius >= 0: all x with |x - center| <= radius, element by element. The products are the
library's; |W| lives for one of them, a large one in pieces, is never kept, and sign(W) never exists: one of our kernels
puts the signs into the product that the weight's gradient comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _op
from warpup._op import accumulator, autocast, once_differentiable
from warpup.interval.sound import sound_product

library = torch.library.Library("warpup", "FRAGMENT")
MODES = ("midpoint", "exact")
PIECE = 1 << 20  # elements of |W| at once, on a CPU: as much new memory as W costs page faults, as long as the product

OPERANDS = "Tensor center, Tensor radius, Tensor weight, Tensor? bias, Tensor? weight_radius, Tensor? clean"
GRADIENTS = "Tensor? grad_center, Tensor? grad_radius, Tensor? grad_clean, "
CONV = ", int[] stride, int[] padding, int[] dilation, int groups"
BOX, ALL = (
    "(Tensor center, Tensor radius, Tensor clean)",
    "(Tensor c, Tensor r, Tensor w, Tensor b, Tensor wr, Tensor x)",
)
library.define(f"interval_linear({OPERANDS}, bool exact, bool sound, bool wide) -> {BOX}")
library.define(f"interval_linear_backward({GRADIENTS}{OPERANDS}, bool exact, bool[] needs) -> {ALL}")
library.define(f"interval_conv({OPERANDS}{CONV}) -> {BOX}")
library.define(f"interval_conv_backward({GRADIENTS}{OPERANDS}{CONV}, bool[] needs) -> {ALL}")
_op.raw(
    *("interval_linear", "interval_linear_backward", "interval_conv", "interval_conv_backward"),
    *("interval_sign_", "interval_product", "interval_product_backward"),
)


# ---- References -----------------------------------------------------------------------------------------------------


def reference_interval_linear(
    center, radius, weight, bias=None, *, weight_radius=None, mode="midpoint", clean=None, sound=False, out_dtype=None
):  # fmt: skip
    """`interval_linear` in plain torch, without what `sound` adds."""
    if weight_radius is not None and mode == "exact":
        ends = [x.unsqueeze(-2) * w for x in (center - radius, center + radius) for w in _ends(weight, weight_radius)]
        ends = torch.stack(ends)
        low, high = ends.amin(0).sum(-1), ends.amax(0).sum(-1)
        c, r = (high + low) / 2 + (0 if bias is None else bias), (high - low) / 2
        return (c, r) if clean is None else (c, r, F.linear(clean, weight, bias))
    return _reference(F.linear, center, radius, weight, bias, weight_radius, clean)


def _ends(weight: Tensor, weight_radius: Tensor) -> tuple[Tensor, Tensor]:
    return weight - weight_radius, weight + weight_radius


def reference_interval_conv(
    dims, center, radius, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, weight_radius=None,
    mode="midpoint", clean=None, sound=False, out_dtype=None,
):  # fmt: skip
    """`interval_conv1d` (dims 1) and `interval_conv2d` (dims 2) in plain torch."""
    conv = {1: F.conv1d, 2: F.conv2d}[dims]

    def product(x, w, b=None):
        return conv(x, w, b, stride, padding, dilation, groups)

    if weight_radius is not None and mode == "exact":
        linear = lambda *operands: reference_interval_linear(*operands[:4], weight_radius=operands[4], mode=mode)  # noqa: E731
        places = (_each(dims, stride), _each(dims, padding), _each(dims, dilation), groups)
        c, r = _as_linear(linear, center, radius, weight, bias, weight_radius, None, *places)
        return (c, r) if clean is None else (c, r, product(clean, weight, bias))
    return _reference(product, center, radius, weight, bias, weight_radius, clean)


def _reference(product, center, radius, weight, bias, weight_radius, clean) -> Any:
    c, r = product(center, weight, bias), product(radius, weight.abs())
    if weight_radius is not None:
        r = r + product(center.abs() + radius, weight_radius)
    return (c, r) if clean is None else (c, r, product(clean, weight, bias))


# ---- Ops: the same for every kind of product ------------------------------------------------------------------------


class Product(NamedTuple):
    """A map that is linear in x and in W, from the library."""

    of: Callable  # (x, W, bias or None)
    backward: Callable  # (gradient, x, W, whether x's is needed, whether W's) -> (of x, of W), None where not needed
    absolute: Callable  # (x, W): of (x, |W|)
    absolute_backward: Callable  # as backward, of |W| in place of W's: sign(W) is put in later
    bias: Callable  # gradient -> of the bias


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


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last for images on a CPU, where the library's convolutions are twice as fast in it; else x's own."""
    last = x.dim() == 4 and (x.is_cpu or x.is_contiguous(memory_format=torch.channels_last))
    return torch.channels_last if last else torch.contiguous_format


def conv_product(layout: torch.memory_format, stride, padding, dilation, groups: int) -> Product:
    places = (stride, padding, dilation, False, [0] * len(stride), groups)

    def of(x, w, b=None):
        return torch.convolution(x, w, b, *places).contiguous(memory_format=layout)

    def backward(g, x, w, need_x, need_w):
        return torch.ops.aten.convolution_backward(g, x, w, None, *places, [need_x, need_w, False])[:2]

    return Product(
        of,
        backward,
        lambda x, w: of(x, w.abs()),
        lambda g, x, w, need_x, need_w: backward(g, x, w.abs() if need_x else w, need_x, need_w),
        lambda g: g.sum([0, *range(2, g.dim())]),
    )


def _box(product: Product, center, radius, weight, bias, weight_radius, clean):
    c, r = product.of(center, weight, bias), product.absolute(radius, weight)
    if weight_radius is not None:
        r += product.of(center.abs().add_(radius), weight_radius, None)
    return c, r, center.new_empty(0) if clean is None else product.of(clean, weight, bias)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total.add_(more)


def _as(t: Tensor | None, like: Tensor) -> Tensor | None:
    """t in the layout of `like`."""
    return t if t is None or t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def _box_backward(product: Product, gc, gr, gx, center, radius, weight, weight_radius, clean, needs):
    need_c, need_r, need_w, need_b, need_wr, need_x = needs
    dc = dr = dw = db = dwr = dx = None
    for g, x, needed in ((gc, center, need_c), (gx, clean, need_x)):
        if g is None or not (needed or need_w or need_b):
            continue
        d, more = product.backward(g, x, weight, needed, need_w)
        dw = _add(dw, more)
        db = _add(db, product.bias(g)) if need_b else None
        dc, dx = (d, dx) if x is center and g is gc else (dc, d)
    if gr is not None:
        if need_r or need_w:
            dr, signed = product.absolute_backward(gr, radius, weight, need_r, need_w)
            if need_w:
                _op.ops.interval_sign_(signed, *(_as(t, signed) for t in (weight, dw)))
                dw = signed
        if weight_radius is not None and (need_c or need_r or need_wr):
            reach = center.abs().add_(radius) if need_wr else radius
            d, dwr = product.backward(gr, reach, weight_radius, need_c or need_r, need_wr)
            dr = _add(dr, d) if need_r else None
            dc = _add(dc, d * center.sign()) if need_c else None
    return dc, dr, dw, db, dwr, dx


def _filled(found, operands, needs, layout=torch.contiguous_format):
    """Zeros where a needed gradient got nothing, an empty tensor where none is needed."""
    for d, operand, needed in zip(found, operands, needs, strict=True):
        if not needed:
            yield operands[0].new_empty(0)
        else:
            own = layout if operand.dim() == 4 else torch.contiguous_format
            yield torch.zeros_like(operand, memory_format=own) if d is None else d.contiguous(memory_format=own)


@torch.no_grad()
def _linear_op(center, radius, weight, bias, weight_radius, clean, exact, sound, wide):
    if sound:
        c, r = sound_product(center, radius, weight, bias, weight_radius, wide)
        return c, r, center.new_empty(0) if clean is None else F.linear(clean, weight, bias)
    c, r, x = _box(LINEAR, center, radius, weight, bias, weight_radius, clean)
    if exact:
        shift, excess = _op.ops.interval_product(center, radius, weight, weight_radius)
        c, r = c.add_(shift), r.sub_(excess)
    return c, r, x


@torch.no_grad()
def _linear_backward_op(gc, gr, gx, center, radius, weight, bias, weight_radius, clean, exact, needs):
    found = _box_backward(LINEAR, gc, gr, gx, center, radius, weight, weight_radius, clean, needs)
    dc, dr, dw, db, dwr, dx = found
    if exact and (gc is not None or gr is not None):
        shape = center.new_zeros(()).expand(center.shape[0], weight.shape[0])
        by = [(shape if g is None else s * g).contiguous() for g, s in ((gc, 1), (gr, -1))]
        if needs[0] or needs[1]:
            c, r = _op.ops.interval_product_backward(center, radius, weight, weight_radius, *by, False)
            dc, dr = _add(dc, c), _add(dr, r)
        if needs[2] or needs[4]:
            w, wr = _op.ops.interval_product_backward(weight, weight_radius, center, radius, *by, True)
            dw, dwr = _add(dw, w), _add(dwr, wr)
    return (*_filled((dc, dr, dw, db, dwr, dx), (center, radius, weight, bias, weight_radius, clean), needs),)


@torch.no_grad()
def _conv_op(center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups):
    layout = memory_format(center)
    operands = (_laid(t, layout) for t in (center, radius, weight, bias, weight_radius, clean))
    return _box(conv_product(layout, stride, padding, dilation, groups), *operands)


@torch.no_grad()
def _conv_backward_op(gc, gr, gx, *rest):
    center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups, needs = rest
    layout = memory_format(center)
    gc, gr, gx, c, r, w, wr, x = (_laid(t, layout) for t in (gc, gr, gx, center, radius, weight, weight_radius, clean))
    found = _box_backward(conv_product(layout, stride, padding, dilation, groups), gc, gr, gx, c, r, w, wr, x, needs)
    return (*_filled(found, (center, radius, weight, bias, weight_radius, clean), needs, layout),)


def _laid(t: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    return t if t is None or t.dim() < 2 else t.contiguous(memory_format=layout)


library.impl("interval_linear", _linear_op, "CompositeExplicitAutograd")
library.impl("interval_linear_backward", _linear_backward_op, "CompositeExplicitAutograd")
library.impl("interval_conv", _conv_op, "CompositeExplicitAutograd")
library.impl("interval_conv_backward", _conv_backward_op, "CompositeExplicitAutograd")


@torch.library.register_fake("warpup::interval_linear")
def _(center, radius, weight, bias, weight_radius, clean, exact, sound, wide):
    shape = (center.shape[0], weight.shape[0])
    dtype = accumulator(center) if wide else center.dtype
    box = (center.new_empty(shape, dtype=dtype) for _ in range(2))
    return *box, center.new_empty(0 if clean is None else shape)


@torch.library.register_fake("warpup::interval_conv")
def _(center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups):
    product = conv_product(memory_format(center), stride, padding, dilation, groups)
    c, r = (torch.empty_like(product.of(center, weight), memory_format=memory_format(center)) for _ in range(2))
    return c, r, center.new_empty(0) if clean is None else torch.empty_like(c)


@torch.library.register_fake("warpup::interval_linear_backward")
def _(gc, gr, gx, *rest):
    return (*_filled((None,) * 6, rest[:6], rest[-1]),)


@torch.library.register_fake("warpup::interval_conv_backward")
def _(gc, gr, gx, *rest):
    return (*_filled((None,) * 6, rest[:6], rest[-1], memory_format(rest[0])),)


@torch.library.register_fake("warpup::interval_sign_")
def _(gradient, weight, base):
    return None


@torch.library.register_fake("warpup::interval_product")
def _(a_center, a_radius, b_center, b_radius):
    return tuple(a_center.new_empty(a_center.shape[0], b_center.shape[0]) for _ in range(2))


@torch.library.register_fake("warpup::interval_product_backward")
def _(a_center, a_radius, *rest):
    return torch.empty_like(a_center), torch.empty_like(a_radius)


class IntervalProduct(torch.autograd.Function):
    """`kind`: linear or conv, `options`: the op's, of which the backward takes the first `count`."""

    @staticmethod
    def forward(center, radius, weight, bias, weight_radius, clean, kind, options, count):
        op = getattr(torch.ops.warpup, f"interval_{kind}")
        return op(center, radius, weight, bias, weight_radius, clean, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.kind, options, count = inputs
        ctx.options = options[:count]
        ctx.set_materialize_grads(False)
        if tensors[5] is None:
            ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, gc, gr, gx):
        tensors, needs = ctx.saved_tensors, list(ctx.needs_input_grad[:6])
        grads = [
            None if g is None else g.to(tensors[0].dtype) for g in (gc, gr, gx if tensors[5] is not None else None)
        ]
        op = getattr(torch.ops.warpup, f"interval_{ctx.kind}_backward")
        found = op(*grads, *tensors, *ctx.options, needs)
        return (*(g if needed else None for g, needed in zip(found, needs, strict=True)), None, None, None)


def _apply(kind: str, operands, options, count: int) -> tuple:
    center, clean = operands[0], operands[5]
    # The first layer's: one product serves both, but not where the center is the hull's.
    both = clean is center and not (kind == "linear" and options[0])
    operands = (*operands[:5], None if both else clean)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        c, r, x = IntervalProduct.apply(*operands, kind, options, count)
    else:
        c, r, x = getattr(torch.ops.warpup, f"interval_{kind}")(*operands, *options)
    return (c, r) if clean is None else (c, r, c if both else x)


# ---- Public functions -----------------------------------------------------------------------------------------------


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
        mode: `midpoint` or `exact`, with a weight_radius.
        clean: (..., K), an operand that goes through the same map; center itself costs nothing.
        sound: radius' also covers the rounding of this very call; see `warpup.interval.sound` for the proof. Its
            gradient is the plain one.
        out_dtype: of a sound box; float32 keeps what 16-bit inputs gave. None: center's.

    Returns:
        (center', radius'[, clean']), each (..., N), in center's dtype.

    Raises:
        ValueError: a shape, dtype, device or name does not fit, `sound` with `exact`, or (on a CPU, not compiled) a
            radius is below 0. On a GPU, where checking would synchronise, such a radius goes through the map as it is.
            NaN stays NaN.

    Source: Gowal et al. 2018 (arXiv 1810.12715); midpoint-radius arithmetic, Rump 1999.
    """
    op = "interval_linear"
    operands = _checked(op, (center, radius, weight, bias, weight_radius, clean), 2, mode, sound, out_dtype)
    center, radius, weight, bias, weight_radius, clean = operands
    if center.dim() < 1 or center.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: center must be (..., {weight.shape[1]}), got {tuple(center.shape)}")
    lead, exact = center.shape[:-1], mode == "exact" and weight_radius is not None
    same = clean is center and not exact
    weight = weight.contiguous()
    center, radius = (t.reshape(-1, t.shape[-1]) for t in (center, radius))
    clean = center if same else None if clean is None else clean.reshape(center.shape)
    dtype, acc = center.dtype, accumulator(center)
    operands = (center, radius, weight, bias, weight_radius, clean)
    if exact:  # what is taken off the radius again is not rounded to 16 bits first
        operands = [None if t is None else t.to(acc).contiguous() for t in operands]
    wide = sound and out_dtype not in (None, dtype)
    found = _apply("linear", operands, (exact, sound, wide), 1)
    found = [(t.to(dtype) if exact else t).reshape(*lead, weight.shape[0]) for t in found[: 2 if same else 3]]
    return (*found, found[0]) if same else tuple(found)


def interval_conv1d(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0, dilation: int | tuple[int, ...] = 1, groups: int = 1,
    weight_radius: Tensor | None = None, mode: str = "midpoint", clean: Tensor | None = None, sound: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple:  # fmt: skip
    """`interval_conv2d` over one dimension: center (B, C, L), weight (N, C / groups, k)."""
    places = (stride, padding, dilation, groups)
    operands = (center, radius, weight, bias, weight_radius, clean)
    return _conv("interval_conv1d", 1, operands, places, mode, sound, out_dtype)


def interval_conv2d(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0, dilation: int | tuple[int, ...] = 1, groups: int = 1,
    weight_radius: Tensor | None = None, mode: str = "midpoint", clean: Tensor | None = None, sound: bool = False,
    out_dtype: torch.dtype | None = None,
) -> tuple:  # fmt: skip
    """The box of a convolution over a box of inputs, and over one of weights: `interval_linear` with a convolution for
    its products.

    Args:
        center: (B, C, H, W); on a CPU the results are channels_last, in which the library is twice as fast.
        radius, clean: of the same shape. weight: (N, C / groups, kh, kw). bias: (N,). weight_radius: as weight.
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`; padding also `valid` or (stride 1, odd
            windows) `same`.
        mode, sound, out_dtype: as in `interval_linear`. Where the mode is `exact` or the box `sound`, the windows are
            unfolded (kh kw times the input's memory) and go through `interval_linear`: the library's convolutions may
            use transforms (Winograd, FFT) that no bound on a direct sum holds for.

    Returns, Raises: as `interval_linear`.
    """
    places = (stride, padding, dilation, groups)
    operands = (center, radius, weight, bias, weight_radius, clean)
    return _conv("interval_conv2d", 2, operands, places, mode, sound, out_dtype)


def _conv(op, dims, operands, places, mode, sound, out_dtype) -> tuple:
    operands = _checked(op, operands, dims + 2, mode, sound, out_dtype)
    center, weight, clean = operands[0], operands[2], operands[5]
    stride, padding, dilation, groups = places
    if (
        center.dim() != dims + 2
        or groups < 1
        or weight.shape[0] % groups
        or center.shape[1] != weight.shape[1] * groups
    ):
        raise ValueError(
            f"{op}: center must be (B, C, {'HW'[-dims:]}) and weight (N, C / groups, ...) with groups that divide N, "
            f"got {tuple(center.shape)}, {tuple(weight.shape)} and {groups} groups"
        )
    stride, dilation = _each(dims, stride), _each(dims, dilation)
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(s != 1 for s in stride) or any(s % 2 for s in spans):
            raise ValueError(f"{op}: padding 'same' needs stride 1 and odd windows, got stride {stride}")
        padding = [s // 2 for s in spans]
    padding = _each(dims, 0 if padding == "valid" else padding)
    exact = mode == "exact" and operands[4] is not None
    if not (sound or exact):
        return _apply("conv", operands, (stride, padding, dilation, groups), 4)

    def linear(c, r, w, b, wr):
        return interval_linear(c, r, w, b, weight_radius=wr, mode=mode, sound=sound, out_dtype=out_dtype)

    found = _as_linear(linear, *operands[:5], None, stride, padding, dilation, groups)
    if clean is None:
        return found
    conv = {1: F.conv1d, 2: F.conv2d}[dims]
    return (*found, conv(clean, weight, operands[3], stride, padding, dilation, groups))


def _each(dims: int, value: int | tuple[int, ...]) -> list[int]:
    value = [value] * dims if isinstance(value, int) else list(value)
    if len(value) != dims:
        raise ValueError(f"interval_conv{dims}d: stride, padding and dilation take 1 or {dims} numbers, got {value}")
    return value


def _as_linear(linear, center, radius, weight, bias, weight_radius, _, stride, padding, dilation, groups):
    """A convolution as `linear` of its windows, group by group."""
    flat = center.dim() == 3
    if flat:
        center, radius, weight = (t.unsqueeze(2) for t in (center, radius, weight))
        weight_radius = None if weight_radius is None else weight_radius.unsqueeze(2)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    batch, kernel = center.shape[0], weight.shape[2:]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(center.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]

    def windows(t):  # (B, places, groups, C / groups * kernel)
        return F.unfold(t, kernel, dilation, padding, stride).unflatten(1, (groups, -1)).permute(0, 3, 1, 2)

    def rows(t):
        return [None] * groups if t is None else [w.flatten(1) if w.dim() > 1 else w for w in t.chunk(groups)]

    c, r = windows(center), windows(radius)
    parameters = zip(rows(weight), rows(bias), rows(weight_radius), strict=True)
    boxes = [linear(c[:, :, g], r[:, :, g], *p) for g, p in enumerate(parameters)]
    found = []
    for part in zip(*boxes, strict=True):
        t = torch.cat(part, -1).transpose(1, 2).reshape(batch, weight.shape[0], *size)
        found.append(t.squeeze(2) if flat else t)
    return tuple(found)


def _checked(op: str, operands, weight_dims: int, mode: str, sound: bool, out_dtype) -> tuple:
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
    if sound and mode == "exact" and weight_radius is not None:
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
        if t is not None and t.is_cpu and not torch.compiler.is_compiling() and t.numel() and t.detach().min() < 0:
            raise ValueError(f"{op}: {name} must be >= 0, got {float(t.detach().min()):.3g}; l > u is no box")
    return operands
