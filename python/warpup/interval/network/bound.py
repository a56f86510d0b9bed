"""Bounds of an ordinary `nn.Module`, layer by layer, and the margins and loss of a classifier.

Interval bound propagation as in Gowal et al. 2018 (arXiv 1810.12715): a box [center - radius, center + radius] goes
through each layer by itself, and what comes out contains every output of every input in the box.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from warpup.interval.interval_batch_norm import BoxSums, interval_relu
from warpup.interval.margin_bounds import margin_bounds, margin_cross_entropy, others
from warpup.interval.sound import check_precision

from . import activations, shapes  # noqa: F401  their rules
from .graph import Plan, UnsupportedLayer, named_modules, plan_of, unsupported
from .layers import RULES, Box, Refusal

Statistics = Literal["clean", "midpoint", "frozen"]
REMEDY = "build it of supported layers, or add a rule for its type with warpup.interval.rule"


class Walk:
    """One pass of a box through a module. Rules read `sound` and `statistics` and call the methods below.

    kept: if a dict, the box at every node of the graph goes there, and no two layers are fused.
    """

    def __init__(
        self, *, sums=False, sound=False, statistics: Statistics = "clean", shrinkage=1.0,
        kept: dict[fx.Node, Box] | None = None,
    ):  # fmt: skip
        if statistics not in ("clean", "midpoint", "frozen"):
            raise ValueError(f"statistics must be 'clean', 'midpoint' or 'frozen', got {statistics!r}")
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must be above 0 and at most 1, got {shrinkage}")
        if sound and shrinkage != 1:
            raise ValueError(f"shrinkage={shrinkage} gives up soundness, so sound=True cannot hold")
        self.sums: list[BoxSums] | None = [] if sums else None
        self.sound, self.statistics, self.shrinkage, self.kept = sound, statistics, shrinkage, kept

    def run(self, module: nn.Module, box: Box, *, head=False) -> Any:
        """The output's box; with head=True the box before the last linear layer, and that layer's weight and bias."""
        plan, modules = plan_of(module, RULES), named_modules(module)
        if head and plan.head is None:
            raise UnsupportedLayer(
                f"{type(module).__name__} does not end in a linear layer, which margins are taken at; take `bound` and "
                "make the loss of its box"
            )
        values = {} if self.kept is None else self.kept
        for node in plan.nodes:
            if node.op == "output":
                found = fx.map_arg(node.args[0], values.__getitem__)
                if not isinstance(found, Box):
                    raise UnsupportedLayer(
                        f"{type(module).__name__} must return one tensor, got {type(found).__name__}"
                    )
                return found
            if head and node is plan.head:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "call_module":
                    kwargs = {"weight": modules[node.target].weight, "bias": modules[node.target].bias}
                return _linear_arguments(*args, **kwargs)
            if node not in values:  # a ReLU that was fused is there already
                values[node] = self._step(plan, node, modules, values, box)
                if node in plan.fused and self.kept is None:
                    values[plan.fused[node]] = values[node]
            for used in plan.dead.get(node, ()) if self.kept is None else ():
                del values[used]

    def _step(self, plan: Plan, node: fx.Node, modules, values, box: Box) -> Any:
        if node.op == "placeholder":
            if any(isinstance(value, Box) for value in values.values()):
                if not node.args:
                    raise UnsupportedLayer(f"the module's forward takes a second input {node.target!r}, expected one")
                return node.args[0]
            return box
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            return getattr(modules[owner], name)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if not any(isinstance(values.get(used), Box) for used in node.all_input_nodes):
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return (modules[node.target] if node.op == "call_module" else node.target)(*args, **kwargs)
        if (found := plan.rules[node]) is None:
            raise unsupported(node, modules, f"boxes cannot go through it; {REMEDY}")
        if node in plan.fused and self.kept is None:
            kwargs = {"relu": True}
        layer = (modules[node.target],) if node.op == "call_module" else ()
        try:
            return found(self, *layer, *args, **kwargs)
        except Refusal as reason:
            raise unsupported(node, modules, str(reason)) from None
        except TypeError:
            try:
                inspect.signature(found).bind(self, *layer, *args, **kwargs)
            except TypeError as misfit:
                reason = f"{misfit}, which its rule does not take: leave the option out, or {REMEDY}"
                raise unsupported(node, modules, reason) from None
            raise

    def relu(self, x: Box) -> Box:
        sums = self.sums is not None
        return self.after_relu(interval_relu(x.center, x.radius, clean=x.clean, sums=sums, sound=self.sound))

    def after_relu(self, out: tuple) -> Box:
        """What `interval_relu`, or a fused operator, returned: keep the sums, give the box."""
        if self.sums is not None:
            *out, sums = out
            self.sums.append(sums)
        box = Box(*out)
        if self.shrinkage != 1:  # a lower bound of 0 and an upper one above it: the ReLU's input crossed 0
            factor = torch.where(box.center == box.radius, self.shrinkage, 1.0).to(box.center.dtype)
            box = Box(box.center * factor, box.radius * factor, box.clean)
        return box

    def rounded(self, box: Box) -> Box:
        """After a few roundings in each element: a wider box in sound mode."""
        return self.wider(box, 4) if self.sound else box

    def wider(self, box: Box, roundings: int, size: Tensor | None = None) -> Box:
        """Radius + roundings * eps * size (default: the box's own magnitude)."""
        info = torch.finfo(box.center.dtype)
        size = box.center.abs() + box.radius if size is None else size
        return box._replace(radius=box.radius + (roundings * info.eps * size + info.tiny))


def _linear_arguments(input, weight, bias=None):
    return input, weight, bias


def check_box(center: Tensor, radius: Tensor, clean: Tensor | None) -> Box:
    """The box, or ValueError. Values are looked at on the CPU only: on a GPU that would wait for it."""
    for name, value in (("center", center), ("radius", radius), ("clean", clean)):
        if value is None and name == "clean":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a floating-point tensor, got {got}")
        if value.shape != center.shape or value.dtype != center.dtype:
            wanted, got = (f"{tuple(t.shape)} {t.dtype}" for t in (center, value))
            raise ValueError(f"{name} must have center's shape and dtype {wanted}, got {got}")
    if not radius.is_cuda and radius.numel() and not (low := radius.detach().min()) >= 0:
        raise ValueError(f"radius must be at least 0, got {low:g}")
    return Box(center, radius, clean)


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
) -> Any:
    """Bounds of `module(x)` over all x with |x - center| <= radius: (center, radius[, clean][, sums]).

    module: any module that torch.fx can trace (Sequential, residual graphs) of the layers that have rules: Linear,
        Conv1d, Conv2d, BatchNorm1d, BatchNorm2d, ReLU and other activations, pooling, Flatten, Dropout in eval mode,
        Identity, additions and subtractions, `cat`, reshapes, and their functional forms. BatchNorm whose only user is
        a ReLU is one operator with it. The trace is kept until a submodule's name, type, hooks or training flag change;
        plain attributes that forward reads are those of the first call.
    center, radius: (B, ...) floating point; radius at least 0.
    clean: (B, ...), a point that goes through the layers beside the box; its output is returned, and batch
        normalisation in training mode takes its statistics from it.
    sums: also return a list of `BoxSums`, one a ReLU in the order of the graph, of the box before it (see
        `tightness_loss`).
    sound: enlarge the box by all rounding errors, so that it contains the exact outputs of the network as stored (real
        arithmetic), not only up to rounding. Needs eval mode or frozen statistics.
    statistics: of batch normalisation in training mode: the "clean" pass's mean and biased variance (differentiated
        through), the "midpoint"'s, or "frozen" running ones. The first two update the running statistics like a
        forward.
    shrinkage: factor on the upper bound of each ReLU whose input box crosses 0; below 1 the result is no bound (see
        `sabr_box`).

    NaN in center propagates. On a GPU, radius is not looked at: a negative one gives boxes with l > u.
    Raises ValueError on a wrong box, `UnsupportedLayer` (a ValueError) naming the layer that has no rule.
    """
    walk = Walk(sums=sums, sound=sound, statistics=statistics, shrinkage=shrinkage)
    box = walk.run(module, check_box(center, radius, clean))
    return (*box[: 2 if clean is None else 3], *([walk.sums] if sums else ()))


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
    check_precision()
    with torch.autocast(center.device.type, enabled=False):
        found = margin_bounds(box.center, box.radius, weight, bias, labels)
        size = F.linear(box.center.abs() + box.radius, weight.abs(), None if bias is None else bias.abs())
    both = size.gather(1, others(labels, len(weight))) + size.gather(1, labels.unsqueeze(1))
    info = torch.finfo(found.dtype)
    return found - ((weight.shape[1] + 8) * info.eps * both + info.tiny)


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
) -> Any:
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
    return (loss, walk.sums) if sums else loss
