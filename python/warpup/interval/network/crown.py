"""CROWN-IBP: linear bounds of the margins, backward through the net, over IBP's boxes in front of the ReLUs.

Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", 2019 (arXiv 1906.06316);
max-pooling as in Singh et al., "An Abstract Domain for Certifying Neural Networks", 2019 (DeepPoly).
"""

from __future__ import annotations

import inspect
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from warpup.interval.margin_bounds import margin_bounds, others

from .bound import Specification, checked_specification, pair, specified
from .graph import Plan, named_modules
from .layers import (
    batch_norm,
    conv_layer,
    divide,
    linear,
    padding_of,
    relu,
    scale,
    scale_and_shift,
    uses_batch,
)
from .nodes import UnsupportedLayer, call, layer_of, unsupported
from .plans import held, plan_of, probe, undisturbed
from .rules import RULES, Box, boxes_in
from .shapes import MAX_POOLS
from .walk import Statistics, Walk, check_box

INSTEAD = "use IBP's `margins` or `margin_loss`"


class Net(NamedTuple):
    """What the way back needs to know of the way there."""

    plan: Plan
    modules: dict[str, nn.Module]
    boxes: dict[fx.Node, Any]  # what every node gave: boxes, tuples of them, sizes, constants
    statistics: Statistics


def crown_margins(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor | None = None, *, clean: Tensor | None = None,
    statistics: Statistics = "clean", specification: Specification | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(CROWN-IBP's, IBP's) lower bounds of the margins, (B, K - 1) each; both hold, so does any mean of them.

    Or, with specification=(C, d) in place of labels (see `bound`), those of `C y + d`, (B, M).

    lb = min over the box of A x + d, where A and d come from the last layer's differences of rows backward: through
    linear layers as they are, through a ReLU on [l, u] by relu(z) <= u (z - l) / (u - l) and relu(z) >= z if u > -l
    else 0, where l < 0 < u. One backward pass, in which l and u are IBP's.

    module: a graph of ReLU, max-pooling and what is linear but for a constant (Linear, convolutions, BatchNorm, average
    pooling, padding, upsampling, reshapes, sums, `cat`, `chunk`, multiples, ...) that ends in Linear and keeps samples
    apart; else UnsupportedLayer. Memory and work are K - 1 times those of a backward pass. The other arguments are
    `bound`'s.
    """
    if labels is not None and specification is None:
        wanted = labels
    elif labels is None and specification is not None:
        wanted = pair(specification)
    else:
        raise ValueError("crown_margins needs labels or a specification, and not both")
    box = check_box(center, radius, clean)
    plan = plan_of(module, RULES, center, Walk)
    if "crown" not in plan.held:
        with undisturbed(module):
            _check_margins(plan, module, probe(center), wanted)
        plan.held.add("crown")
    return _margins(plan, module, box, wanted, statistics)


def _check_margins(plan: Plan, module: nn.Module, x: Tensor, wanted: Tensor | Specification) -> None:
    def found(plan: Plan, module: nn.Module, x: Tensor):
        crown, _ = _margins(plan, module, Box(x, torch.zeros_like(x), x), wanted, "clean")
        logits = module(x.clone())
        if isinstance(wanted, Tensor):
            margins = logits.gather(1, wanted.unsqueeze(1)) - logits.gather(1, others(wanted, logits.shape[1]))
        else:
            point = Box(logits, torch.zeros_like(logits))
            margins = specified(point, None, None, wanted, sound=False).center
        return crown, torch.zeros_like(crown), margins

    if not held(found, plan, module, x):
        raise UnsupportedLayer(
            f"{type(module).__name__}: CROWN-IBP's margins at radius 0 are not the module's own, as when one sample's "
            f"output depends on another sample; {INSTEAD}"
        )


def _margins(
    plan: Plan, module: nn.Module, box: Box, wanted: Tensor | Specification, statistics: Statistics
) -> tuple[Tensor, Tensor]:
    """wanted: labels, or a specification."""
    net = Net(plan, named_modules(module), {}, statistics)
    last, weight, bias = Walk(statistics=statistics, kept=net.boxes).follow(plan, module, box, head=True)
    if isinstance(wanted, Tensor):
        rest = others(wanted, weight.shape[0])
        a = weight[wanted].unsqueeze(1) - weight[rest]
        d = a.new_zeros(a.shape[:2]) if bias is None else bias[wanted].unsqueeze(1) - bias[rest]
    else:
        c, d = (t.to(weight.dtype) for t in checked_specification(wanted, len(box.center), len(weight), box.center))
        c = c.expand(len(box.center), *c.shape[-2:])
        a = c @ weight
        d = (d if bias is None else d + c @ bias).expand(a.shape[:2])
    # Of each node, the margins' coefficients (B, M, ...) of its value; of a tuple of pieces, those of each piece.
    assert plan.head is not None  # or `follow` had raised
    coefficients: dict[fx.Node, Any] = {plan.head.all_input_nodes[0]: a}
    for node in reversed(plan.nodes):
        if node not in coefficients or node is plan.input:
            continue
        if any(b.center.dim() == 0 or len(b.center) != len(a) for b in boxes_in(net.boxes[node])):
            raise unsupported(node, net.modules, f"CROWN-IBP has no rule for what joins or splits the batch; {INSTEAD}")
        d, operands = _back(net, node, coefficients.pop(node), d)
        for used, more in operands:
            known = coefficients.get(used)
            if known is not None and isinstance(more, list):
                coefficients[used] = [x + y for x, y in zip(known, more, strict=True)]
            else:
                coefficients[used] = more if known is None else known + more
    crown = d
    if (a := coefficients.get(plan.input)) is not None:
        crown = d + _dot(a, box.center) - _dot(a.abs(), box.radius)
    if isinstance(wanted, Tensor):
        return crown, margin_bounds(last.center, last.radius, weight, bias, wanted)
    of_rows = specified(last, weight, bias, wanted, sound=False)
    return crown, of_rows.center - of_rows.radius


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
    """(B, M, ...) with (B, ...) -> (B, M)."""
    return torch.bmm(a.reshape(*a.shape[:2], -1), x.reshape(len(x), -1, 1)).squeeze(2)


def _back(net: Net, node: fx.Node, a: Any, d: Tensor) -> tuple[Tensor, list[tuple[fx.Node, Any]]]:
    """(constants, [(operand, its coefficients)]) where node's output has coefficients a and the constants were d."""
    kind, layer = net.plan.kinds[node], layer_of(node, net.modules) if node.op == "call_module" else None
    sources = [used for used in node.all_input_nodes if boxes_in(net.boxes[used])]
    x = net.boxes[sources[0]]
    if kind is relu:
        a, d = _relu(a, d, x)
    elif kind in MAX_POOLS:
        a, d = _max_pool(net, node, layer, a, d, x)
    elif kind is linear and layer is not None:
        d = d if layer.bias is None else d + (a @ layer.bias).reshape(*d.shape, -1).sum(2)
        a = a @ layer.weight
    elif kind is batch_norm:
        a, d = _batch_norm(a, d, layer, x, net.statistics)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d) and kind is conv_layer and layer.padding_mode == "zeros":
        a, d = _conv(a, d, layer, x)
    elif kind is scale and all(used in sources for used in (*node.args, *node.kwargs.values())):  # x * x too
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for a product of two boxes; {INSTEAD}")
    elif kind is divide and (*node.args, *node.kwargs.values())[1] in sources:
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for a division by a box; {INSTEAD}")
    elif kind in RULES.affine:
        return _affine(net, node, sources, a, d)
    else:
        raise unsupported(node, net.modules, f"CROWN-IBP has no rule for it; {INSTEAD}")
    return d, [(sources[0], a)]


