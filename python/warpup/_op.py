"""Raw ops of the C++ library: what each returns when it is traced, what Python composes, and how one is called.

`_autograd.py` makes ops of them that torch can differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVarTuple

import torch
from torch import Tensor

from warpup import _native  # noqa: F401  loads the library

ops = torch.ops.warpup  # looked up at every call: the tests put other builds of the same kernels in its place
_library = torch.library.Library("warpup", "FRAGMENT")
_raw: set[str] = set()
composed: dict[str, Callable] = {}  # what is composed on one device alone: the tests run it on another
Operands = TypeVarTuple("Operands")


def accumulator(x: Tensor) -> torch.dtype:
    """What sums over `x` are made in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_row(value: float | Tensor, rows: torch.Size) -> tuple[Tensor | None, float]:
    """A number for all rows, or a tensor with one a row, as raw ops take it: the tensor or None, and the number."""
    if not isinstance(value, Tensor):
        return None, float(value)
    return (value.expand(rows) if value.numel() == 1 else value), 1.0


def autocast(*tensors: *Operands) -> tuple[*Operands]:
    """The operands of a matrix product (tensors, or None), under autocast in its dtype, as torch's own products take
    them."""
    operands: tuple[Any, ...] = tensors
    kind = operands[0].device.type
    if torch.is_autocast_enabled(kind):
        to = torch.get_autocast_dtype(kind)
        operands = tuple(t if t is None or t.dtype == torch.float64 else t.to(to) for t in operands)
    return operands


def check_written(op: str, name: str, x: Tensor, cure: str = "call .contiguous() on it") -> None:
    """Raises ValueError where `x` cannot be written in place: elements that share memory would be written several
    times."""
    if x.numel() == 0:
        return
    dims = [(n, stride) for n, stride in zip(x.shape, x.stride(), strict=True) if n > 1]
    for i, (_, stride) in enumerate(dims):
        within = sum((n - 1) * s for j, (n, s) in enumerate(dims) if j != i and s <= stride)  # what one step must pass
        if stride <= within:
            raise ValueError(
                f"{op}: {name} is written in place, but elements of it share memory (shape {tuple(x.shape)}, strides "
                f"{x.stride()}); {cure}"
            )


def wrote(x: Tensor) -> None:
    """Tells autograd, of which raw ops know nothing, that one wrote into `x`: a backward that kept `x` then raises."""
    if not (torch.compiler.is_compiling() or x.is_inference()):
        torch.autograd.graph.increment_version(x)


# ---- Defaults -------------------------------------------------------------------------------------------------------

_REQUIRED = object()


def _defaults(name: str) -> list:
    """What each argument of a raw op is by default."""
    arguments = getattr(torch.ops.warpup, name).default._schema.arguments
    return [a.default_value if a.has_default_value() else _REQUIRED for a in arguments]


def filled(name: str, function: Callable) -> Callable:
    """`function` on all arguments of the op: torch hands those on that are not their defaults."""
    defaults = _defaults(name)
    if _REQUIRED not in defaults[-1:]:
        return lambda *arguments: function(*arguments, *defaults[len(arguments) :])
    return function


def short(name: str) -> Callable:
    """The raw op `name`, called without the last arguments that are their defaults: torch takes six times as long to
    read one from Python as to fill it in."""
    schema = getattr(torch.ops.warpup, name).default._schema
    tensor, defaults = ["Tensor" in str(a.type) for a in schema.arguments], _defaults(name)
    plain = len(tensor) - tensor[::-1].index(True)  # from here on there are no tensors
    rest = tuple(defaults[plain:])

    def call(*arguments):
        last = len(arguments)
        if not torch.compiler.is_compiling():
            if rest and arguments[plain:] == rest:
                last = plain
            while last:
                value, default = arguments[last - 1], defaults[last - 1]
                if value is not default and (tensor[last - 1] or value != default):
                    break
                last -= 1
        return getattr(ops, name)(*arguments[:last])

    return call


# ---- Registration ---------------------------------------------------------------------------------------------------


def fake(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: what the raw ops `names` return, as shapes and dtypes alone, for tracing."""

    def register(function: Callable) -> Callable:
        for name in names:
            torch.library.register_fake(f"warpup::{name}", filled(name, function))
            raw(name)
        return function

    return register


def composite(schema: str, *, on: str = "") -> Callable[[Callable], Callable]:
    """Decorator: a raw op made of other ops, kernels and library products, on whatever device its tensors are. Or what
    an op that C++ has for a CPU is `on` another device, "CUDA"; `schema` is then its name alone.

    It works in the dtypes that it is given, under autocast too, which `autocast` above has served before: a backward
    that runs inside of it would have products of another dtype than its operands.
    """

    def register(function: Callable) -> Callable:
        name, given, _ = schema.partition("(")
        if given:
            _library.define(schema)
        function = filled(name, function)

        @wraps(function)
        def run(*arguments):
            if torch.is_grad_enabled():  # not so within an autograd.Function
                with torch.no_grad():
                    return run(*arguments)
            if not torch._C._is_any_autocast_enabled():
                return function(*arguments)
            kind = next(a.device.type for a in arguments if isinstance(a, Tensor))
            with torch.autocast(kind, enabled=False):
                return function(*arguments)

        if on:
            composed[name] = run
        _library.impl(name, run, on or "CompositeExplicitAutograd")
        return function

    return register


def raw(*names: str) -> None:
    """A result of these raw ops never requires a gradient, so that backward through it fails loudly. (Autograd stands
    outside: a kernel for it inside the op would double the overhead of a call.) `fake` does this for its names."""
    for name in names:
        if name not in _raw:
            _raw.add(name)
            _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
