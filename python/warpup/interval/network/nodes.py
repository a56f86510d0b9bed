"""Single nodes of a module's graph: what they are called, what they compute, and the error that names one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate


class UnsupportedLayer(ValueError):
    """A layer that boxes cannot go through. The message names it and says what to do."""


def layer_of(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module:
    """The layer that a node calls, by the graph's name of it."""
    return modules[str(node.target)]


def call(node: fx.Node, modules: dict[str, nn.Module], args, kwargs) -> Any:
    """What a node's layer, function or method makes of plain values, which keep theirs once `aliases` has seen it."""
    if node.meta.get("in_place"):
        args, kwargs = map_aggregate((args, kwargs), lambda v: v.clone() if isinstance(v, Tensor) else v)
    if isinstance(node.target, str):
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return layer_of(node, modules)(*args, **kwargs)
    return node.target(*args, **kwargs)


def unsupported(node: fx.Node, modules: dict[str, nn.Module], reason: str) -> UnsupportedLayer:
    """The error for a node: which layer, of which type, and why."""
    return UnsupportedLayer(f"{name_of(node, modules)}: {reason}")


def name_of(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"layer {node.target!r} ({type(layer_of(node, modules)).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
    stack = list(node.meta.get("nn_module_stack", {}).values())
    place, kind = stack[-1] if stack else ("", None)
    within = f"layer {place!r} ({kind.__name__})" if place and kind else "the module's forward"
    return f"{name} in {within}"
