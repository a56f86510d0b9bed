"""The order in which boxes go through a module's layers: its torch.fx graph, traced once and kept."""

from __future__ import annotations

import inspect
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn import functional as F

RELUS = (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
IN_PLACE = (F.relu_, torch.relu_, "relu_", "add_", "sub_", "mul_", "div_")


class UnsupportedLayer(ValueError):
    """A layer that boxes cannot go through. The message names it and says what to do."""


class Plan:
    """A module's nodes in order, with their rules. It holds names and types alone, so that it keeps no module alive.

    relus: the ReLUs. fused: batch normalisation -> the ReLU that is its only user. head: the linear layer whose output
    is the module's, if there is one. dead: node -> the nodes whose values nobody needs after it.
    """

    def __init__(self, module: nn.Module, rules):
        modules = named_modules(module)
        self.nodes = list(trace(root_of(module), rules).nodes)
        for node in self.nodes:
            if "input" in node.kwargs:  # torch's name of the first argument, which rules do not have
                rest = dict(node.kwargs)
                node.args, node.kwargs = (rest.pop("input"), *node.args), rest
        layer = {node: modules[node.target] for node in self.nodes if node.op == "call_module"}
        self._alias_in_place(layer)
        self.rules = {node: self._rule(node, modules, rules) for node in self.nodes if node.op.startswith("call_")}
        self.relus = {n for n in self.nodes if calls(n, RELUS) or isinstance(layer.get(n), nn.ReLU)}
        norms = [n for n, m in layer.items() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and len(n.users) == 1]
        self.fused = {norm: user for norm in norms for user in norm.users if user in self.relus}
        [output] = self.nodes[-1].args
        ends = isinstance(output, fx.Node) and (calls(output, (F.linear,)) or isinstance(layer.get(output), nn.Linear))
        self.head = output if ends else None
        last = {used: node for node in self.nodes for used in node.all_input_nodes}
        self.dead: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            self.dead.setdefault(node, []).append(used)

    def _alias_in_place(self, layer: dict[fx.Node, nn.Module]) -> None:
        """Whoever reads a value after it was changed in place reads the change."""
        place = {node: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            if calls(node, IN_PLACE) or asks_in_place(node) or getattr(layer.get(node), "inplace", False):
                for user in [user for user in node.args[0].users if place[user] > place[node]]:
                    user.replace_input_with(node.args[0], node)

    @staticmethod
    def _rule(node: fx.Node, modules: dict[str, nn.Module], rules):
        if node.op != "call_module":
            return rules.functions.get(node.target)
        layer = modules[node.target]
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise unsupported(node, modules, "it has forward hooks, which bounds would leave out")
        return rules.of_layer(type(layer))


def calls(node: fx.Node, functions: tuple) -> bool:
    """Whether a node calls one of these functions or methods (a layer may have a method's name)."""
    return node.op in ("call_function", "call_method") and node.target in functions


def asks_in_place(node: fx.Node) -> bool:
    """Whether a function is called with inplace=True, by name or by place."""
    if node.op != "call_function" or not isinstance(node.target, FunctionType):  # torch's C++ functions have none
        return False
    try:
        return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace"))
    except TypeError:  # no call of this function: its own error says so
        return False


_plans: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()


def plan_of(module: nn.Module, rules) -> Plan:
    """The module's plan; traced again when a submodule's name, type or training flag changed, or a rule was added."""
    hooks = {name: (*m._forward_hooks, *m._forward_pre_hooks) for name, m in module.named_modules()}
    if hooks[""]:
        raise UnsupportedLayer(f"{type(module).__name__} has forward hooks, which bounds would leave out")
    key = [(name, type(m), m.training, hooks[name]) for name, m in module.named_modules()] + [
        len(rules.layers),
        len(rules.functions),
    ]
    known = _plans.get(module)
    if known is None or known[0] != key:
        known = _plans[module] = (key, Plan(module, rules))
    return known[1]


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a single layer of torch's, so that there is nothing in it to trace."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)


def root_of(module: nn.Module) -> nn.Module:
    return nn.Sequential(module) if is_layer(module) else module


def named_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Layers by the names that the graph has for them."""
    return {"0": module} if is_layer(module) else dict(module.named_modules())


def trace(root: nn.Module, rules) -> fx.Graph:
    """Symbolic trace in which every layer with a rule is one node."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return rules.of_layer(type(m)) is not None or super().is_leaf_module(m, name)

    try:
        return Tracer().trace(root)
    except Exception as error:  # whatever the module's forward does with a proxy
        reason = " ".join(str(error).split())
        raise UnsupportedLayer(
            f"{type(root).__name__}: torch.fx cannot trace its forward ({type(error).__name__}: {reason}); bounds need "
            "a forward without control flow that depends on values"
        ) from error


def unsupported(node: fx.Node, modules: dict[str, nn.Module], reason: str) -> UnsupportedLayer:
    """The error for a node: which layer, of which type, and why."""
    if node.op == "call_module":
        return UnsupportedLayer(f"layer {node.target!r} ({type(modules[node.target]).__name__}): {reason}")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
    stack = list(node.meta.get("nn_module_stack", {}).values())
    place, kind = stack[-1] if stack else ("", None)
    within = f"layer {place!r} ({kind.__name__})" if place and kind else "the module's forward"
    return UnsupportedLayer(f"{name} in {within}: {reason}")
