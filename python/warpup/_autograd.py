"""From raw ops to ops that torch can differentiate.

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
from typing import Any, cast

import torch
from torch import Tensor

from warpup import _op
from warpup._transforms import once, once_differentiable, transformed, vmap_rule


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
        name: the raw op. Its fake is registered with `_op.fake`.
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
        found = getattr(_op.ops, backward)(*arguments)
        if overwritten is not None:  # the gradient is where an input was; a later backward that needs it must raise
            found = arguments[overwritten]
            torch.autograd.graph.increment_version(found)
        found = found if isinstance(found, tuple | list) else (found,)
        return [found[at] for at in gradients_at]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return getattr(_op.ops, name)(*arguments)

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
        _op.fake(backward)(backward_fake or default_fake)
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

    without_gradient = _op.short(name)

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
