"""Bounds of an ordinary `nn.Module`, layer by layer, and the margins and loss of a classifier.

Interval bound propagation as in Gowal et al. 2018 (arXiv 1810.12715): a box [center - radius, center + radius] goes
through each layer by itself, and what comes out contains every output of every input in the box.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup._op import accumulator
from warpup.interval.box_sums import BoxSums
from warpup.interval.margin_bounds import margin_bounds, margin_cross_entropy, others
from warpup.interval.sound import check_arithmetic

from .rules import Box
from .walk import Statistics, Walk, check_box

Specification = tuple[Tensor, Tensor | None]  # (C, d)


def bound(
    module: nn.Module,
    center: Tensor,
    radius: Tensor,
    *,
    clean: Tensor | None = None,
    sums: bool = False,
    sound: bool = False,
    statistics: Statistics = "clean",
    shrinkage: float = 1.0,
    specification: Specification | None = None,
) -> Any:
    """Bounds of `module(x)` over all x with |x - center| <= radius: (center, radius[, clean][, sums]).

    module: any module that torch.fx can trace (Sequential, residual graphs) of the layers that have rules: see
        docs/interval.md. In-place operations do what torch does, to whoever shares the memory. BatchNorm whose only
        user is a ReLU is one operator with it. The first call for a shape of the input holds the trace against the
        module itself, at radius 0; it is traced anew when a submodule, its type, hooks, mode, plain attributes or
        shapes of parameters have changed, or a rule was added. What forward reads from elsewhere (globals, files) is
        that of the first call.
    center, radius: (B, ...) floating point; radius at least 0.
    clean: (B, ...), a point that goes through the layers beside the box; its output is returned, and batch
        normalisation in training mode takes its statistics from it.
    sums: also return a list of `BoxSums`, one a ReLU in the order of the graph, of the box before it (see
        `tightness_loss`).
    sound: enlarge the box by all rounding errors, so that it contains the exact outputs of the network as stored (real
        arithmetic), not only up to rounding. Needs eval mode or frozen statistics, float32 products of full precision
        and numbers below the least normal one (`torch.set_flush_denormal(False)`): else ValueError.
    statistics: of batch normalisation in training mode: the "clean" pass's mean and biased variance (differentiated
        through), the "midpoint"'s, or "frozen" running ones. The first two update the running statistics like a
        forward.
    shrinkage: factor on the upper bound of each ReLU whose input box crosses 0; below 1 the result is no bound (see
        `sabr_box`).
    specification: (C, d), to bound `C y + d` in place of the output y, (B, K): C is (M, K), or (B, M, K) one a sample;
        d is (M,), (B, M) or None. If the module ends in a linear layer, C is taken together with its weight (elision),
        which is tighter. Given in float32 for 16-bit modules. (With rows e_y - e_k it bounds the margins of label y.)

    NaN in center propagates. On a GPU, radius is not looked at: a negative one gives boxes with l > u.
    Raises ValueError on a wrong box, `UnsupportedLayer` (a ValueError) naming the layer that has no rule, or the first
    one at which the box without extent does not hold what the module itself computes.
    """
    walk = Walk(sums=sums, sound=sound, statistics=statistics, shrinkage=shrinkage)
    if specification is None:
        box = walk.run(module, check_box(center, radius, clean))
    else:
        last, weight, bias = walk.run(module, check_box(center, radius, clean), head=None)
        box = specified(last, weight, bias, specification, sound)
    return (*box[: 2 if clean is None else 3], *([walk.sums] if sums else ()))


def specified(x: Box, weight: Tensor | None, bias: Tensor | None, given: Specification, sound: bool) -> Box:
    """The box of C (weight x + bias) + d; without a weight, of C x + d."""
    outputs = x.center.shape[1:] if weight is None else weight.shape[:1]
    if x.center.dim() != 2:
        raise ValueError(f"a specification is of outputs (B, K); the module's are {tuple(x.center.shape)}")
    c, d = checked_specification(given, len(x.center), outputs[0], x.center)
    with torch.autocast(x.center.device.type, enabled=False):
        x = x.each(torch.Tensor.to, c.dtype)
        rows, shift = c, d
        if weight is not None:
            rows = c @ weight.to(c.dtype)
            shift = d if bias is None else d + c @ bias.to(c.dtype)
        center, radius = _rows_times(rows, x.center) + shift, _rows_times(rows.abs(), x.radius)
        clean = None if x.clean is None else _rows_times(rows, x.clean) + shift
        if sound:
            # Every number above is a sum of products, with no more roundings of each than terms. A product that
            # underflows loses up to `tiny`, which what it is multiplied by later may enlarge.
            check_arithmetic()
            size, terms = x.center.abs() + x.radius, outputs[0] + x.center.shape[1] + 8
            lost = 1 + size.sum(1, keepdim=True) + c.abs().sum(-1)
            if weight is not None:
                size = F.linear(size, weight.abs().to(c.dtype), None if bias is None else bias.abs().to(c.dtype))
            info = torch.finfo(c.dtype)
            radius = radius + terms * (info.eps * (_rows_times(c.abs(), size) + d.abs()) + info.tiny * lost)
    return Box(center, radius, clean)


def _rows_times(rows: Tensor, x: Tensor) -> Tensor:
    """(M, K) or (B, M, K), and (B, K) -> (B, M)."""
    return F.linear(x, rows) if rows.dim() == 2 else torch.bmm(rows, x.unsqueeze(2)).squeeze(2)


def pair(given: Specification) -> Specification:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"specification must be a pair (C, d), where d may be None; got {type(given).__name__}")
    c, d = given
    return c, d


def checked_specification(given: Specification, batch: int, outputs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """C and d in the dtype that sums over outputs are made in, or ValueError."""
    c, d = pair(given)
    shaped = isinstance(c, Tensor) and c.dim() in (2, 3) and c.shape[:-2] in ((), (batch,))
    if not shaped or c.shape[-1] != outputs:
        got = tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__
        raise ValueError(f"specification: C must be (M, {outputs}) or ({batch}, M, {outputs}), got {got}")
    rows = c.shape[-2]
    if d is not None and (not isinstance(d, Tensor) or d.shape not in ((rows,), (batch, rows))):
        got = tuple(d.shape) if isinstance(d, Tensor) else type(d).__name__
        raise ValueError(f"specification: d must be ({rows},), ({batch}, {rows}) or None, got {got}")
    options = {"dtype": accumulator(like), "device": like.device}
    return c.to(**options), torch.zeros(rows, **options) if d is None else d.to(**options)


def margins(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, sound: bool = False,
    statistics: Statistics = "frozen",
) -> Tensor:  # fmt: skip
    """(B, K - 1) lower bounds of the label's logit minus each other one; a row above 0 is a verified sample.

    The last linear layer is taken together with the difference of logits (elision), which is tighter than the
    difference of their bounds. labels: (B) int64. statistics: see `bound`; running ones by default, whatever the mode.
    sound: see `bound`; the last layer's product of length H is charged H + 8 roundings of its magnitude.
    Raises as `bound` does, and if the module does not end in a linear layer.
    """
    box, weight, bias = Walk(sound=sound, statistics=statistics).run(module, check_box(center, radius, None), head=True)
    if not sound:
        return margin_bounds(box.center, box.radius, weight, bias, labels)
    check_arithmetic()
    with torch.autocast(center.device.type, enabled=False):
        found = margin_bounds(box.center, box.radius, weight, bias, labels)
        size = F.linear(box.center.abs() + box.radius, weight.abs(), None if bias is None else bias.abs())
    both = size.gather(1, others(labels, len(weight))) + size.gather(1, labels.unsqueeze(1))
    info = torch.finfo(found.dtype)
    return found - ((weight.shape[1] + 8) * info.eps * both + info.tiny)


@overload
def margin_loss(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, clean: Tensor | None = ...,
    kappa: float = ..., sums: Literal[False] = ..., statistics: Statistics = ..., shrinkage: float = ...,
) -> Tensor: ...  # fmt: skip
@overload
def margin_loss(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, clean: Tensor | None = ...,
    kappa: float = ..., sums: Literal[True], statistics: Statistics = ..., shrinkage: float = ...,
) -> tuple[Tensor, list[BoxSums]]: ...  # fmt: skip


def margin_loss(
    module: nn.Module,
    center: Tensor,
    radius: Tensor,
    labels: Tensor,
    *,
    clean: Tensor | None = None,
    kappa: float = 0.0,
    sums: bool = False,
    statistics: Statistics = "clean",
    shrinkage: float = 1.0,
) -> Tensor | tuple[Tensor, list[BoxSums]]:
    """kappa * CE(logits of clean) + (1 - kappa) * CE(-[0, margins], 0), mean over the batch: loss[, sums].

    Robust cross-entropy of the margins' lower bounds with the last linear layer elided (`margin_cross_entropy`); the
    other arguments are `bound`'s. kappa: `kappa_schedule` gives the usual one, Shi et al. 2021 use 0; above 0 it needs
    clean.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa must be from 0 to 1, got {kappa}")
    if kappa and clean is None:
        raise ValueError(f"kappa={kappa} weighs the clean loss: pass clean=")
    walk = Walk(sums=sums, statistics=statistics, shrinkage=shrinkage)
    box, weight, bias = walk.run(module, check_box(center, radius, clean), head=True)
    loss = margin_cross_entropy(box.center, box.radius, weight, bias, labels)
    if kappa:
        loss = kappa * F.cross_entropy(F.linear(box.clean, weight, bias), labels) + (1 - kappa) * loss
    return loss if walk.sums is None else (loss, walk.sums)
