"""CROWN-IBP: linear bounds of the margins, backward through the net, over IBP's boxes in front of the ReLUs.

Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", 2019 (arXiv 1906.06316).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from warpup.ops.interval_margin import margin_bounds, others

from .bound import Statistics, Walk, check_box
from .graph import calls, named_modules, plan_of, unsupported
from .layers import RULES, Box, padding_of, scale_and_shift, uses_batch

Back = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (B, K - 1, ...) coefficients and (B, K - 1) constants


def crown_margins(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, clean: Tensor | None = None,
    statistics: Statistics = "clean",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(CROWN-IBP's, IBP's) lower bounds of the margins, (B, K - 1) each; both hold, so does any mean of them.

    lb = min over the box of A x + d, where A and d come from the last layer's differences of rows backward: through
    linear layers as they are, through a ReLU on [l, u] by relu(z) <= u (z - l) / (u - l) and relu(z) >= z if u > -l
    else 0, where l < 0 < u. One backward pass, in which l and u are IBP's.

    module: a chain of Linear, Conv1d, Conv2d, BatchNorm, ReLU, Flatten, Identity and Dropout in eval mode that ends in
    Linear. Memory and work are K - 1 times those of a backward pass. The other arguments are `bound`'s.
    """
    box, boxes = check_box(center, radius, clean), {}
    walk = Walk(statistics=statistics, kept=boxes)
    last, weight, bias = walk.run(module, box, head=True)
    plan, modules = plan_of(module, RULES), named_modules(module)
    rest = others(labels, weight.shape[0])
    a = weight[labels].unsqueeze(1) - weight[rest]
    d = a.new_zeros(a.shape[:2]) if bias is None else bias[labels].unsqueeze(1) - bias[rest]
    node = plan.head.all_input_nodes[0]
    while node.op != "placeholder":
        a, d = _back(plan, node, modules, boxes, statistics)(a, d)
        node = node.args[0]
    a = a.flatten(2)
    crown = d + _dot(a, center) - _dot(a.abs(), radius)
    return crown, margin_bounds(last.center, last.radius, weight, bias, labels)


def crown_ibp_loss(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, beta: float, clean: Tensor | None = None,
    statistics: Statistics = "clean",
) -> Tensor:  # fmt: skip
    """Mean CE(-[0, lb], 0), lb = beta * crown + (1 - beta) * ibp; the paper's beta: `kappa_schedule(eps, eps_max)`."""
    crown, ibp = crown_margins(module, center, radius, labels, clean=clean, statistics=statistics)
    return F.pad(-(beta * crown + (1 - beta) * ibp), (1, 0)).logsumexp(1).mean()


def _dot(a: Tensor, x: Tensor) -> Tensor:
    """(B, M, n) with (B, ...) -> (B, M)."""
    return torch.bmm(a, x.flatten(1).unsqueeze(2)).squeeze(2)


def _back(plan, node: fx.Node, modules, boxes: dict[fx.Node, Box], statistics) -> Back:
    """How coefficients go from a node's output to its input."""
    source = node.args[0] if node.args else None
    x = boxes.get(source)
    if sum(isinstance(boxes[used], Box) for used in node.all_input_nodes) != 1:
        raise unsupported(node, modules, "CROWN-IBP goes through chains of single-input layers only")
    layer = modules[node.target] if node.op == "call_module" else None
    if node in plan.relus:
        return lambda a, d: _relu(a, d, x)
    if isinstance(layer, nn.Linear):
        return lambda a, d: (a @ layer.weight, d if layer.bias is None else d + a @ layer.bias)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return lambda a, d: _conv(a, d, layer, x)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return lambda a, d: _batch_norm(a, d, layer, x, statistics)
    if isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d):
        return lambda a, d: (a, d)
    if isinstance(layer, nn.Flatten) or calls(node, (torch.flatten, "flatten", "reshape", "view")):
        return lambda a, d: (a.reshape(*a.shape[:2], *x.center.shape[1:]), d)
    raise unsupported(node, modules, "CROWN-IBP has no rule for it; use IBP's `margins` or `margin_loss`")


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
