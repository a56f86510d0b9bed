"""Arithmetic on states: dictionaries of tensors by name, as `module.state_dict()` or `dict(module.named_parameters())`.

Sums are made in float32 (float64 for float64) and rounded once to the dtype of the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from warpup._arguments import explained

State = Mapping[str, Tensor]


@explained
def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of states of one architecture: `sum_k w_k states[k] / sum_k w_k`, name by name.

    | method | states | weights |
    |---|---|---|
    | FedAvg (arXiv 1602.05629) | those of the clients | how many examples each has |
    | model soup (arXiv 2203.05482), course soup (2305.03981) | runs that began alike | None: equal |
    | EMA-merge after a task (FoMo-in-Flux, arXiv 2408.14471) | [merged so far, trained from it] | [1 - w, w] |
    | mean of what clients changed (FLASC, arXiv 2406.05233) | `difference(after, before)` of each | None |

    Args:
        states: one or more, of the same names and shapes.
        weights: one a state, with a sum above 0; None: equal.

    Returns:
        New tensors, without gradient, of the first state's dtypes. Of tensors that are no floating-point numbers
        (BatchNorm's counter) the largest.

    Raises:
        ValueError: no state, names or shapes that differ, another number of weights, a sum that is not above 0.
    """
    if not states:
        raise ValueError("average: states must hold at least one state")
    weights = [1.0] * len(states) if weights is None else [float(w) for w in weights]
    if len(weights) != len(states):
        raise ValueError(f"average: weights must be one for each of {len(states)} states, got {len(weights)}")
    if not 0 < sum(weights) < float("inf"):
        raise ValueError(f"average: weights must have a finite sum above 0, got {weights}")
    for state in states[1:]:
        _check_alike("average", states[0], state)
    total, mean = sum(weights), {}
    for name, first in states[0].items():
        values = [state[name].detach() for state in states]
        if first.is_floating_point():
            wide = torch.promote_types(first.dtype, torch.float32)
            weighted = [value.to(wide) * (weight / total) for value, weight in zip(values, weights, strict=True)]
            mean[name] = torch.stack(weighted).sum(0).to(first.dtype)
        else:
            mean[name] = torch.stack(values).amax(0)
    return mean


@explained
def difference(after: State, before: State) -> dict[str, Tensor]:
    """`after - before`, name by name, without gradient: what training changed."""
    _check_alike("difference", after, before)
    return {name: value.detach() - before[name].detach() for name, value in after.items()}


@explained
def keep_largest(state: State, share: float) -> dict[str, Tensor]:
    """The state with all but its largest entries 0: `round(share * n)` of its n entries by magnitude, over all tensors
    together.

    Federated training of adapters with little to send (FLASC, arXiv 2406.05233; CELLM): a client gets
    `keep_largest(adapter, .25)`, trains all of it, zeros included, and sends `keep_largest(difference(...), .25)`;
    `server_step` takes the mean. Freezing the zeros while training is what costs accuracy.

    Args:
        state: floating-point tensors.
        share: in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"keep_largest: share must be above 0 and at most 1, got {share}")
    if not state:
        raise ValueError("keep_largest: state must name at least one tensor")
    size = torch.cat([value.detach().abs().flatten().float() for value in state.values()])
    kept = torch.zeros_like(size, dtype=torch.bool)
    kept[size.topk(round(share * len(size))).indices] = True
    parts = kept.split([value.numel() for value in state.values()])
    return {
        name: value.detach().where(part.view_as(value), 0.0)
        for (name, value), part in zip(state.items(), parts, strict=True)
    }


@explained
def server_step(
    module: nn.Module,
    deltas: Sequence[State],
    optimizer: torch.optim.Optimizer,
    weights: Sequence[float] | None = None,
) -> None:
    """One step of a federated server: the optimizer takes minus the mean of what clients changed for a gradient.

    SGD with rate 1 gives FedAvg, Adam FedAdam (arXiv 2003.00295). Parameters that no delta names stay as they are.

    Args:
        module: of the server; its parameters are changed in place.
        deltas: what each client changed, by the names of `module.named_parameters()`.
        optimizer: over the module's parameters.
        weights: as in `average`.
    """
    parameters = dict(module.named_parameters())
    mean = average(deltas, weights)
    if unknown := [name for name in mean if name not in parameters]:
        raise ValueError(f"server_step: deltas name {unknown[0]!r}, which is no parameter of the module")
    optimizer.zero_grad(set_to_none=True)
    for name, delta in mean.items():
        parameters[name].grad = -delta.to(parameters[name])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@explained
@torch.no_grad()
def ema_update_(teacher: State, student: State, decay: float, mask: State | None = None) -> None:
    """Moves a teacher to its student in place: `t <- decay t + (1 - decay) s`, and `t <- s` where the mask is True.

    With a mask the teacher of parameter-selective adaptation (PSMT, arXiv 2407.02253); its released code moves the
    teacher a second time without the mask, this does not. Without one, what torch's `swa_utils.AveragedModel` does.

    Args:
        teacher, student: of the same names, such as `dict(model.named_parameters())`. Keep the teacher in float32: in
            16 bits what a decay near 1 adds is rounded away.
        decay: in [0, 1].
        mask: bool, of all names.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"ema_update_: decay must be in [0, 1], got {decay}")
    _check_alike("ema_update_", teacher, student)
    if mask is not None:
        _check_alike("ema_update_", teacher, mask)
    for name, value in teacher.items():
        value.lerp_(student[name].to(value), 1 - decay)
        if mask is not None:
            value.copy_(torch.where(mask[name], student[name].to(value), value))


def _check_alike(function: str, a: State, b: State) -> None:
    """Raises ValueError where the names or shapes of two states differ."""
    if a.keys() != b.keys():
        raise ValueError(
            f"{function}: states must have the same names, only one has {sorted(a.keys() ^ b.keys())[0]!r}"
        )
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"{function}: {name} must have one shape in all states, got {tuple(a[name].shape)} and "
                f"{tuple(b[name].shape)}"
            )
