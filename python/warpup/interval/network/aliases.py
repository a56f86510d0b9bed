"""What in-place operations change, found where it happens: in the storages of real tensors.

`y = relu_(identity(x))` changes x too, and so does an operation on a view, a slice or a reshape of x: whoever reads x
afterwards reads the change. No list of functions knows all the ways to get there, nor whether a reshape copies, which
depends on strides. So the graph is run once on an example. Torch counts the changes of each storage (`_version`), and
tensors say which part of which storage they are. Then the graph is rewritten to say the same without a change in place:
later readers of a changed value read what the operation returned, or `overwritten`, their own part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .nodes import call, unsupported

if TYPE_CHECKING:
    from .graph import Plan


def overwritten(old: Tensor, new: Tensor, source: Tensor) -> Tensor:
    """old after a part of its memory became `new`: element i is new's element source[i], where that is not -1."""
    return torch.where(source < 0, old, new.reshape(-1)[source.clamp_min(0)])


@torch.no_grad()
def read_what_is_there(plan: Plan, graph: fx.Graph, modules: dict[str, nn.Module], example: Tensor) -> None:
    """Rewrite the graph, in place, so that every node reads what its operands hold when it runs on `example`."""
    values: dict[fx.Node, Any] = {}
    state: dict[int, Tensor] = {}  # copies of parameters and buffers, one each, so that nothing of the module changes
    place = {node: i for i, node in enumerate(graph.nodes)}
    example = example.clone()
    for node in list(graph.nodes)[:-1]:
        if not node.op.startswith("call_"):
            value = plan.given(node, modules, example)
            if node.op == "get_attr" and isinstance(value, Tensor) and node.target not in plan.constants:
                value = state.setdefault(id(value), value.clone())
            values[node] = value
            continue
        before = {used: _versions(values[used]) for used in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            result = values[node] = call(node, modules, args, kwargs)
        except Exception as error:
            said = " ".join(str(error).split())
            reason = f"it fails on an input of shape {tuple(example.shape)} ({type(error).__name__}: {said})"
            raise unsupported(node, modules, reason) from error
        changed = [t for used, old in before.items() if _versions(values[used]) != old for t in _tensors(values[used])]
        if changed:
            node.meta["in_place"] = True
            _redirect(node, result, {_storage(t) for t in changed}, graph, modules, values, place, state)
        for used in before:
            if not _later(used, node, place):
                del values[used]


def _redirect(node, result, changed: set[int], graph, modules, values, place, state) -> None:
    """Hand the change that a node made to all who read it later."""
    if any(_storage(t) in changed for t in state.values()):
        raise unsupported(node, modules, "it changes the module's own parameters or buffers: keep a copy of them")
    known = isinstance(result, Tensor) and any(result is values[used] for used in node.all_input_nodes)
    for other in [other for other in values if other is not node]:
        parts = [t for t in _tensors(values[other]) if _storage(t) in changed]
        readers = _later(other, node, place)
        if not parts or not readers:
            continue
        old = values[other]
        if not known or not isinstance(old, Tensor) or (_storage(old), old.dtype) != (_storage(result), result.dtype):
            reason = f"it changes {other.name!r}, which is read again, in a way that bounds cannot follow"
            raise unsupported(node, modules, f"{reason}: change a copy (clone it first)")
        replacement = node
        if _geometry(old) != _geometry(result):
            cells = torch.full((_size(result),), -1, device=result.device)
            part = cells.as_strided(*_geometry(result))
            part.copy_(torch.arange(result.numel(), device=result.device).view(result.shape))
            source = cells.as_strided(*_geometry(old)).clone()
            if (source < 0).all():  # another part of the storage
                continue
            with graph.inserting_after(node):
                replacement = graph.call_function(overwritten, (other, node, source))
            values[replacement] = old
        for reader in readers:
            reader.replace_input_with(other, replacement)


def _later(used: fx.Node, node: fx.Node, place: dict[fx.Node, int]) -> list[fx.Node]:
    return [reader for reader in used.users if place.get(reader, -1) > place[node]]


def _tensors(value: Any) -> list[Tensor]:
    """Of a tensor, or of the tuple or list that a split gives."""
    return [t for t in (value if isinstance(value, tuple | list) else (value,)) if isinstance(t, Tensor)]


def _versions(value: Any) -> list[int]:
    return [t._version for t in _tensors(value)]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _size(t: Tensor) -> int:
    return t.untyped_storage().nbytes() // t.element_size()


def _geometry(t: Tensor) -> tuple[torch.Size, tuple[int, ...], int | torch.SymInt]:
    return t.shape, t.stride(), t.storage_offset()
