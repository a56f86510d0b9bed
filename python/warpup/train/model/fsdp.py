"""A model in shards: each process keeps a part of every weight, of its gradient and of its moments (FSDP2).

torch's `fully_shard` makes each weight a DTensor, cut along its first dimension. The weights of a decoder layer are put
together for as long as it computes, forward and again backward, and gradients are summed into their shards. What stands
outside of the layers (embedding, last norm, output layer) is one more unit, the root, which stays whole from a forward
to the end of its backward, since losses are made from hidden states and the output layer's weight.

Putting weights together is an exchange of all ranks. So all of them must go through the model equally often
(`even_batches`), but where the whole model is put together for a while (`whole`): for sampling, in which completions
end when they like.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MethodType
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import ranks
from ..errors import TrainError
from .batch import Batch, idle_batch
from .lora import is_adapted

_whole: WeakSet[nn.Module] = WeakSet()  # models of which all units are whole


def shard_model(model: nn.Module) -> None:
    """Spread the model over all ranks, in place; every rank has it as a whole before, with the same weights.

    Gradients are summed over the ranks, in float32 at least. TrainError on what cannot be trained so."""
    kinds = {p.dtype for p in model.parameters() if p.requires_grad}
    if not kinds <= {torch.float32, torch.float64}:
        raise TrainError("fsdp: gradients of weights in 16 bits would be summed in them; load the model in float32")
    policy = MixedPrecisionPolicy(reduce_dtype=max(kinds, key=lambda kind: kind.itemsize))
    device = next(model.parameters()).device.type
    options = {"mesh": init_device_mesh(device, (ranks.size(),)), "mp_policy": policy}
    try:
        for module in reversed(list(model.modules())):  # what is inside another one first
            if isinstance(module, GradientCheckpointingLayer) and module is not model:
                fully_shard(module, **options)
        fully_shard(model, **options)
    except (ValueError, NotImplementedError, AssertionError) as error:  # such as weights that are scalars
        raise TrainError(f"fsdp: torch cannot shard this model: {' '.join(str(error).split())}") from error
    for unit in units_of(model):
        unit.set_gradient_divide_factor(1.0)  # a loss is divided by the tokens of all ranks already
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard_model` has spread it."""
    return isinstance(model, FSDPModule)


def units_of(model: nn.Module) -> list[FSDPModule]:
    """The root and the layers: what is put together and taken apart at once."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def class_of(model: nn.Module) -> type:
    """The model's own class: `fully_shard` puts one of its own before it."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def reshard(model: nn.Module) -> None:
    """Only shards are left, also of the root, which a forward without a backward leaves whole. What reads or changes
    weights between two passes comes after this: those of a whole root are a copy."""
    for unit in units_of(model):
        unit.reshard()


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While open every rank has the whole model, and may call it as often as it likes. No backward goes through it."""
    units = units_of(model)
    if not units or model in _whole:
        yield
        return
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    _whole.add(model)
    try:
        yield
    finally:
        _whole.discard(model)
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def callable_body(model, body) -> Callable:
    """The body, to be called by itself: of a sharded model with the weights of the root, which is around it, whole."""
    if not is_sharded(model):
        return body

    def call_body(root, *arguments, **named):
        return body(*arguments, **named)

    model.call_body = MethodType(call_body, model)
    register_fsdp_forward_method(model, "call_body")
    return model.call_body


def even_batches(model: nn.Module, batches: Iterable[Batch], pad: int) -> list[Batch]:
    """A rank's batches of a step; of a sharded model as many as the rank with most of them has, by idle ones."""
    batches = list(batches)
    if not is_sharded(model):
        return batches
    missing = max(ranks.gathered(len(batches))) - len(batches)
    return batches + [idle_batch(pad, model.device)] * missing


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model, each tensor once: weights and buffers, of one with adapters what is trained.
    Of a sharded model the weights are DTensors."""
    reshard(model)
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or not is_adapted(model)}
    if is_adapted(model):
        return parameters
    kept = model.state_dict().keys()
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def full_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a sharded model (with adapters: what is trained) with whole tensors in the CPU's memory, on the
    first rank; None of a model that is not sharded. All ranks call it."""
    if not is_sharded(model):
        return None
    found = {}
    for name, tensor in own_tensors(model).items():
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found[name] = tensor.cpu() if ranks.rank() == 0 else tensor.new_empty(0)
    first: dict[int, str] = {}  # of weights with several names, which are tied, all are in a state dict
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (shown := first.setdefault(id(parameter), name)) in found:
            found[name] = found[shown]
    return found


def as_shards(value: Tensor, like: DTensor) -> DTensor:
    """The rank's part of a tensor that all ranks have whole."""
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_state(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy tensors that all ranks have whole into those of the same names, which may be in shards."""
    for name, value in found.items():
        target = own[name]
        target.copy_(as_shards(value, target) if isinstance(target, DTensor) else value)
