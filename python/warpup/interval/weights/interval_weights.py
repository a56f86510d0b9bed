"""Networks whose weights are boxes: layers, the nested boxes of InterContiNet, and the worst-case loss.

A box is (center, radius), radius >= 0: every value within radius of center, element by element. A network with
interval weights maps a point, or a box, to a box that holds the outputs of every choice of weights. A continual
guarantee rests on it: what every network of a box solves stays solved by whatever is trained later within the box.

    weights in boxes   y = W x + b,  W in (Wc, Wr), b in (bc, br):
                       yc = Wc xc + bc,  yr = |Wc| xr + Wr |xc| + Wr xr + br   ("midpoint"; exact where xr = 0)
    nested boxes       the box of a task lies in the frozen one of the task before, with center C and radius rho:
                       center C + tanh(s) rho,  radius sigmoid(a) (1 - |tanh s|) rho,  s and a trained
    loss               kappa CE(center) + (1 - kappa) CE(worst),  worst = lower bound at the label, upper elsewhere

Sources: InterContiNet (Wolczyk et al. 2022, arXiv 2206.07996): nested boxes, their parametrisation, and boxes for the
biases. HyperInterval (arXiv 2405.15444): the loss. Ours: inputs of any sign and convolutions with interval weights
(theirs assert x >= 0 and split W by sign), the frozen box kept by its ends, so that nesting holds bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.interval.interval_batch_norm import interval_relu
from warpup.interval.interval_box import CenterRadius
from warpup.interval.interval_conv import interval_conv2d
from warpup.interval.interval_linear import interval_linear
from warpup.interval.interval_product import MODES

START_SCALE = 5.0  # sigmoid of it is .993: a task begins with nearly the whole box


class NestedBox(nn.Module):
    """A trained box inside a frozen one. State: `lower`, `upper` (the frozen ends), `shift`, `scale` (trained).

    start: the first center, any shape; radius: of the first frozen box.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, start: Tensor, radius: float):
        super().__init__()
        if not 0 <= radius < float("inf"):
            raise ValueError(f"radius: expected a finite number of at least 0, got {radius}")
        start = start.detach()
        self.register_buffer("lower", start - radius)
        self.register_buffer("upper", start + radius)
        self.shift = nn.Parameter(torch.zeros_like(start))
        self.scale = nn.Parameter(torch.full_like(start, START_SCALE))

    def outer(self) -> CenterRadius:
        """The frozen box: every later box and its center lie in it."""
        return (self.lower + self.upper) / 2, (self.upper - self.lower) / 2

    def forward(self) -> CenterRadius:
        """The trained box."""
        center, radius = self.outer()
        shift = self.shift.tanh()
        return center + shift * radius, self.scale.sigmoid() * (1 - shift.abs()) * radius

    @torch.no_grad()
    def contract(self) -> None:
        """End a task: freeze the trained box, and begin the next one in its middle."""
        center, radius = self()
        center = center.clamp(self.lower, self.upper)  # rounding may leave the box
        self.lower.copy_(torch.maximum(self.lower, center - radius))
        self.upper.copy_(torch.minimum(self.upper, center + radius))
        self.shift.zero_()
        self.scale.fill_(START_SCALE)


class IntervalLayer(nn.Module):
    """`weight` and `bias` as NestedBox, and the map of points and boxes: IntervalLinear and IntervalConv2d."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, max_radius: float, mode: str):
        super().__init__()
        check_mode(mode)
        self.weight = NestedBox(layer.weight, max_radius)
        self.bias = None if layer.bias is None else NestedBox(layer.bias, max_radius)
        self.options, self.mode = conv_options(layer), mode

    def forward(
        self, center: Tensor, radius: Tensor | None = None, *, clean: Tensor | None = None, outer: bool = False
    ):  # fmt: skip
        """Box of the outputs for inputs in (center, radius), or for the points `center` where radius is None.

        clean: inputs that go through the center weights alone, the network that is used; returns (center, radius), or
        (center, radius, clean). outer: over the frozen box instead of the trained one.
        """
        weight = self.weight.outer() if outer else self.weight()
        bias = None if self.bias is None else self.bias.outer() if outer else self.bias()
        return _affine(center, radius, clean, weight, bias, self.options, self.mode)

    def contract(self) -> None:
        """End a task; see `NestedBox.contract`."""
        self.weight.contract()
        if self.bias is not None:
            self.bias.contract()


class IntervalLinear(IntervalLayer):
    """`nn.Linear` with interval weights and biases, nested from task to task.

    Starts at nn.Linear's own initial values, in a frozen box of radius max_radius around them. mode: of
    `warpup.interval_linear`, "midpoint" or "exact".
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, max_radius: float = 1.0,
        mode: str = "midpoint", device=None, dtype=None,
    ):  # fmt: skip
        super().__init__(nn.Linear(in_features, out_features, bias, device, dtype), max_radius, mode)


