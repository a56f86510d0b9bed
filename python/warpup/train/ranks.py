"""Data parallelism: one recipe in several processes, which take the same steps and share the work of each.

    torchrun --nproc-per-node 4 -m warpup train config.toml

Each process, or rank, holds the whole model, or with `fsdp` a part of it (model/fsdp.py), and runs the whole program:
it draws the same random numbers, picks the same examples and comes to the same decisions. Shared is what takes time.
Each rank samples some of the completions and sends some of a batch's rows through the model; then completions, numbers
and gradients are put together. What a loss is divided by is counted over all ranks, so a step is that of one process
but for the order of its sums. The first rank alone calls reward functions and writes files, but for shards.

Outside of `data_parallel` there is one rank, and none of these functions changes anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .errors import TrainError

T = TypeVar("T")
_active = False
ELSEWHERE = {  # what accelerate's config and this trainer's both have: by its variable, what to do here
    "MIXED_PRECISION": "set dtype",
    "USE_FSDP": "set fsdp = true",
    "USE_DEEPSPEED": "set fsdp = true",
    "USE_MEGATRON_LM": "set fsdp = true",
}


@contextlib.contextmanager
def data_parallel() -> Iterator[None]:
    """While open, recipes are shared among the processes that `torchrun` or `accelerate launch` has started, over NCCL
    where each has a GPU, else over gloo; without such a launcher nothing changes.

    A rank that raises ends, and the others with it: their next exchange fails at once, as TrainError."""
    global _active
    check_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if not 0 <= (rank := int(os.environ.get("RANK", "0"))) < int(os.environ["WORLD_SIZE"]):
        raise TrainError(f"RANK: expected 0 to {int(os.environ['WORLD_SIZE']) - 1} (WORLD_SIZE - 1), got {rank}")
    mine = not dist.is_initialized()
    if mine:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    _active = True
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "peer" in str(error):
            raise TrainError(
                f"rank {dist.get_rank()}: another process of this run has ended, its own message says why; the same "
                "command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        _active = False
    if mine:
        dist.destroy_process_group()


def check_launcher() -> None:
    """TrainError where `accelerate launch` was told what this trainer has settings of its own for, or where the
    processes it was asked for are not there."""
    told = {name: os.environ.get(f"ACCELERATE_{name}", "").lower() for name in ELSEWHERE}
    for name, setting in ELSEWHERE.items():
        if told[name] not in ("", "no", "false"):
            raise TrainError(
                f"ACCELERATE_{name}: got {told[name]!r} from accelerate, whose settings beyond processes are not read; "
                f"leave it out of accelerate's config and {setting}"
            )
    if told["MIXED_PRECISION"] and "WORLD_SIZE" not in os.environ and "MASTER_PORT" in os.environ:
        raise TrainError(
            "accelerate launch was asked for several processes, and on CPUs it starts one or leaves them to MPI: use "
            "torchrun, or accelerate launch --multi_gpu, which is torchrun on any machine"
        )


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _active else 0


def size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if _active else 1


@overload
def share(items: range) -> range: ...
@overload
def share(items: Sequence[T]) -> Sequence[T]: ...


def share(items: Sequence) -> Sequence:
    """This rank's part of what all have: each item is in the part of one rank, in the same order."""
    count, parts = len(items), size()
    return items[rank() * count // parts : (rank() + 1) * count // parts]


def gathered(value: T) -> list[T]:
    """What each rank has, in their order. Tensors must be on the CPU."""
    found: list[Any] = [value] * size()
    if _active:
        dist.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on all of them; the others do not call it. Its TrainError is raised on all: a caller
    may go on after one, and the others would wait for what it no longer sends."""
    if not _active:
        return make()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
        except TrainError as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1]:
        raise found[1]
    return found[0]


def from_each(make: Callable[[], T]) -> list[T]:
    """What each rank makes, in their order. The TrainError of one is raised on all, as by `from_first`. Tensors must be
    on the CPU."""
    if not _active:
        return [make()]
    made, failed = None, None
    try:
        made = make()
    except TrainError as error:
        failed = error
    found: list[Any] = gathered((made, failed))
    for _, error in found:
        if error:
            raise error
    return [made for made, _ in found]


def total(*numbers: T) -> list[T]:
    """The sum of each number over the ranks."""
    kinds: list[Any] = [type(own) for own in numbers]
    return [kind(sum(each)) for kind, each in zip(kinds, zip(*gathered(numbers), strict=True), strict=True)]


def totals(numbers: Mapping[str, float], largest: Sequence[str] = ()) -> dict[str, float]:
    """The sums of numbers by name over the ranks, or of those in `largest` the greatest; a rank may lack some."""
    found: dict[str, float] = {}
    for each in gathered(dict(numbers)):
        for name, value in each.items():
            found[name] = max(found.get(name, value), value) if name in largest else found.get(name, 0.0) + value
    return found


def sum_(*tensors: Tensor) -> None:
    """Sum each tensor over the ranks, in place."""
    if _active:
        for tensor in tensors:
            dist.all_reduce(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the ranks; a parameter that has one on some rank has it on all. Those of shards are sums
    already."""
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    if not _active or not parameters:
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(has, dist.ReduceOp.MAX)
    waiting = []
    for parameter in (p for p, some in zip(parameters, has.tolist(), strict=True) if some):
        if parameter.grad is None:
            kind = getattr(parameter, "grad_dtype", None) or parameter.dtype
            parameter.grad = torch.zeros_like(parameter, dtype=kind)
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()


def any_rank(flag: bool) -> bool:
    """Whether it is so on some rank."""
    return any(gathered(flag))


def reseed() -> None:
    """Torch's global generators alike on all ranks, by a number that the first one's gives: dropout has taken another
    count of numbers from each, and an optimizer that rounds at random must do it alike."""
    if _active:
        torch.manual_seed(from_first(lambda: int(torch.randint(2**31, ()))))


def check_alike(what: Mapping[str, Any]) -> None:
    """Raise TrainError, naming what differs, unless all ranks hold the same."""
    for number, each in enumerate(gathered(dict(what))):
        if differing := [name for name in what if each[name] != what[name]]:
            raise TrainError(
                f"ranks {rank()} and {number} differ in {', '.join(differing)}: give all processes the same model, "
                "data and settings"
            )


def wait() -> None:
    """Until all ranks are here."""
    if _active:
        dist.barrier()
