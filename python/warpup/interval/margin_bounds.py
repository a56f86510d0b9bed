"""Margins: lower bounds of the label's logit minus each other one, over a box of inputs to the last layer.

Contract, numerics and bytes moved: csrc/interval/margin_bounds.h.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator, autocast

REDUCTIONS = ("mean", "sum", "none")


def others(labels: Tensor, classes: int) -> Tensor:
    """(B, K - 1): the classes that are not the label, ascending."""
    rest = torch.arange(classes - 1, device=labels.device)
    return rest + (rest >= labels.unsqueeze(1))


def reference_margin_bounds(center, radius, weight, bias, labels):
    """`margin_bounds` in plain torch, with a (B, K - 1, H) difference of weights."""
    rest = others(labels, weight.shape[0])
    w = weight[labels].unsqueeze(1) - weight[rest]
    bound = torch.einsum("bkh,bh->bk", w, center) - torch.einsum("bkh,bh->bk", w.abs(), radius)
    return bound if bias is None else bound + bias[labels].unsqueeze(1) - bias[rest]


def reference_margin_cross_entropy(center, radius, weight, bias, labels, *, reduction="mean", bounds=False):
    """`margin_cross_entropy` in plain torch: cross-entropy of (0, -margins) at the first entry."""
    bound = reference_margin_bounds(center, radius, weight, bias, labels)
    loss = F.pad(-bound, (1, 0)).logsumexp(1)
    loss = {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()
    return (loss, bound) if bounds else loss


@_op.fake("margin_bounds")
def _(center, radius, weight, bias, labels, with_loss):
    options = {"dtype": accumulator(center), "device": center.device}
    batch, others = center.shape[0], weight.shape[0] - 1
    asked = batch if with_loss else 0
    return tuple(torch.empty(shape, **options) for shape in ((batch, others), asked, (asked, others)))


def _backward_fake(center, radius, weight, *rest):
    shapes = (center.shape, center.shape, weight.shape, weight.shape[:1])
    return tuple(center.new_empty(shape) for shape in shapes)


_margin_bounds = _autograd.differentiable("margin_bounds", when={"share": "with_loss"}, backward_fake=_backward_fake)


def _margins(op: str, center, radius, weight, bias, labels, with_loss: bool) -> tuple[Tensor, ...]:
    center, radius, weight, bias = autocast(center, radius, weight, bias)
    for name, tensor in (("center", center), ("weight", weight)):
        if tensor.dim() != 2:
            raise ValueError(f"{op}: {name} must have 2 dimensions, got shape {tuple(tensor.shape)}")
    if labels.shape != center.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{op}: labels must be int64 of shape ({center.shape[0]},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    center, radius, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (center, radius, weight))
    return _margin_bounds(center, radius, weight, bias, labels.contiguous(), with_loss)


@explained
def margin_bounds(center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Lower bounds of `z[label] - z[other]`, `z = weight @ x + bias`, over all x with |x - center| <= radius.

    `m[k] = (W[y] - W[k]) . center - |W[y] - W[k]| . radius + b[y] - b[k]`: exact for one layer, and tighter than the
    difference of the logits' bounds (the last layer is elided). A sample is certified if all are above 0. Differences
    of weights are formed in registers: no (B, K - 1, H) exists, and the backward saves no more than the inputs.

    Args:
        center, radius: (B, H) float32, bfloat16, float16 or float64, radius >= 0; rows may be strided. Under autocast
            these, weight and bias are cast to its type. Signs are not checked: a negative radius gives the bounds of
            an empty box (above those of the center), a NaN spreads.
        weight, bias: (K, H) and (K,) or None, of the same dtype: the last layer's.
        labels: (B,) int64 in [0, K).

    Returns:
        (B, K - 1) float32 (float64 for float64), the other classes in ascending order. Gradients are exact, with
        sign(0) = 0 where two weights are equal.

    Raises:
        ValueError: a shape, dtype or device does not fit, or (CPU only) a label is out of range. On CUDA, where
            checking would synchronise, such a row gives NaN.

    Source: elision of the last layer, Gowal et al. 2018 (arXiv 1810.12715).
    """
    return _margins("margin_bounds", center, radius, weight, bias, labels, False)[0]


@overload
def margin_cross_entropy(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, reduction: str = ...,
    bounds: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def margin_cross_entropy(
    center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, reduction: str = ...,
    bounds: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@explained
def margin_cross_entropy(
    center: Tensor,
    radius: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    reduction: str = "mean",
    bounds: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of the worst case in the box: `log(1 + sum_k exp(-m[k]))` with the m of `margin_bounds`.

    It is `cross_entropy` of the logits (0, -m) for class 0, and with radius 0 that of the plain logits. Beside the
    inputs one (B, K - 1) is saved for the backward.

    Args:
        center, radius, weight, bias, labels: as in `margin_bounds`.
        reduction: "mean", "sum" or "none" over the samples.
        bounds: also return the margins, of which `(m > 0).all(1)` tells what is certified.

    Returns:
        The loss, a scalar or (B,), in float32 (float64 for float64), or (loss, bounds); both are differentiable.

    Raises:
        ValueError: as `margin_bounds`, or reduction is unknown.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"margin_cross_entropy: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    found, loss, _ = _margins("margin_cross_entropy", center, radius, weight, bias, labels, True)
    loss = loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
    return (loss, found) if bounds else loss
