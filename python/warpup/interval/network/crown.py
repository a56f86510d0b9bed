"""CROWN-IBP: linear bounds of the margins, backward through the net, over IBP's boxes in front of the ReLUs.

Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", 2019 (arXiv 1906.06316).
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from warpup.interval.margin_bounds import margin_bounds, others

from .bound import Statistics, Walk, check_box
from .graph import Plan, named_modules, plan_of, unsupported
from .layers import (
    RULES,
    Box,
    add,
    divide,
    negative,
    padding_of,
    scale,
    scale_and_shift,
    sub,
    uses_batch,
)  # fmt: skip
from .shapes import LINEAR, dropout

INSTEAD = "use IBP's `margins` or `margin_loss`"
LINEAR_LAYERS = (
    nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


class Net(NamedTuple):
    """What the way back needs to know of the way there."""

    plan: Plan
    modules: dict[str, nn.Module]
    boxes: dict[fx.Node, Any]  # what every node gave: boxes, sizes, constants
    statistics: Statistics

    def linear(self, node: fx.Node, center: Tensor) -> Tensor:
        """What the node's rule, which does the same to center and radius, makes of its one box's center."""

        def value(used: fx.Node):
            return Box(center, center) if isinstance(self.boxes[used], Box) else self.boxes[used]

        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        layer = (self.modules[node.target],) if node.op == "call_module" else ()
        return self.plan.rules[node](Walk(), *layer, *args, **kwargs).center


def crown_margins(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, clean: Tensor | None = None,
    statistics: Statistics = "clean",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(CROWN-IBP's, IBP's) lower bounds of the margins, (B, K - 1) each; both hold, so does any mean of them.

    lb = min over the box of A x + d, where A and d come from the last layer's differences of rows backward: through
    linear layers as they are, through a ReLU on [l, u] by relu(z) <= u (z - l) / (u - l) and relu(z) >= z if u > -l
    else 0, where l < 0 < u. One backward pass, in which l and u are IBP's.

    module: a graph of Linear, Conv1d, Conv2d, BatchNorm, ReLU, Identity, Dropout in eval mode, average pooling, zero
    padding, reshapes, `cat`, and sums, differences and multiples of tensors of one shape, that ends in Linear; else
    UnsupportedLayer. Memory and work are K - 1 times those of a backward pass. The other arguments are `bound`'s.
    """
    box, boxes = check_box(center, radius, clean), {}
    walk = Walk(statistics=statistics, kept=boxes)
    last, weight, bias = walk.run(module, box, head=True)
    plan, modules = plan_of(module, RULES), named_modules(module)
    rest = others(labels, weight.shape[0])
    a = weight[labels].unsqueeze(1) - weight[rest]
    d = a.new_zeros(a.shape[:2]) if bias is None else bias[labels].unsqueeze(1) - bias[rest]
    net, coefficients = Net(plan, modules, boxes, statistics), {plan.head.all_input_nodes[0]: a}
    for node in reversed(plan.nodes):
        if node not in coefficients:
            continue
        a = coefficients.pop(node)
        if node.op == "placeholder":
            break
        d, operands = _back(net, node, a, d)
        for used, more in operands:
            coefficients[used] = coefficients[used] + more if used in coefficients else more
    a = a.flatten(2)
    crown = d + _dot(a, center) - _dot(a.abs(), radius)
    return crown, margin_bounds(last.center, last.radius, weight, bias, labels)


def crown_ibp_loss(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, beta: float, clean: Tensor | None = None,
    statistics: Statistics = "clean",
) -> Tensor:  # fmt: skip
    """Mean CE(-[0, lb], 0), lb = beta * crown + (1 - beta) * ibp; the paper's beta: `kappa_schedule(eps, eps_max)`."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be from 0 to 1, got {beta}")
    crown, ibp = crown_margins(module, center, radius, labels, clean=clean, statistics=statistics)
    return F.pad(-(beta * crown + (1 - beta) * ibp), (1, 0)).logsumexp(1).mean()


def _dot(a: Tensor, x: Tensor) -> Tensor:
    """(B, M, n) with (B, ...) -> (B, M)."""
    return torch.bmm(a, x.flatten(1).unsqueeze(2)).squeeze(2)


def _back(net: Net, node: fx.Node, a: Tensor, d: Tensor) -> tuple[Tensor, list[tuple[fx.Node, Tensor]]]:
    """(constants, [(operand, its coefficients)]) where node's output has coefficients a and the constants were d."""
    found = net.plan.rules[node]
    if found in (add, sub):
        return _sum(net, node, a, d, 1 if found is add else -1)
    if node.target in (torch.cat, torch.concat):
        return d, _parts(net, node, a)
    source, *others = [used for used in node.all_input_nodes if isinstance(net.boxes[used], Box)]
    if others:
        raise unsupported(node, net.modules, f"CROWN-IBP takes several operands in sums and cat alone; {INSTEAD}")
    x, layer = net.boxes[source], net.modules[node.target] if node.op == "call_module" else None
    if node in net.plan.relus:
        a, d = _relu(a, d, x)
    elif isinstance(layer, nn.Linear):
        a, d = a @ layer.weight, d if layer.bias is None else d + a @ layer.bias
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        a, d = _conv(a, d, layer, x)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        a, d = _batch_norm(a, d, layer, x, net.statistics)
    elif found is negative:
        a = -a
    elif found in (scale, divide):
        a = _multiple(net, node, a, x, found is divide)
    elif isinstance(layer, LINEAR_LAYERS) or (layer is None and node.target in LINEAR):
        _, pull = torch.func.vjp(lambda center: net.linear(node, center), x.center)
        a = torch.vmap(lambda row: pull(row)[0], 1, 1)(a)
    elif not isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d) and found is not dropout:
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for it; {INSTEAD}")
    return d, [(source, a)]