def _affine(net: Net, node: fx.Node, sources: list[fx.Node], a: Any, d: Tensor):
    """Back through a linear map and a constant: the map's transpose is its derivative, the constant its value at 0."""

    def of_centers(*given):
        """What the node computes of these; pieces come and go as lists."""
        known = dict(zip(sources, _each(_contiguous, given), strict=True))
        args = fx.map_arg((node.args, node.kwargs), lambda used: known[used] if used in known else net.boxes[used])
        out = call(node, net.modules, *args)
        return list(out) if isinstance(out, tuple | list) else out

    values = [net.boxes[used] for used in sources]
    at = [value.center if isinstance(value, Box) else [box.center for box in value] for value in values]
    constant: Any = of_centers(*_each(torch.zeros_like, at))
    pairs = zip(a, constant, strict=True) if isinstance(a, list) else [(a, constant)]
    d = d + reduce(torch.add, (_dot(part, value.to(part.dtype)) for part, value in pairs)).to(d.dtype)
    pull = torch.func.vjp(of_centers, *at)[1]
    back = _each(lambda t: t.movedim(0, 1), torch.vmap(pull, 1)(a))
    return d, list(zip(sources, back, strict=True))


def _each(function, value: Any) -> Any:
    """The function of a tensor, or of each in a list of lists."""
    return [_each(function, v) for v in value] if isinstance(value, list | tuple) else function(value)