class IntervalConv2d(IntervalLayer):
    """`nn.Conv2d` (zero padding) with interval weights and biases; else as IntervalLinear."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1, groups: int = 1,
        bias: bool = True, *, max_radius: float = 1.0, mode: str = "midpoint", device=None, dtype=None,
    ):  # fmt: skip
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
        layer = nn.Conv2d(in_channels, out_channels, kernel_size, **options, device=device, dtype=dtype)
        super().__init__(layer, max_radius, mode)


class IntervalSequential(nn.Sequential):
    """Interval layers, ReLU and Flatten one after the other."""

    def __init__(self, *layers: nn.Module):
        for layer in layers:
            if not isinstance(layer, IntervalLayer | nn.ReLU | nn.Flatten):
                raise ValueError(
                    f"layers: expected IntervalLinear, IntervalConv2d, ReLU and Flatten, got {type(layer).__name__}"
                )
        super().__init__(*layers)

    def forward(
        self, center: Tensor, radius: Tensor | None = None, *, clean: Tensor | None = None, outer: bool = False
    ):  # fmt: skip
        """Box of the network's outputs, and the clean outputs if `clean` is given; see `IntervalLayer.forward`."""
        for layer in self:
            if isinstance(layer, IntervalLayer):
                found = layer(center, radius, clean=clean, outer=outer)
            else:
                found = _monotone(layer, center, radius, clean)
            center, radius, *rest = found
            clean = rest[0] if rest else None
        return found

    def contract(self) -> None:
        """End a task in every layer; see `NestedBox.contract`."""
        for layer in self:
            if isinstance(layer, IntervalLayer):
                layer.contract()


def forward_boxes(
    layers: Iterable[nn.Module], boxes: Iterable[CenterRadius], center: Tensor, radius: Tensor | None = None, *,
    clean: Tensor | None = None, mode: str = "midpoint",
) -> tuple:  # fmt: skip
    """Box of the outputs of ordinary layers whose parameters lie in `boxes`; arguments and result else as in
    `IntervalLayer.forward`.

    layers: Linear, Conv2d, ReLU and Flatten; their own parameters are not looked at. boxes: one for each parameter, in
    the order of `parameters()`.
    """
    check_mode(mode)
    layers, boxes = list(layers), list(boxes)
    if len(boxes) != (wanted := sum(len(list(layer.parameters())) for layer in layers)):
        raise ValueError(f"boxes: expected one for each of {wanted} parameters, got {len(boxes)}")
    boxes = iter(boxes)
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight, bias = next(boxes), None if layer.bias is None else next(boxes)
            found = _affine(center, radius, clean, weight, bias, conv_options(layer), mode)
        else:
            found = _monotone(layer, center, radius, clean)
        center, radius, *rest = found
        clean = rest[0] if rest else None
    return found


def check_mode(mode: str) -> None:
    """Points go through boxes of weights the same way in every mode, so a wrong one would not be met there."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")


def conv_options(layer: nn.Linear | nn.Conv2d) -> dict:
    """Keyword arguments of the layer's convolution; empty for a linear layer."""
    if isinstance(layer, nn.Linear):
        return {}
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode: expected 'zeros', got {layer.padding_mode!r}")
    return {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}


def _affine(center, radius, clean, weight: CenterRadius, bias: CenterRadius | None, options: dict, mode: str):
    """A box, or points where radius is None, through W x + b or a convolution (options), W and b in boxes."""
    product, operator = (F.conv2d, interval_conv2d) if options else (F.linear, interval_linear)
    middle, spread = (None, None) if bias is None else bias
    if radius is None:  # two products, exact; the center is the clean output of the same points
        found = product(center, weight[0], middle, **options), product(center.abs(), weight[1], spread, **options)
        if clean is None:
            return found
        return *found, found[0] if clean is center else product(clean, weight[0], middle, **options)
    found = operator(center, radius, weight[0], middle, weight_radius=weight[1], mode=mode, clean=clean, **options)
    if spread is None:
        return found
    center, radius, *clean = found
    return center, radius + (spread.view(-1, 1, 1) if options else spread), *clean


def _monotone(layer: nn.Module, center, radius, clean):
    """A box, or points where radius is None, through ReLU or Flatten."""
    if isinstance(layer, nn.ReLU) and radius is not None:
        return interval_relu(center, radius, clean=clean)
    if not isinstance(layer, nn.ReLU | nn.Flatten):
        raise ValueError(f"layers: expected Linear, Conv2d, ReLU and Flatten, got {type(layer).__name__}")
    found = layer(center), None if radius is None else layer(radius)
    return found if clean is None else (*found, layer(clean))


def _at_label(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == labels[:, None]


def worst_logits(center: Tensor, radius: Tensor, labels: Tensor) -> Tensor:
    """Lower bound at the label and upper bounds elsewhere: (B, K) from center, radius (B, K) and labels (B,) int64."""
    return torch.where(_at_label(center, labels), center - radius, center + radius)


def worst_case_loss(
    center: Tensor, radius: Tensor, labels: Tensor, kappa: float, *, clean: Tensor | None = None
) -> Tensor:  # fmt: skip
    """kappa CE(clean) + (1 - kappa) CE(worst), worst the lower bound at the label and the upper bounds elsewhere.

    center, radius (B, K): box of the logits; labels (B,) int64; clean (B, K): logits of the network with the center
    weights (after a ReLU not the box's own center, which stands in where there are none). Returns the mean over the
    batch, 0-d. No elision: the bounds of two logits are taken at different weights, as in HyperInterval
    (arXiv 2405.15444). Raises ValueError unless 0 <= kappa <= 1.
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa: expected a number from 0 to 1, got {kappa}")
    worst = F.cross_entropy(worst_logits(center, radius, labels), labels)
    return kappa * F.cross_entropy(center if clean is None else clean, labels) + (1 - kappa) * worst


@torch.no_grad()
def certified(center: Tensor, radius: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool: the label's lower bound is above all other upper bounds, so no choice of weights changes the class.

    Arguments as of `worst_logits`. A tie is not certified, nor is NaN.
    """
    worst = worst_logits(center, radius, labels)
    others = worst.masked_fill(_at_label(center, labels), -torch.inf).amax(1)
    return worst.gather(1, labels[:, None])[:, 0] > others