def _same(net: Net, node: fx.Node, x: Box) -> None:
    if x.center.shape != net.boxes[node].center.shape:
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for an operand that is broadcast; {INSTEAD}")


def _sum(net: Net, node: fx.Node, a: Tensor, d: Tensor, sign: int):
    """Back through x + sign alpha y, of which one may be a constant."""
    given = inspect.signature(add).bind(None, *node.args, **node.kwargs).arguments
    operands = []
    for value, factor in ((given["x"], 1), (given["other"], sign * given.get("alpha", 1))):
        known = net.boxes[value] if isinstance(value, fx.Node) else value
        part = a if factor == 1 else a * factor
        if isinstance(known, Box):
            _same(net, node, known)
            operands.append((value, part))
        else:
            d = d + (part * torch.as_tensor(known, dtype=a.dtype, device=a.device)).flatten(2).sum(2)
    return d, operands


def _multiple(net: Net, node: fx.Node, a: Tensor, x: Box, divided: bool) -> Tensor:
    """Back through x k or x / k."""
    _same(net, node, x)
    given = inspect.signature(scale).bind(None, *node.args, **node.kwargs).arguments
    values = [net.boxes[v] if isinstance(v, fx.Node) else v for v in (given["x"], given["other"])]
    [k] = [v for v in values if not isinstance(v, Box)]
    k = torch.as_tensor(k, dtype=a.dtype, device=a.device).expand(x.center.shape).unsqueeze(1)
    return a / k if divided else a * k


def _parts(net: Net, node: fx.Node, a: Tensor) -> list[tuple[fx.Node, Tensor]]:
    """Back through cat."""
    given = inspect.signature(net.plan.rules[node]).bind(None, *node.args, **node.kwargs).arguments
    dim = given.get("dim", 0) % (a.dim() - 1)
    if dim == 0:
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for cat along the batch; {INSTEAD}")
    sizes = [net.boxes[used].center.shape[dim] for used in given["tensors"]]
    return list(zip(given["tensors"], a.split(sizes, dim + 1), strict=True))


def _relu(a: Tensor, d: Tensor, x: Box) -> tuple[Tensor, Tensor]:
    low, high = (x.center - x.radius).unsqueeze(1), (x.center + x.radius).unsqueeze(1)
    crossing = (low < 0) & (high > 0)
    slope = torch.where(crossing, high / torch.where(crossing, high - low, 1), (low >= 0).to(low.dtype))
    lower = torch.where(crossing, (high > -low).to(low.dtype), slope)
    offset = torch.where(crossing, -slope * low, 0)
    up, down = a.clamp(min=0), a.clamp(max=0)
    return up * lower + down * slope, d + (down * offset).flatten(2).sum(2)


def _conv(a: Tensor, d: Tensor, layer: nn.Conv1d | nn.Conv2d, x: Box) -> tuple[Tensor, Tensor]:
    if layer.bias is not None:
        d = d + a.flatten(3).sum(3) @ layer.bias
    padding = padding_of(layer.padding, layer.weight, layer.dilation)
    transpose = F.conv_transpose1d if isinstance(layer, nn.Conv1d) else F.conv_transpose2d
    # Rows that the stride leaves out at the end of the input get their zeros back.
    missing = [
        n - ((o - 1) * s - 2 * p + dil * (k - 1) + 1)
        for n, o, s, p, dil, k in zip(
            x.center.shape[2:], a.shape[3:], layer.stride, padding, layer.dilation, layer.kernel_size, strict=True
        )
    ]
    a = transpose(
        a.flatten(0, 1), layer.weight, None, layer.stride, padding, missing, layer.groups, layer.dilation
    ).unflatten(0, a.shape[:2])
    return a, d


def _batch_norm(a: Tensor, d: Tensor, layer, x: Box, statistics) -> tuple[Tensor, Tensor]:
    if uses_batch(layer, statistics):
        source = x.center if statistics == "midpoint" else x.clean
        var, mean = torch.var_mean(source, [i for i in range(source.dim()) if i != 1], correction=0)
    else:
        mean, var = layer.running_mean, layer.running_var
    scale, shift = scale_and_shift(layer, mean, var, x.center.dim())
    return a * scale.unsqueeze(1), d + (a * shift.unsqueeze(1)).flatten(2).sum(2)
