"""From raw ops of the C++ library to ops that torch can differentiate, trace and compile.

A differentiable op is a pair of raw ops, `name` and `name_backward`, each a plain kernel without autograd. The names of
their arguments say how the two belong together, and `differentiable` reads it from their schemas:

    divergence(Tensor student, Tensor teacher, str kind) -> (Tensor value, Tensor stats)
    divergence_backward(Tensor student, Tensor teacher, str kind, Tensor stats, Tensor grad_value)
        -> (Tensor grad_student)

`student`, `teacher` and `kind` are inputs of the forward, so they are kept for the backward; `stats` is one of its
outputs, kept too; `grad_value` is the gradient of the output `value`, the only output that has one; the result
`grad_student` is the gradient of `student`, the only input that gets one. Nothing is wired by hand: a misnamed argument
is an error at import, not a wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVarTuple, cast

import torch
from torch import Tensor

from warpup import _native  # noqa: F401  loads the library
from warpup._transforms import once, once_differentiable, transformed, vmap_rule

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


# ---- Autograd -------------------------------------------------------------------------------------------------------


def differentiable(
    name: str,
    *,
    backward: str = "",
    when: dict[str, str] | None = None,
    needed_by: dict[str, str] | None = None,
    backward_fake: Callable | None = None,
    strided: bool = False,
    leading: bool = False,
    own_row: bool = False,
    shared: tuple[str, ...] = (),
) -> Callable:
    """The raw op `name` with its gradients: a function of the same arguments, in their order or from some on by name,
    and the same results.

    Args:
        name: the raw op. Its fake is registered with `fake`.
        backward: the raw op of its gradients, `<name>_backward` by default. One that writes over an input,
            `op_backward_(Tensor(a!) x, ...) -> ()`, gives the gradient of that input. An argument `bool[] needs`
            hears which of the gradients it returns are needed. The others are found as the module's text says; those
            that are none of this must have a default, and come last. Results that are not named grad_<input> are for
            other callers.
        when: output -> the input that decides whether that output is there: a bool, or a tensor that may be None. An
            input `with_<output>` need not be listed. An output that is not there is None or has no elements; it has no
            gradient, and the backward is given None in its place.
        needed_by: tensor input -> the input whose gradient is all that it is kept for. Where that one needs none, the
            tensor is not kept, and the backward is given None in its place.
        backward_fake: what the backward returns; by default tensors like the inputs whose gradients they are, without
            elements where those are None or not needed.
        strided: the backward takes gradients as they come, with whatever strides; else they are made contiguous.
        leading: tensors and results may have any number of leading dimensions, which vmap then uses; else it calls the
            op for each element. Not those `shared`.
        own_row: a number of a result, of shape (...), is a function of its own row of the inputs, (...) or (..., V),
            alone, so the backward of ones is the derivative and forward mode has it. Else forward mode is an error.
    """
    backward = backward or f"{name}_backward"
    forward_schema = getattr(torch.ops.warpup, name).default._schema
    backward_schema = getattr(torch.ops.warpup, backward).default._schema
    inputs = [a.name for a in forward_schema.arguments]
    is_tensor = ["Tensor" in str(a.type) for a in forward_schema.arguments]
    outputs = [r.name for r in forward_schema.returns]
    when = {o: f"with_{o}" for o in outputs if f"with_{o}" in inputs} | (when or {})
    condition = {outputs.index(o): inputs.index(i) for o, i in when.items()}

    # What each argument of the backward is, and where it comes from: an input, an output, or the gradient of an output.
    sources: list[tuple[str, int]] = []
    for argument in backward_schema.arguments:
        a = argument.name
        if a.removeprefix("grad_") in outputs and a.startswith("grad_"):
            sources.append(("grad", outputs.index(a.removeprefix("grad_"))))
        elif a in inputs:
            position = inputs.index(a)
            sources.append(("input" if is_tensor[position] else "option", position))
        elif a in outputs:
            sources.append(("output", outputs.index(a)))
        elif a == "needs":
            sources.append(("needs", 0))
        elif not argument.has_default_value():
            raise TypeError(f"{backward}: argument {a} is neither of {inputs} nor of {outputs} nor a gradient of these")
    written = [a.name for a in backward_schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    returns = [r.name for r in backward_schema.returns]
    results = [r.removeprefix("grad_") for r in returns if r.startswith("grad_")] if returns else written
    if not results or not set(results) <= set(inputs):
        raise TypeError(f"{backward}: returns must be named grad_<input>, of {inputs}; got {results}")
    gets = [inputs.index(r) for r in results]  # positions of the inputs that get a gradient
    gradients_at = [at for at, r in enumerate(returns) if r.startswith("grad_")] or [0]  # in what the backward returns
    graded = {i for kind, i in sources if kind == "grad"}
    kept_for = {inputs.index(i): inputs.index(j) for i, j in (needed_by or {}).items()}
    required = [a for a in backward_schema.arguments if a.name.startswith("grad_") and str(a.type) == "Tensor"]
    materialize = len(graded) > 1 and bool(required)
    # All that can be is worked out here, once: a call on a few numbers is nothing but this.
    constant = [i for i in range(len(outputs)) if i not in graded]
    options = [i for kind, i in sources if kind == "option"]
    kept_inputs = [i for kind, i in sources if kind == "input"]
    kept_outputs = [i for kind, i in sources if kind == "output"]
    overwritten = None if backward_schema.returns else sources.index(("input", gets[0]))
    nothing = (None,) * len(inputs)

    def gradients_of(ctx, saved, gradients) -> list:
        """What the backward makes of gradients of the outputs, for the inputs of `gets`."""
        of = {
            "input": iter(saved[: len(kept_inputs)]),
            "output": iter(saved[len(kept_inputs) :]),
            "option": iter(ctx.options),
        }
        arguments = []
        for kind, i in sources:
            if kind == "grad":
                g = gradients[i]
                arguments.append(g if g is None or strided else g.contiguous())
            elif kind == "needs":
                arguments.append([ctx.needs_input_grad[j] for j in gets])
            else:
                arguments.append(next(of[kind]))
        if overwritten is not None and transformed():  # others may hold what a transform shows us
            arguments[overwritten] = arguments[overwritten].clone()
        found = getattr(ops, backward)(*arguments)
        if overwritten is not None:  # the gradient is where an input was; a later backward that needs it must raise
            found = arguments[overwritten]
            torch.autograd.graph.increment_version(found)
        found = found if isinstance(found, tuple | list) else (found,)
        return [found[at] for at in gradients_at]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return getattr(ops, name)(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            found = output if isinstance(output, tuple) else (output,)
            ctx.absent = absent = [
                o for o, i in condition.items() if (inputs[i] is None if is_tensor[i] else not inputs[i])
            ]
            if constant or absent:  # Dynamo cannot trace a call for nothing
                ctx.mark_non_differentiable(*[found[i] for i in (*constant, *absent) if found[i] is not None])
            ctx.set_materialize_grads(materialize)
            ctx.options = [inputs[i] for i in options]
            kept = [None if i in absent else found[i] for i in kept_outputs]
            if kept_for:
                needs = ctx.needs_input_grad
                mine = [inputs[i] if i not in kept_for or needs[kept_for[i]] else None for i in kept_inputs]
            else:
                mine = [inputs[i] for i in kept_inputs]
            ctx.save_for_backward(*mine, *kept)

        @staticmethod
        @once_differentiable
        def backward(ctx, saved, *gradients):
            absent = ctx.absent
            if absent:
                gradients = [None if i in absent else g for i, g in enumerate(gradients)]
            if all(g is None for g in gradients):
                return nothing
            found = gradients_of(ctx, saved, gradients)
            all_gradients = list(nothing)
            for j, g in zip(gets, found, strict=True):
                if ctx.needs_input_grad[j]:
                    all_gradients[j] = g
            return tuple(all_gradients)

    def default_fake(*arguments):
        of = dict(zip((a.name for a in backward_schema.arguments), arguments, strict=False))
        needs = of.get("needs", [True] * len(gets))
        first = next(a for a in arguments if isinstance(a, Tensor))

        def like(x, needed):
            if x is None or not needed:
                return first.new_empty(0)
            return torch.empty(x.shape, dtype=x.dtype, device=x.device)

        if not backward_schema.returns:
            return None
        found = [like(of[r], needed) for r, needed in zip(results, needs, strict=True)]
        return tuple(found) if len(found) > 1 else found[0]

    if backward_fake is not None or all(r in {a.name for a in backward_schema.arguments} for r in results):
        fake(backward)(backward_fake or default_fake)
    else:
        raise TypeError(f"{backward}: it is not given all of {results}, so it needs a backward_fake")

    class Transformed(Function):
        """What torch.func needs more, and Dynamo cannot trace."""

        @staticmethod
        def setup_context(ctx, inputs, output):
            Function.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*ctx.to_save)
            found = output if isinstance(output, tuple) else (output,)
            ctx.outputs = [None if o is None else (o.shape, o.dtype) for o in found]

        @staticmethod
        def jvp(ctx, *tangents):
            if not own_row:
                raise NotImplementedError(
                    f"{name} has no forward-mode derivative (jvp, jacfwd, dual numbers); take reverse mode (grad, vjp, "
                    "jacrev), or the operator's `reference_` function, in its module"
                )
            found: list = [None] * len(outputs)
            saved = ctx.saved_tensors
            for o in graded - set(ctx.absent):
                shape, dtype = ctx.outputs[o]
                ones = torch.ones(shape, dtype=dtype, device=saved[0].device)
                others = torch.zeros_like(ones) if materialize else None
                found[o] = torch.zeros_like(ones)
                gradients = gradients_of(ctx, saved, [ones if i == o else others for i in range(len(outputs))])
                for j, gradient in zip(gets, gradients, strict=True):
                    if tangents[j] is not None:
                        along = once(gradient, saved).to(dtype) * tangents[j]
                        found[o] = found[o] + (along.flatten(len(shape)).sum(-1) if along.dim() > len(shape) else along)
            return tuple(found) if len(found) > 1 else found[0]

    # `Function.apply` binds the arguments to the signature of `forward`, which costs more than all the rest of a call.
    # Only torch.compile and torch.func have use for it; what lies beneath takes positional arguments as they are.
    apply_positional = cast(Any, super(torch.autograd.Function, Function)).apply
    apply_transformed = torch.compiler.disable(Transformed.apply, reason="warpup's operators under torch.func")

    without_gradient = short(name)

    def call(*arguments, **named):
        if named:
            if len(arguments) + len(named) != len(inputs):
                raise TypeError(f"{name}: expected {', '.join(inputs)}; got {len(arguments)} and {', '.join(named)}")
            arguments = (*arguments, *[named[i] for i in inputs[len(arguments) :]])
        if transformed():
            return apply_transformed(*arguments)
        if torch.is_grad_enabled():
            for i in gets:
                if arguments[i] is not None and arguments[i].requires_grad:
                    return (Function.apply if torch.compiler.is_compiling() else apply_positional)(*arguments)
        return without_gradient(*arguments)

    def shared_by(schema) -> list[int] | None:
        return [i for i, a in enumerate(schema.arguments) if a.name in shared] if leading else None

    Transformed.vmap = staticmethod(vmap_rule(call, shared_by(forward_schema)))
    if backward_schema.returns:
        torch.library.register_vmap(
            f"warpup::{backward}", vmap_rule(getattr(torch.ops.warpup, backward), shared_by(backward_schema))
        )
    Function.__name__ = Function.__qualname__ = Transformed.__name__ = call.__name__ = call.__qualname__ = name
    return call
