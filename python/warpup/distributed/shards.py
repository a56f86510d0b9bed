"""Moving the shards of `ShardedExperts` between ranks, and keeping them in files that any number of ranks can read."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from warpup.distributed.collectives import exchange, same_on_all_ranks
from warpup.distributed.experts import ShardedExperts
from warpup.distributed.placement import heterogeneous_shards, owned

Told = TypeVar("Told")

PARAMETERS = ("w_gate_up", "w_down")
FOREIGN = "optimizer must be the one that has the parameters of the experts: give that, or None if there is none"


@torch.no_grad()
def move_shards(module: ShardedExperts, optimizer: torch.optim.Optimizer | None, new_owner: Tensor) -> None:
    """Give the experts of `module` to `new_owner` (E,): parameters, and the optimizer's state of them.

    The parameters stay the same objects with other rows; their gradients are dropped, so call it after the step. State
    with a row per expert moves with it, a scalar (the step) stays. All ranks of the group call it. Raises ValueError
    on every rank if the owners, or the kinds of state, differ between ranks or do not fit, or if the optimizer does not
    have the parameters.

    optimizer: the one that has the parameters; None only if none does, or none has made a step. State of an optimizer
    that is not given stays where it is: it would be applied to other experts.
    """
    new_owner = new_owner.cpu().long()
    parameters = [getattr(module, name) for name in PARAMETERS]
    foreign = not has_parameters(optimizer, module)
    states = [optimizer.state.get(p, {}) if optimizer else {} for p in parameters]
    kinds = [{key: kind_of(value, p) for key, value in s.items()} for s, p in zip(states, parameters, strict=True)]
    same_on_all_ranks(
        {"new_owner": new_owner.tolist(), "optimizer state": kinds, "optimizer of other parameters": foreign},
        module.group,
    )
    if foreign:
        raise ValueError(FOREIGN)
    if new_owner.shape != module.owner.shape or not (0 <= int(new_owner.min()) <= int(new_owner.max()) < module.ranks):
        raise ValueError(
            f"new_owner must be ({len(module.owner)},) ranks below {module.ranks}, got {new_owner.tolist()}"
        )
    if "other" in (kind for each in kinds for kind in each.values()):
        raise ValueError(f"optimizer state must be scalars, or hold a row per expert, got {kinds}")
    if module.prefetched is not None:
        module.prefetched.wait()
    module.prefetched = module.latest = None
    for parameter, state, kind in zip(parameters, states, kinds, strict=True):
        parameter.grad = None
        for key in sorted(state):
            if kind[key] == "rows":
                state[key] = moved(state[key], module, new_owner)
        parameter.data = moved(parameter.data, module, new_owner)
    module.owner = new_owner


def has_parameters(optimizer: torch.optim.Optimizer | None, module: ShardedExperts) -> bool:
    """Whether the optimizer, if there is one, has what is trained of the module."""
    if optimizer is None:
        return True
    has = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return all(id(p) in has or not p.requires_grad for p in module.parameters())


def kind_of(value, parameter: Tensor) -> str:
    """How a piece of optimizer state follows its parameter."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return "scalar"
    return "rows" if value.dim() == parameter.dim() and len(value) == len(parameter) else "other"


def moved(rows: Tensor, module: ShardedExperts, new_owner: Tensor) -> Tensor:
    """The rows of the experts that this rank owns by `new_owner`, from those that it owns now."""
    had, gets = module.shard, owned(new_owner, module.rank)
    send, receive = new_owner[had], module.owner[gets]
    arriving = receive.argsort(stable=True)  # they come by old owner
    found, _ = exchange(
        rows[send.argsort(stable=True).to(rows.device)],
        torch.bincount(send, minlength=module.ranks).tolist(),
        torch.bincount(receive, minlength=module.ranks).tolist(),
        module.group,
    )
    return found[arriving.argsort().to(rows.device)]


def rebalance(layers: Sequence[ShardedExperts], optimizer: torch.optim.Optimizer | None) -> bool:
    """Shard all layers anew by their loads of the last iterations (`heterogeneous_shards`), and move what changed.

    Call it on all ranks after an optimizer step, about every 100 iterations. `optimizer` as in `move_shards`. Whether
    anything moved. The layers must have the same number of experts, the same group, and have run; ValueError if not.
    """
    if not layers:
        raise ValueError("layers must hold a ShardedExperts")
    first = layers[0]
    if any(len(m.owner) != len(first.owner) or m.group is not first.group or not m.loads for m in layers):
        raise ValueError("layers must have the same number of experts and the same group, and have run in training")
    loads = torch.stack([torch.stack(list(m.loads)).sum(0) for m in layers])
    # Experts that all ranks get copies of may be kept anywhere.
    owners = heterogeneous_shards(loads, first.nodes, top=min(first.room["top"], first.room["slots"]))
    changed = [(m, o) for m, o in zip(layers, owners, strict=True) if not torch.equal(m.owner, o)]
    for module, owner in changed:
        move_shards(module, optimizer, owner)
    return bool(changed)


def layers_of(model: nn.Module) -> dict[str, ShardedExperts]:
    """The sharded layers of a model by the prefix of their names in a checkpoint."""
    return {f"{n}." if n else "": m for n, m in model.named_modules() if isinstance(m, ShardedExperts)}


