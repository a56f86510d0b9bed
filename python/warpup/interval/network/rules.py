"""What a rule is, and what it says of a box: one rule a layer or function, which `bound` looks up here.

`@rule(nn.MyLayer)` over `def _(walk, layer, x: Box) -> Box` adds one; then `bound` takes the layer as a whole and does
not look into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Box(NamedTuple):
    """All x with |x - center| <= radius, and the clean point that goes through the layers beside it, if any."""

    center: Tensor
    radius: Tensor
    clean: Tensor | None = None

    def each(self, function: Callable, *rest, **options) -> Box:
        """A linear function without negative weights, so that it does the same to center and radius."""
        return Box(*(None if t is None else function(t, *rest, **options) for t in self))

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.center - self.radius, self.center + self.radius


class Refusal(Exception):
    """Raised by a rule; `bound` adds the layer's name."""


class Rules:
    """Layer type or function -> rule. version: how often one was added."""

    def __init__(self):
        self.layers: dict[type, Callable] = {}
        self.functions: dict[Callable | str, Callable] = {}
        self.version = 0

    def __call__(self, *targets, affine: bool = False):
        """Decorator: the function is the rule of these layer types, functions and names of tensor methods.

        affine: what they compute is a linear map and a constant, whatever the weights, so that CROWN-IBP can go back
        through them too.
        """

        def add(function):
            self.version += 1
            for target in targets:
                table = self.layers if isinstance(target, type) and issubclass(target, nn.Module) else self.functions
                table[target] = function
            if affine:
                function.affine = True
            return function

        return add

    def of_layer(self, kind: type) -> Callable | None:
        """Rule of a layer type, or of one that it inherits its forward from."""
        bases = (base for base in kind.__mro__ if base in self.layers and kind.forward is base.forward)
        return next((self.layers[base] for base in bases), None)


rule = RULES = Rules()


def like_function(layer: type[nn.Module], function: Callable, *attributes: str) -> None:
    """Make a layer's rule that of its function, which takes these attributes of the layer as options."""
    own = RULES.functions[function]

    @rule(layer)
    def of_layer(walk, layer, x):
        return own(walk, x, **{name: getattr(layer, name) for name in attributes})

    of_layer.stands_for = own


def meaning(found: Callable | None) -> Callable | None:
    """The function's rule that a layer's rule stands for; any other rule itself."""
    return getattr(found, "stands_for", found)


def boxes_in(value) -> list[Box]:
    """The boxes of a value: one, those of the tuple that a split gives, or none."""
    if isinstance(value, Box):
        return [value]
    return [box for v in value for box in boxes_in(v)] if isinstance(value, tuple | list) else []


def refuse_sound(walk) -> None:
    if walk.sound:
        raise Refusal("it has no sound bounds: leave sound=True out, or put a ReLU in its place")