def _contiguous(t: Tensor) -> Tensor:
    """A copy that takes any view, and may be changed in place."""
    return t.clone(memory_format=torch.contiguous_format)


def _relu(a: Tensor, d: Tensor, x: Box) -> tuple[Tensor, Tensor]:
    low, high = (x.center - x.radius).unsqueeze(1), (x.center + x.radius).unsqueeze(1)
    crossing = (low < 0) & (high > 0)
    slope = torch.where(crossing, high / torch.where(crossing, high - low, 1), (low >= 0).to(low.dtype))
    lower = torch.where(crossing, (high > -low).to(low.dtype), slope)
    offset = torch.where(crossing, -slope * low, 0)
    up, down = a.clamp(min=0), a.clamp(max=0)
    return up * lower + down * slope, d + (down * offset).flatten(2).sum(2)


def _max_pool(net: Net, node: fx.Node, layer, a: Tensor, d: Tensor, x: Box) -> tuple[Tensor, Tensor]:
    """Where one element's lower bound is above all others' upper ones, the largest is that one; elsewhere the largest
    is at least the element with the largest lower bound, and at most the largest upper bound."""
    kind = net.plan.kinds[node] if layer is None else None
    given = None if kind is None else inspect.signature(kind).bind(None, *node.args, **node.kwargs)
    names = ("kernel_size", "stride", "padding", "dilation")
    found = [getattr(layer, n) if given is None else given.arguments.get(n) for n in names]
    low, high = x.center - x.radius, x.center + x.radius
    cells = torch.arange(low[0, 0].numel(), device=low.device).view(low.shape[2:]).expand_as(low)
    size = net.boxes[node].center.shape[2:]
    lows, highs, cells = (_windows(t, size, *found) for t in (low, high, cells))
    best = lows.argmax(-1, keepdim=True)
    least, most = lows.gather(-1, best).squeeze(-1), highs.amax(-1)
    sure = least >= highs.scatter(-1, best, -torch.inf).amax(-1)
    up, down = a.clamp(min=0), a.clamp(max=0)
    d = d + _dot(down, torch.where(sure, 0, most))
    a = up + down * sure.unsqueeze(1)
    index = cells.gather(-1, best).unsqueeze(1).expand(*a.shape, 1).flatten(3)
    into = a.new_zeros(*a.shape[:3], low[0, 0].numel())
    return into.scatter_add(3, index, a.flatten(3)).unflatten(3, low.shape[2:]), d


def _windows(t: Tensor, size: torch.Size, kernel, stride, padding, dilation) -> Tensor:
    """(B, C, *places) -> (B, C, *size, elements of a window); the padding is less than everything."""
    dims = len(size)
    kernel, stride, padding, dilation = (
        (v,) * dims if isinstance(v, int) else tuple(v) for v in (kernel, stride or kernel, padding or 0, dilation or 1)
    )
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = -torch.inf if t.is_floating_point() else -1
    for i in range(dims):
        more = max(0, (size[i] - 1) * stride[i] + spans[i] - t.shape[2 + i] - padding[i])  # as in ceil_mode
        pads = [0, 0] * (dims - 1 - i) + [padding[i], more]
        t = F.pad(t, pads, value=least)
    for i in range(dims):
        t = t.unfold(2 + i, spans[i], stride[i]).narrow(2 + i, 0, size[i])[..., :: dilation[i]]
    return t.flatten(2 + dims)


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
        source = x.center if statistics == "midpoint" or x.clean is None else x.clean
        var, mean = torch.var_mean(source, [i for i in range(source.dim()) if i != 1], correction=0)
    else:
        mean, var = layer.running_mean, layer.running_var
    scale, shift = scale_and_shift(layer, mean, var, x.center.dim())
    return a * scale.unsqueeze(1), d + (a * shift.unsqueeze(1)).flatten(2).sum(2)
