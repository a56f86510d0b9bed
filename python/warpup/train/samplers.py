"""The sampler of a stage: by name with options, or an object from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from warpup.data.samplers import ARMS, Sampler, make_sampler, parse_sampler

from .checks import check_unused
from .errors import TrainError


def check_sampler(settings, *, place: str, gives: Sequence[str]) -> None:
    """Raise TrainError on a sampler that cannot be, and on a category that it does not read. gives: the signals that
    the stage has for it."""
    sampler = settings.sampler
    if isinstance(sampler, str):
        try:
            kind, options = parse_sampler(sampler)
        except ValueError as error:
            raise TrainError(f"{place}.sampler: {error}") from error
        name = sampler.partition(":")[0]
        reads = () if "score" in options and name == "pass_rate" else kind.reads
    elif isinstance(sampler, Sampler) and not isinstance(sampler, type):
        name, reads = type(sampler).__name__, getattr(sampler, "reads", ())
    else:
        raise TrainError(
            f"{place}.sampler: expected a name, or an object with next, observe, state_dict and load_state_dict (see "
            f"warpup.data.Sampler), got {sampler!r}"
        )
    if missing := [signal for signal in reads if signal not in gives]:
        raise TrainError(f"{place}.sampler: {name} learns from {' and '.join(missing)}, which {place} does not give")
    if name not in ARMS:
        why = f"the {name} sampler reads no category; leave it out or choose one that does: {', '.join(ARMS)}"
        check_unused(settings, "category", place=place, why=why)


def sampler_of(settings, examples: Sequence[Mapping[str, Any]], *, place: str, seed: int = 0) -> Sampler:
    """The stage's sampler over its examples; TrainError on what their columns do not allow."""
    try:
        return make_sampler(settings.sampler, examples, category=settings.category, seed=seed)
    except (TypeError, ValueError) as error:
        raise TrainError(f"{place}.sampler: {error}") from error


def draw(sampler: Sampler, k: int, size: int, *, place: str) -> list[int]:
    """The next k of `size` examples; TrainError where a sampler has none left, or gives what is no example."""
    try:
        picked = list(sampler.next(k))
    except ValueError as error:
        raise TrainError(f"{place}.sampler: {error}") from error
    if len(picked) != k or not all(0 <= index < size for index in picked):
        raise TrainError(f"{place}.sampler: expected {k} indices from 0 to {size - 1}, got {picked}")
    return picked
