"""Boxes through products of two boxes and attention: library products around `interval_softmax`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup._op import autocast
from warpup._products import widest
from warpup.interval.interval_box import CenterRadius, checked_box
from warpup.interval.interval_softmax import interval_softmax


@widest
def _matmul(ca: Tensor, ra: Tensor, cb: Tensor, rb: Tensor) -> CenterRadius:
    return ca @ cb, (ca.abs() + ra) @ rb + ra @ cb.abs()


def interval_matmul(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """A box of `x @ y` over all x in `a` and y in `b`, in midpoint-radius form: three library products.

    `center = ca @ cb`, `radius = (|ca| + ra) @ rb + ra @ |cb|`. Sound but for rounding; exact where one of the two has
    radius 0, else at most 1.5 times as wide as the tightest box (Rump 1999). A composition of torch products,
    differentiated by autograd.

    Args:
        a, b: (center, radius) of shapes that `torch.matmul` takes, (..., M, N) and (..., N, P), radius >= 0. Signs are
            not checked: what a negative radius gives is no box. NaN spreads as in `torch.matmul`.

    Returns:
        (center, radius), (..., M, P).

    Raises:
        ValueError: a radius has another shape than its center, or the four are not of one dtype.
    """
    checked_box("interval_matmul", a, " of a"), checked_box("interval_matmul", b, " of b")
    operands = autocast(*a, *b)
    if len({t.dtype for t in operands}) > 1:
        raise ValueError(f"interval_matmul: a and b must have one dtype, got {[t.dtype for t in (*a, *b)]}")
    with torch.autocast(operands[0].device.type, enabled=False):
        return _matmul(*operands)


@explained
def interval_attention(
    query: CenterRadius,
    key: CenterRadius,
    value: CenterRadius,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> CenterRadius:
    """A box of scaled dot-product attention over all queries, keys and values in their boxes.

    Scores by `interval_matmul`, probabilities by `interval_softmax`, and their product with the values in a form that
    knows that they sum to 1: with v0 the mean of the values' centers, `p @ v = v0 + p @ (v - v0)`, so that a shift of
    all values costs no width; then cut to the hull of the values, in which every average lies. Sound; the bounds of the
    scores, of the probabilities and of the product are each taken apart, so not the tightest. A composition, with
    (..., L, S) scores and probabilities in memory; differentiated by autograd.

    Args:
        query, key, value: (center, radius) of (..., L, E), (..., S, E) and (..., S, V), radius >= 0.
        attn_mask: bool, true where a query sees a key, or added to the scores; broadcast to (..., L, S).
        is_causal: query i sees keys 0 to i; not together with attn_mask.
        scale: of the scores; None: 1 / sqrt(E).

    Returns:
        (center, radius), (..., L, V); 0 +- 0 for a query that sees no key.

    Raises:
        ValueError: both attn_mask and is_causal; a radius has another shape than its center.
    """
    for name, box in (("query", query), ("key", key), ("value", value)):
        checked_box("interval_attention", box, f" of {name}")
    if attn_mask is not None and is_causal:
        raise ValueError("interval_attention: attn_mask and is_causal were both given, expected one of them")
    scale = 1 / math.sqrt(query[0].shape[-1]) if scale is None else scale
    center, radius = interval_matmul((query[0] * scale, query[1] * abs(scale)), (key[0].mT, key[1].mT))
    if is_causal:
        attn_mask = torch.ones(center.shape[-2:], dtype=torch.bool, device=center.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        center = center.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        center = center + attn_mask
    seen = (center != -torch.inf).any(-1, keepdim=True)
    box = interval_softmax(center, radius)
    shift = value[0].mean(-2, keepdim=True)
    moved, radius = interval_matmul(box, (value[0] - shift, value[1]))
    center = moved + shift
    lower = torch.maximum(center - radius, (value[0] - value[1]).amin(-2, keepdim=True))
    upper = torch.minimum(center + radius, (value[0] + value[1]).amax(-2, keepdim=True))
    upper = torch.maximum(lower, upper)  # of a box without width, which the cut's roundings may turn over
    return torch.where(seen, (lower + upper) / 2, 0.0), torch.where(seen, (upper - lower) / 2, 0.0)
