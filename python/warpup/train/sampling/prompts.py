"""What RLVR draws from: prompts as tokens, and in which order they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from warpup.data import DUMPSampler, Sampler, SECSampler, UniformSampler

from ..errors import TrainError
from ..model.tokens import Tokens
from .decoding import DecodingStrategy
from .stopping import StopStrings


@dataclass(frozen=True)
class Prompts:
    """A stage's examples, their prompts' token ids, the ids and the texts that end a completion, what stands between
    logits and tokens, how many tokens the model takes."""

    examples: Sequence[dict[str, Any]]
    ids: Sequence[Tokens]
    ends: Sequence[int]
    decoding: DecodingStrategy | None
    limit: int
    stop: StopStrings | None = None


SAMPLERS = {"uniform": UniformSampler, "sec": SECSampler, "dump": DUMPSampler}


def make_sampler(kind: str, examples: Sequence[dict], category: str, seed: int) -> Sampler:
    """The prompt sampler of a name; the curricula need `category` in every example."""
    if kind == "uniform":
        return UniformSampler(len(examples), seed=seed)
    missing = sum(category not in example for example in examples)
    if missing:
        raise TrainError(f"sampler {kind}: {missing} of {len(examples)} examples have no {category!r} column")
    return SAMPLERS[kind]([example[category] for example in examples], seed=seed)