def save_experts(folder: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write every `ShardedExperts` of `model`, and the optimizer's state of it, by global expert number.

    Each rank writes its own experts to a file of its own, `experts-00001-of-00004.safetensors`: a tensor per expert and
    parameter, `{module}.{expert}.{parameter}`, and per tensor of its state, `{module}.{expert}.{parameter}.{key}`.
    `folder` must be visible to all ranks and hold no other checkpoint; ValueError if it holds one of another number of
    ranks. Returns when all have written. All files of a checkpoint carry one id, and get their names once all are
    whole. A rank that cannot write, as on a full disk, is a ValueError on every rank, and the files of before stay.
    """
    folder, tensors, first = Path(folder), {}, None
    for name, module in layers_of(model).items():
        if not has_parameters(optimizer, module):
            raise ValueError(FOREIGN)
        first = first or module
        if module.loads:
            tensors[f"{name}loads"] = torch.stack(list(module.loads))
        for parameter in PARAMETERS:
            weight = getattr(module, parameter)
            state = optimizer.state.get(weight, {}) if optimizer else {}
            for key, value in {"": weight.detach(), **state}.items():
                if value is None:
                    continue
                end = f"{parameter}.{key}" if key else parameter
                if (kind := kind_of(value, weight)) == "other":
                    raise ValueError(f"optimizer state {key} must be a scalar or hold a row per expert")
                if kind == "scalar":
                    tensors[f"{name}{end}"] = torch.as_tensor(value).clone()
                else:
                    tensors |= {f"{name}{e}.{end}": row.clone() for e, row in zip(module.shard, value, strict=True)}
    if first is None:
        raise ValueError("model must hold a ShardedExperts")
    if old := [f.name for f in folder.glob("experts-*-of-*") if not f.stem.endswith(f"-of-{first.ranks:05d}")]:
        raise ValueError(
            f"{folder} holds a checkpoint of another number of ranks, {sorted(old)}: choose another folder"
        )
    target = folder / f"experts-{first.rank:05d}-of-{first.ranks:05d}.safetensors"
    partial, problem = folder / f".{target.name}.partial", None
    one_id = of_all_ranks(uuid.uuid4().hex, first)[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"checkpoint": one_id})
    except (OSError, SafetensorError) as error:
        problem = f"cannot write {target}: {error}"
    if problems := [each for each in of_all_ranks(problem, first) if each]:
        raise ValueError(problems[0])
    os.replace(partial, target)
    if dist.is_initialized():
        dist.barrier(first.group)


def of_all_ranks(value: Told, module: ShardedExperts) -> list[Told]:
    """What each rank of a module's group gives, in their order."""
    found = [value] * module.ranks
    if dist.is_initialized():
        dist.all_gather_object(found, value, module.group)
    return found


@torch.no_grad()
def load_experts(folder: Path | str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Read what `save_experts` wrote on any number of ranks into the shards of this rank, whatever they are now.

    With `optimizer`, its state of the experts as well. Nothing is sent between ranks. Raises ValueError, before
    anything is changed, if files or experts are missing, damaged, of different checkpoints, or do not fit.
    """
    files = sorted(Path(folder).glob("experts-*-of-*.safetensors"))
    names = [file.name for file in files]
    if not files or names != [f"experts-{i:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]:
        raise ValueError(f"{folder} must hold the files of one checkpoint of experts, got {names}")
    opened = [opened_file(file) for file in files]
    ids = [(file.metadata() or {}).get("checkpoint") for file in opened]
    if len(set(ids)) > 1:
        others = [name for name, each in zip(names, ids, strict=True) if each != ids[0]]
        raise ValueError(f"{folder} holds files of several checkpoints: {', '.join(others)} are not of {names[0]}'s")
    where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118

    def read(key: str, shape: torch.Size | None = None) -> Tensor:
        found = where[key].get_tensor(key) if key in where else None
        if found is None or shape not in (None, found.shape):
            raise ValueError(f"{folder} has {'no' if found is None else tuple(found.shape)} {key}, expected {shape}")
        return found

    def keys(prefix: str) -> list[str]:
        return sorted(key.removeprefix(prefix) for key in where if key.startswith(prefix))

    loaded = []
    for name, module in layers_of(model).items():
        if not has_parameters(optimizer, module):
            raise ValueError(FOREIGN)
        if f"{name}{len(module.owner)}.w_down" in where:
            raise ValueError(f"{folder} has more experts in {name or 'the layer'} than the model, {len(module.owner)}")
        for parameter in PARAMETERS:
            weight, state = getattr(module, parameter), {}
            for end in ("", *(f".{key}" for key in keys(f"{name}0.{parameter}."))):
                shape = None if end else weight.shape[1:]
                rows = [read(f"{name}{e}.{parameter}{end}", shape) for e in module.shard]
                rows = torch.stack(rows or [read(f"{name}0.{parameter}{end}", shape)])[: len(rows)]
                state[end.removeprefix(".")] = rows.to(weight.device)
            state |= {key: read(f"{name}{parameter}.{key}") for key in keys(f"{name}{parameter}.")}
            loaded.append((weight, state))
    for weight, state in loaded:
        weight.copy_(state.pop(""))
        if optimizer:
            optimizer.state[weight] = state
    for name, module in layers_of(model).items():
        module.loads.clear()
        module.loads.extend(read(f"{name}loads") if f"{name}loads" in where else ())


def opened_file(file: Path):
    """A safetensors file; ValueError that names it if it is damaged."""
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
