"""Plans that are kept, and what each is held against before it bounds anything: the module itself.

A certificate is worth no more than the plan's likeness to the module. So a new plan first takes a box without extent,
which must hold the module's own output. It is traced anew when the module or a rule has changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from .graph import Plan, named_modules
from .nodes import UnsupportedLayer, call, name_of
from .rules import Box, Rules

_plans: WeakKeyDictionary[nn.Module, tuple[Any, dict[tuple, Plan]]] = WeakKeyDictionary()
KEPT = 8  # plans a module, of as many shapes of the input


def plan_of(module: nn.Module, rules: Rules, x: Tensor, walk: Callable) -> Plan:
    """The module's plan for inputs like x (shape, strides, dtype, device), held against the module when it is new.

    walk: makes a `Walk`, by which it is held. Raises UnsupportedLayer.
    """
    key = (fingerprint(module), rules.version)
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedLayer(f"{type(module).__name__} has forward hooks, which bounds would leave out")
    known = _plans.get(module)
    if known is None or known[0] != key:
        known = _plans[module] = (key, {})
    plans, like = known[1], (x.shape, x.stride(), x.dtype, x.device)
    if like not in plans:
        with undisturbed(module):
            for nearness in (1, 2**-8):  # nearer where the module gives NaN, as a logarithm does below 0
                point = probe(x, nearness)
                plan = Plan(module, rules, point)
                if _check_output(plan, module, point, walk):
                    break
        if len(plans) == KEPT:
            del plans[next(iter(plans))]
        plans[like] = plan
    return plans[like]


# ---- Whether the module is what was traced


TORCHS_OWN = frozenset(vars(nn.Module()))  # attributes of every module


def fingerprint(module: nn.Module) -> list[tuple]:
    """All that a trace may depend on: types, modes, hooks, plain attributes, shapes of parameters and buffers."""
    return [
        (
            name, type(m), m.training, (*m._forward_hooks, *m._forward_pre_hooks),
            [(key, frozen(value)) for key, value in vars(m).items() if key not in TORCHS_OWN],
            [(key, t if t is None else (t.shape, t.dtype)) for key, t in (*m._parameters.items(), *m._buffers.items())],
        )
        for name, m in module.named_modules()
    ]  # fmt: skip


def frozen(value: Any, depth: int = 0) -> Any:
    """A value to compare with later: plain ones by what they hold, functions by their code, others by identity."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, Tensor):  # what forward makes of it is part of the trace
        return id(value), value.shape, value.dtype, None if value.is_inference() else value._version
    if depth > 4 or isinstance(value, nn.Module | type):
        return id(value)
    if isinstance(value, FunctionType):
        return value.__code__, [frozen(v, depth + 1) for v in (*_enclosed(value), *(value.__defaults__ or ()))]
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), [frozen(v, depth + 1) for v in value]
    if isinstance(value, dict):
        return type(value), [(frozen(k, depth + 1), frozen(v, depth + 1)) for k, v in value.items()]
    return type(value), frozen(vars(value), depth + 1) if hasattr(value, "__dict__") else id(value)


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents


# ---- Whether the plan is the module


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """For a while the module may be called as one likes: normalisation takes running statistics, and buffers, random
    numbers and modes are afterwards what they were."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training and m.running_mean is not None]
    owned = [(m, dict(m._buffers)) for m in module.modules()]
    saved = [(t, t.detach().clone()) for t in module.buffers()]
    devices = {t.device for t in (*module.parameters(), *module.buffers()) if t.is_cuda}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        for norm in norms:
            norm.training = False
        try:
            yield
        finally:
            for norm in norms:
                norm.training = True
            for m, buffers in owned:
                m._buffers.update(buffers)
            for t, old in saved:
                if not torch.equal(t, old):
                    t.copy_(old)


def probe(center: Tensor, nearness: float = 1) -> Tensor:
    """A point near the center of which no element is special: zeros, or equal ones, would hide a wrong plan."""
    generator = torch.Generator(center.device).manual_seed(0)
    noise = torch.randn(center.shape, generator=generator, device=center.device, dtype=center.dtype)
    return torch.empty_like(center).copy_(center).nan_to_num_(0, 0, 0).add_(noise, alpha=nearness)


def _check_output(plan: Plan, module: nn.Module, x: Tensor, walk: Callable) -> bool:
    """UnsupportedLayer where the plan is not the module at x; whether that was seen of every output, none being NaN."""
    seen = True

    def found(plan: Plan, module: nn.Module, x: Tensor):
        nonlocal seen
        box = walk().follow(plan, module, Box(x, torch.zeros_like(x), x))
        value = module(x.clone())
        seen = not bool(box.center.isnan().any())
        return box.center, box.radius, value

    if not held(found, plan, module, x):
        raise UnsupportedLayer(
            f"{type(module).__name__}: its box at radius 0 does not hold what the module itself computes, so that no "
            f"bound of it could be trusted; {_where(plan, module, x, walk)}"
        )
    return seen


def held(found: Callable, plan: Plan, module: nn.Module, x: Tensor) -> bool:
    """Whether (center, radius, value) = found(plan, module, x) has the value in the box; to be called `undisturbed`.

    What may be rounding is judged again in float64. A module on the meta device has no values to look at.
    """
    if x.is_meta or holds(*found(plan, module, x)):
        return True
    try:
        exact = copy.copy(plan)
        exact.constants = {name: t.double() if t.is_floating_point() else t for name, t in plan.constants.items()}
        return holds(*found(exact, copy.deepcopy(module).double(), x.double()))
    except Exception:  # a module of several dtypes cannot be had in float64: what was found stands
        return False


def holds(center: Tensor, radius: Tensor, value: Tensor) -> bool:
    """Whether the value is in the box but for rounding: half of the digits of the largest number."""
    if not isinstance(value, Tensor) or value.shape != center.shape:
        return False
    room = max(torch.finfo(t.dtype).eps for t in (center, value)) ** 0.5
    center, radius, value = (t.double() for t in (center, radius, value))
    size = torch.where(value.isfinite(), value.abs(), 0).amax() if value.numel() else 0
    near = (value - center).abs() <= radius + room * size
    return bool((near | (value == center) | (value.isnan() & center.isnan())).all())


def _where(plan: Plan, module: nn.Module, x: Tensor, walk: Callable) -> str:
    """The first node at which the plan differs from plain values that go the same way."""
    modules, values, boxes = named_modules(module), {}, {}
    walk(kept=boxes).follow(plan, module, Box(x, torch.zeros_like(x), x))
    for node in plan.nodes[:-1]:
        if not node.op.startswith("call_"):
            values[node] = plan.given(node, modules, x)
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = call(node, modules, args, kwargs)
        box = boxes[node]
        if isinstance(box, Box) and not holds(box.center, box.radius, values[node]):
            return f"the first node that differs is {name_of(node, modules)}: its rule is not what it computes"
    return (
        "no single node differs, so torch.fx's trace is not what forward does: look for random numbers, for state that "
        "forward keeps from call to call, and for indexed assignments"
    )
