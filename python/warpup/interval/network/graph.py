"""The order in which boxes go through a module's layers: its torch.fx graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from .aliases import read_what_is_there
from .layers import batch_norm, linear, relu
from .nodes import UnsupportedLayer, layer_of, unsupported
from .rules import Rules, meaning


class Plan:
    """A module's nodes in order, with their rules. It holds names and types alone, so that it keeps no module alive.

    With an example, an input of the shape and strides to come, every node reads what its operands hold at that time,
    also where an in-place operation changed it through an alias (see `aliases`). Without, in-place operations are
    taken for what they return.

    rules: of each call. kinds: the built-in rules that these stand for. fused: batch normalisation -> the ReLU that is
    its only user. head: the linear layer whose output is the module's, if there is one. dead: node -> the nodes whose
    values nobody needs after it. constants: tensors that forward itself made. held: what was held against the module.
    """

    def __init__(self, module: nn.Module, rules: Rules, example: Tensor | None = None):
        modules = named_modules(module)
        graph, self.constants = trace(root_of(module), rules)
        read: dict[str, fx.Node] = {}
        for node in list(graph.nodes):
            if node.op == "get_attr" and read.setdefault(str(node.target), node) is not node:  # one tensor is one node
                node.replace_all_uses_with(read[node.target])
                graph.erase_node(node)
            if "input" in node.kwargs:  # torch's name of the first argument, which rules do not have
                rest = dict(node.kwargs)
                node.args, node.kwargs = (rest.pop("input"), *node.args), rest
        self.input, *more = [node for node in graph.nodes if node.op == "placeholder"]
        if wanted := [node.target for node in more if not node.args]:
            raise UnsupportedLayer(f"the module's forward takes a second input {wanted[0]!r}, expected one")
        if example is not None:
            read_what_is_there(self, graph, modules, example)
        self.nodes = list(graph.nodes)
        self.rules = {node: _rule(node, modules, rules) for node in self.nodes if node.op.startswith("call_")}
        self.kinds = {node: meaning(found) for node, found in self.rules.items()}
        norms = [node for node, kind in self.kinds.items() if kind is batch_norm and len(node.users) == 1]
        self.fused = {norm: user for norm in norms for user in norm.users if self.kinds.get(user) is relu}
        [output] = self.nodes[-1].args
        self.head = output if isinstance(output, fx.Node) and self.kinds.get(output) is linear else None
        last = {used: node for node in self.nodes for used in node.all_input_nodes}
        self.dead: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            self.dead.setdefault(node, []).append(used)
        self.held: set[str] = set()

    def given(self, node: fx.Node, modules: dict[str, nn.Module], x: Any) -> Any:
        """The value of a node that calls nothing: the input x, a default, a parameter, or a constant."""
        if node.op == "placeholder":
            return x if node is self.input else node.args[0]
        target = str(node.target)
        if target in self.constants:
            return self.constants[target].clone()
        owner, _, name = target.rpartition(".")
        return getattr(modules[owner], name)


def _rule(node: fx.Node, modules: dict[str, nn.Module], rules: Rules) -> Callable | None:
    if node.op != "call_module":
        return rules.functions.get(node.target)
    layer = layer_of(node, modules)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise unsupported(node, modules, "it has forward hooks, which bounds would leave out")
    if "forward" in vars(layer):
        raise unsupported(node, modules, "it has a forward of its own in place of its type's: make it a type")
    return rules.of_layer(type(layer))


# ---- Tracing


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a single layer of torch's, so that there is nothing in it to trace."""
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)


def root_of(module: nn.Module) -> nn.Module:
    return nn.Sequential(module) if is_layer(module) else module


def named_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Layers by the names that the graph has for them."""
    return {"0": module} if is_layer(module) else dict(module.named_modules())


class Proxy(fx.Proxy):
    """A proxy that records what changes it as such: torch's own makes `y = y + 1` of `y += 1`, and y's aliases stay."""

    def __setitem__(self, index, value):
        part = self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})
        part.copy_(value)  # of an index that gives no view, the check against the module tells


def _in_place(function: Callable):
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"):
    setattr(Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class State(Proxy):
    """A parameter or buffer: read anew in each call, like all that forward makes of it; its shape is a part of the
    trace."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor):
        super().__init__(node, tracer)
        self.shape, self.ndim, self.dtype = tensor.shape, tensor.ndim, tensor.dtype
        self.size, self.dim, self.numel = tensor.size, tensor.dim, tensor.numel


def trace(root: nn.Module, rules: Rules) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Symbolic trace in which every layer with a rule is one node, and the constants that it names."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return rules.of_layer(type(m)) is not None or super().is_leaf_module(m, name)

        def proxy(self, node: fx.Node) -> fx.Proxy:
            return Proxy(node, self)

        def getattr(self, attr: str, value: Any, known: dict[str, Any]) -> Any:
            name = names.get(id(value))
            if name is not None and name not in known:
                known[name] = self.create_proxy(
                    "get_attr", name, (), {}, None, None, lambda node: State(node, self, value)
                )
            return value if name is None else known[name]

    names = {id(t): name for name, t in (*root.named_parameters(), *root.named_buffers())}
    before = set(vars(root))
    try:
        graph = Tracer().trace(root)
    except Exception as error:  # whatever the module's forward does with a proxy
        reason = " ".join(str(error).split())
        raise UnsupportedLayer(
            f"{type(root).__name__}: torch.fx cannot trace its forward ({type(error).__name__}: {reason}); bounds need "
            "a forward without control flow that depends on values"
        ) from error
    finally:  # torch leaves them on the module, which is the caller's
        constants = {name: vars(root).pop(name) for name in set(vars(root)) - before}
    return graph, constants
