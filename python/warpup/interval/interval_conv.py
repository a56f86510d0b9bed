"""interval_conv1d and interval_conv2d: a box through a convolution, and through a box of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._products import widest
from warpup.interval.interval_linear import interval_linear, reference_interval_linear
from warpup.interval.interval_product import (
    BOX,
    GRADIENTS,
    OPERAND_GRADIENTS,
    OPERANDS,
    Product,
    apply,
    box,
    box_backward,
    checked,
    filled,
    reference_box,
)

PLACES = "int[] stride, int[] padding, int[] dilation, int groups"
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d}


def reference_interval_conv(
    dims, center, radius, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, weight_radius=None,
    mode="midpoint", clean=None, sound=False, out_dtype=None,
):  # fmt: skip
    """`interval_conv1d` (dims 1) and `interval_conv2d` (dims 2) in plain torch."""
    conv = CONVOLUTIONS[dims]

    def product(x, w, b=None):
        return conv(x, w, b, stride, padding, dilation, groups)

    if weight_radius is not None and mode == "exact":
        linear = lambda *operands: reference_interval_linear(*operands[:4], weight_radius=operands[4], mode=mode)  # noqa: E731
        places = (_each(dims, stride), _each(dims, padding), _each(dims, dilation), groups)
        c, r = _as_linear(linear, center, radius, weight, bias, weight_radius, *places)
        return (c, r) if clean is None else (c, r, product(clean, weight, bias))
    return reference_box(product, center, radius, weight, bias, weight_radius, clean)


# ---- The op ---------------------------------------------------------------------------------------------------------


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


def _laid(t: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    return t if t is None or t.dim() < 2 else t.contiguous(memory_format=layout)


@_op.composite(f"interval_conv({OPERANDS}, {PLACES}) -> {BOX}")
def _(center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups):
    layout = memory_format(center)
    operands = (_laid(t, layout) for t in (center, radius, weight, bias, weight_radius, clean))
    return box(conv_product(layout, stride, padding, dilation, groups), *operands)


@_op.composite(f"interval_conv_backward({GRADIENTS}, {OPERANDS}, {PLACES}, bool[] needs) -> {OPERAND_GRADIENTS}")
def _(gc, gr, gx, *rest):
    center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups, needs = rest
    layout = memory_format(center)
    gc, gr, gx, c, r, w, wr, x = (_laid(t, layout) for t in (gc, gr, gx, center, radius, weight, weight_radius, clean))
    found = box_backward(conv_product(layout, stride, padding, dilation, groups), gc, gr, gx, c, r, w, wr, x, needs)
    return (*filled(found, (center, radius, weight, bias, weight_radius, clean), needs, layout),)


@_op.fake("interval_conv")
def _(center, radius, weight, bias, weight_radius, clean, stride, padding, dilation, groups):
    product = conv_product(memory_format(center), stride, padding, dilation, groups)
    c, r = (torch.empty_like(product.of(center, weight), memory_format=memory_format(center)) for _ in range(2))
    return c, r, center.new_empty(0) if clean is None else torch.empty_like(c)


def _backward_fake(gc, gr, gx, *rest):
    return (*filled((None,) * 6, rest[:6], rest[-1], memory_format(rest[0])),)


_interval_conv = _autograd.differentiable(
    "interval_conv", when={"out_clean": "clean"}, backward_fake=_backward_fake, strided=True
)


# ---- Public functions -----------------------------------------------------------------------------------------------


@explained
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


@explained
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
    operands = checked(op, operands, dims + 2, mode, sound, out_dtype)
    center, radius, weight, bias, weight_radius, clean = operands
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
    if not (sound or mode == "exact"):
        return apply(_interval_conv, operands, stride, padding, dilation, groups, shared=True)

    def linear(c, r, w, b, wr):
        return interval_linear(c, r, w, b, weight_radius=wr, mode=mode, sound=sound, out_dtype=out_dtype)

    found = _as_linear(linear, center, radius, weight, bias, weight_radius, stride, padding, dilation, groups)
    if clean is None:
        return found
    through = widest(CONVOLUTIONS[dims])
    return (*found, through(clean, weight, bias, stride, padding, dilation, groups))


def _each(dims: int, value: int | Sequence[int]) -> list[int]:
    values = [value] * dims if isinstance(value, int) else list(value)
    if len(values) != dims:
        raise ValueError(f"interval_conv{dims}d: stride, padding and dilation take 1 or {dims} numbers, got {values}")
    return values


def _as_linear(linear: Callable, center, radius, weight, bias, weight_radius, stride, padding, dilation, groups):
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
        places = (tuple(each) for each in (dilation, padding, stride))
        return F.unfold(t, kernel, *places).unflatten(1, (groups, -1)).permute(0, 3, 1, 2)

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
