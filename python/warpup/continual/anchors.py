"""Anchors: penalties that hold a model, or its outputs, where earlier tasks left them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from warpup._arguments import explained, same_shape, same_shapes
from warpup._optional import needs

from .weights import State


@explained
def diagonal_fisher(parameters: State, losses: Iterable[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information, `sum over batches of (size * gradient)^2 / examples`.

    Batches of one example give the Fisher of the examples. Larger ones square the sum over the batch, as published
    code does (arXiv 2305.10626), which is right where gradients of different examples do not correlate.

    Args:
        parameters: what the gradient is taken of, such as `dict(model.named_parameters())`, before adapters are put on.
        losses: (mean negative log-likelihood of a batch, its number of examples), one batch after the other; a
            generator computes each when it is its turn.

    Returns:
        A tensor of each parameter's shape, float32 (float64 for float64).

    Raises:
        ValueError: no batch.
    """
    wide = {name: torch.promote_types(p.dtype, torch.float32) for name, p in parameters.items()}
    total = {name: torch.zeros_like(p, dtype=wide[name]) for name, p in parameters.items()}
    examples = 0
    for loss, size in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, square), gradient in zip(total.items(), gradients, strict=True):
            if gradient is not None:
                square += (gradient.to(wide[name]) * size).square()
        examples += size
    if not examples:
        raise ValueError("diagonal_fisher: losses must hold at least one batch")
    return {name: square / examples for name, square in total.items()}


@explained
def ewc_penalty(values: State, fisher: State, anchor: State | None = None) -> Tensor:
    """Elastic weight consolidation, `sum F (value - anchor)^2` over all that has a Fisher information; 0-d.

    | method | values | anchor | weight beside the loss |
    |---|---|---|---|
    | EWC (arXiv 1612.00796) | parameters | parameters after the last task | lambda / 2 |
    | PSMT (arXiv 2407.02253) | the student's | the source model's | 500 |
    | EWC-LoRA (arXiv 2305.10626) | `lora_deltas(model)` | None: the update is the adapter | .5 (6B), 2 (1.3B) |

    Args:
        values: with gradient.
        fisher: `diagonal_fisher(...)`; what it does not name is free.
        anchor: of the same names; None: 0.

    Raises:
        ValueError: a name of the Fisher information is missing in values or anchor or has another shape there, or it
            has none.
    """
    if not fisher:
        raise ValueError("ewc_penalty: fisher must name at least one tensor")
    for name in fisher:
        if name not in values or (anchor is not None and name not in anchor):
            raise ValueError(f"ewc_penalty: fisher has {name!r}, which values or anchor lack")
        held = {} if anchor is None else {f"anchor[{name!r}]": anchor[name]}
        same_shape("ewc_penalty", **{f"values[{name!r}]": values[name], f"fisher[{name!r}]": fisher[name]}, **held)
    moved = {name: values[name] if anchor is None else values[name] - anchor[name].detach() for name in fisher}
    return torch.stack([(fisher[name] * delta.square()).sum() for name, delta in moved.items()]).sum()


def lora_deltas(model: nn.Module) -> dict[str, Tensor]:
    """What peft's active adapters add to each weight, `scaling * B A`, with gradient, by the base model's own names.

    Raises:
        ModuleNotFoundError: without peft.
        ValueError: the model has no LoRA layer.
    """
    with needs("lora_deltas", "peft", "'warpup[lora]'"):
        from peft.tuners.lora import LoraLayer

    deltas = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
            each = [layer.get_delta_weight(adapter) for adapter in active]  # type: ignore[attr-defined]
            if each:
                deltas[f"{name.removeprefix('base_model.model.')}.weight"] = torch.stack(each).sum(0)
    if not deltas:
        raise ValueError("lora_deltas: model has no LoRA layer; put adapters on it first (peft.get_peft_model)")
    return deltas


@explained
def output_anchor(outputs: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """`mean over earlier tasks of ||output - what it was before||^2`; 0-d, 0 without earlier tasks.

    For a network that is given a task's embedding e_t, such as a hypernetwork that makes the weights of a dynamics
    model: outputs are h(e_t) now, before are those when the current task began. Its weight beside the loss is .05 in
    HyperCRL (arXiv 2009.11997). `warpup.interval.weights.drift_loss` is the same for boxes of weights.

    Args:
        outputs, before: a tensor for each earlier task.
    """
    same_shapes("output_anchor", outputs=outputs, before=before)
    if not outputs:
        return torch.zeros(())
    return torch.stack([(o - b.detach()).square().sum() for o, b in zip(outputs, before, strict=True)]).mean()
