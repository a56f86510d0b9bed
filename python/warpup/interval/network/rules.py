"""What a rule is, and what it says of a box: one rule a layer or function, which `bound` looks up here.

`@rule(nn.MyLayer)` over `def _(walk, layer, x: Box) -> Box` adds one; then `bound` takes the layer as a whole and does
not look into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

F = TypeVar("F", bound=Callable)


class Box(NamedTuple):
    """All x with |x - center| <= radius, and the clean point that goes through the layers beside it, if any."""

    center: Tensor
    radius: Tensor
    clean: Tensor | None = None

    def each(self, function: Callable, *rest, **options) -> Box:
        """A linear function without negative weights, so that it does the same to center and radius."""
        clean = None if self.clean is None else function(self.clean, *rest, **options)
        return Box(function(self.center, *rest, **options), function(self.radius, *rest, **options), clean)

    def ends(self) -> tuple[Tensor, Tensor]:
        return self.center - self.radius, self.center + self.radius


class Refusal(Exception):
    """Raised by a rule; `bound` adds the layer's name."""


class Rules:
    """Layer type or function -> rule. affine: the rules of linear maps and a constant. stands_for: a layer's rule ->
    that of its function. version: how often a rule was added."""

    def __init__(self):
        self.layers: dict[type, Callable] = {}
        self.functions: dict[Callable | str, Callable] = {}
        self.affine: set[Callable] = set()
        self.stands_for: dict[Callable, Callable] = {}
        self.version = 0

    def __call__(self, *targets, affine: bool = False) -> Callable[[F], F]:
        """Decorator: the function is the rule of these layer types, functions and names of tensor methods.

        affine: what they compute is a linear map and a constant, whatever the weights, so that CROWN-IBP can go back
        through them too.
        """

        def add(function: F) -> F:
            self.version += 1
            for target in targets:
                if isinstance(target, type) and issubclass(target, nn.Module):
                    self.layers[target] = function
                else:
                    self.functions[target] = function
            if affine:
                self.affine.add(function)
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

    RULES.stands_for[of_layer] = own


def meaning(found: Callable | None) -> Callable | None:
    """The function's rule that a layer's rule stands for; any other rule itself."""
    return found if found is None else RULES.stands_for.get(found, found)


def boxes_in(value) -> list[Box]:
    """The boxes of a value: one, those of the tuple that a split gives, or none."""
    if isinstance(value, Box):
        return [value]
    return [box for v in value for box in boxes_in(v)] if isinstance(value, tuple | list) else []


def refuse_sound(walk) -> None:
    if walk.sound:
        raise Refusal("it has no sound bounds: leave sound=True out, or put a ReLU in its place")
