"""One pass of a box through a module's graph."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from warpup.interval.box_sums import BoxSums
from warpup.interval.interval_arithmetic import OutsideDomain
from warpup.interval.interval_batch_norm import interval_relu
from warpup.interval.sound import check_arithmetic

from . import activations, arithmetic, shapes  # noqa: F401  their rules
from .graph import Plan, named_modules
from .nodes import UnsupportedLayer, call, layer_of, unsupported
from .plans import plan_of
from .rules import RULES, Box, Refusal, boxes_in

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
        if sound:
            check_arithmetic()
        self.sums: list[BoxSums] | None = [] if sums else None
        self.sound, self.statistics, self.shrinkage, self.kept = sound, statistics, shrinkage, kept

    def run(self, module: nn.Module, box: Box, *, head: bool | None = False) -> Any:
        """The output's box; with head=True the box before the last linear layer, and that layer's weight and bias; with
        head=None the same, or where there is no such layer the output's box, None and None."""
        return self.follow(plan_of(module, RULES, box.center, Walk), module, box, head=head)

    def follow(self, plan: Plan, module: nn.Module, box: Box, *, head: bool | None = False) -> Any:
        """`run` by a plan that nothing is asked of."""
        modules = named_modules(module)
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
                return found if head is False else (found, None, None)
            if head is not False and node is plan.head:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "call_module":
                    layer = layer_of(node, modules)
                    kwargs = {"weight": layer.weight, "bias": layer.bias}
                return _linear_arguments(*args, **kwargs)
            if node not in values:  # a ReLU that was fused is there already
                values[node] = self._step(plan, node, modules, values, box)
                if node in plan.fused and self.kept is None:
                    values[plan.fused[node]] = values[node]
            for used in plan.dead.get(node, ()) if self.kept is None else ():
                del values[used]

    def _step(self, plan: Plan, node: fx.Node, modules, values, box: Box) -> Any:
        if not node.op.startswith("call_"):
            return plan.given(node, modules, box)
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if not any(boxes_in(values[used]) for used in node.all_input_nodes):
            return call(node, modules, args, kwargs)
        if (found := plan.rules[node]) is None:
            raise unsupported(node, modules, f"boxes cannot go through it; {REMEDY}")
        if node in plan.fused and self.kept is None:
            kwargs = {"relu": True}
        layer = (layer_of(node, modules),) if node.op == "call_module" else ()
        try:
            out = found(self, *layer, *args, **kwargs)
            if odd := [b.center.dtype for b in boxes_in(out) if not b.center.is_floating_point()]:
                raise Refusal(f"it makes {odd[0]} of a box, and bounds need floating point")
            return out
        except (Refusal, OutsideDomain) as reason:
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
        passed = out
        if self.sums is not None:
            *passed, sums = out
            self.sums.append(sums)
        box = Box(*passed)
        if self.shrinkage != 1:  # a lower bound of 0 and an upper one above it: the ReLU's input crossed 0
            factor = torch.where(box.center == box.radius, self.shrinkage, 1.0).to(box.center.dtype)
            box = Box(box.center * factor, box.radius * factor, box.clean)
        return box

    def ends(self, box: Box) -> tuple[Tensor, Tensor]:
        """Lower and upper end; in sound mode moved outward by more than their rounding, but not across 0: the sign of
        a rounded difference is right."""
        low, high = box.ends()
        if not self.sound:
            return low, high
        info = torch.finfo(box.center.dtype)
        slack = 2 * info.eps * (box.center.abs() + box.radius) + info.tiny
        outer, upper = low - slack, high + slack
        return torch.where(low >= 0, outer.clamp_min(0), outer), torch.where(high <= 0, upper.clamp_max(0), upper)

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
