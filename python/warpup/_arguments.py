"""Errors that name the argument: what a call failed by is looked for among its arguments, once it has failed."""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

DTYPES = ["float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"]  # what kernels read
NAMES = {Tensor: "a Tensor", float: "a number", int: "an integer", str: "a string", types.NoneType: "None"}
F = TypeVar("F", bound=Callable)


def explained(function: F) -> F:
    """Decorator of a public function: where a call fails, its arguments are held against the function's annotations.
    One of another type, or a tensor that no kernel reads (sparse, complex, without memory), is named in a TypeError or
    ValueError, instead of what tripped over it. A call that succeeds costs nothing more."""

    @wraps(function)
    def call(*arguments, **named):
        try:
            return function(*arguments, **named)
        except Exception as error:
            if not torch.compiler.is_compiling():
                find_wrong(function, arguments, named, error)
            raise

    return call  # type: ignore[return-value]


def check_above_0(function: str, **values: float) -> None:
    """Raises ValueError, naming the first that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{function}: {name} must be above 0, got {value}")


def same_shape(function: str, **tensors: Tensor) -> None:
    """ValueError unless all have the first one's shape. torch would broadcast (N,) and (N, 1) to (N, N)."""
    (first, like), *others = tensors.items()
    for name, x in others:
        if x.shape != like.shape:
            raise ValueError(
                f"{function}: {name} must have the shape of {first}, {tuple(like.shape)}, got {tuple(x.shape)}"
            )


def same_shapes(function: str, **lists: Sequence[Tensor]) -> None:
    """The same of two lists, tensor by tensor; ValueError where they are not equally many."""
    (one, first), (other, second) = lists.items()
    if len(first) != len(second):
        raise ValueError(f"{function}: {one} and {other} must be equally many, got {len(first)} and {len(second)}")
    for i, pair in enumerate(zip(first, second, strict=True)):
        same_shape(function, **{f"{one}[{i}]": pair[0], f"{other}[{i}]": pair[1]})


def find_wrong(function: Callable, arguments: tuple, named: dict, error: Exception) -> None:
    """Raises what is wrong with an argument, from `error`, if anything is."""
    try:
        given = inspect.signature(function).bind(*arguments, **named).arguments
    except TypeError:
        return  # Python's own message says which argument is missing or too many
    hints = typing.get_type_hints(function)
    for name, value in given.items():
        for where, hint, part in _parts(name, hints.get(name), value):
            if str(error).startswith(f"{function.__name__}: {where} "):
                return  # the function's own words say more
            if not _fits(part, hint):
                raise TypeError(
                    f"{function.__name__}: {where} must be {_text(hint)}, got {type(part).__name__}"
                ) from error
            if isinstance(part, Tensor) and (problem := _unreadable(part)):
                raise ValueError(f"{function.__name__}: {where} {problem}") from error


def _parts(name: str, hint: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """The argument, and the fields of one that is a named tuple."""
    if hint is None:
        return
    yield name, hint, value
    if hasattr(value, "_fields"):
        hints = typing.get_type_hints(type(value))
        for field in value._fields:
            yield f"{name}.{field}", hints.get(field, Any), getattr(value, field)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the annotated type, as far as its class tells."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    kind = origin or hint
    if kind in (Any, typing.Literal) or not isinstance(kind, type):  # Any is a class
        return True
    if kind is float:
        return isinstance(value, numbers.Real)
    if kind is int:
        return isinstance(value, numbers.Integral)
    return isinstance(value, kind) and (kind is str or not isinstance(value, str))  # a text is no sequence of numbers


def _text(hint: Any) -> str:
    """The annotation as one would say it: "a Tensor or None", "a Tensor or a number"."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_text, typing.get_args(hint)))
    return NAMES.get(hint) or (hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", ""))


def _unreadable(x: Tensor) -> str | None:
    """Why no kernel reads this tensor; None if it may be one's input."""
    if x.layout != torch.strided:
        return f"must be a dense tensor, got layout {x.layout}; call .to_dense() on it"
    if str(x.dtype).removeprefix("torch.") not in DTYPES:
        return f"must be one of {', '.join(DTYPES)}, got {x.dtype}"
    if x.device.type not in ("cpu", "cuda"):
        return f"must be on a CPU or a CUDA device, got {x.device}"
    return None
