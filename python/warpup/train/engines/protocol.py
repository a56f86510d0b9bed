"""What RLVR asks of whoever samples: completions of prompts with the log-probs that they were drawn at, and to take the
weights of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from warpup import KeptTokens

from ..errors import TrainError
from ..model.tokens import Tokens
from ..sampling.decoding import DecodingStrategy
from ..sampling.rollouts import Rollouts
from ..sampling.stopping import StopStrings


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    eos: ids that end one; pad: the id that rows are padded with; copies: completions of each prompt. generator: where
    random numbers come from, and seeds. stop: texts that end one as well. rows: completions at once. What an engine
    does not follow of these, as decoding, logit_bias and the penalties among `filters` (by the names of `Filters`) are
    the own sampler's alone, is refused by `check_engine`.
    """

    eos: Sequence[int]
    pad: int
    max_new_tokens: int
    generator: torch.Generator
    copies: int = 1
    temperature: float = 1.0
    stop: StopStrings | None = None
    rows: int | None = None
    decoding: DecodingStrategy | None = None
    logit_bias: Mapping[int, float] | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)

    def seeds(self, count: int) -> list[int]:
        """A seed of 31 bits for each of `count` requests; so are those that follow it, one for each copy."""
        drawn = torch.randint(2**31 - self.copies, (count,), generator=self.generator, device=self.generator.device)
        return drawn.tolist()

    @property
    def filtered(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary, which the loss has to be told."""
        off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        return any(self.filters.get(name, value) != value for name, value in off.items())


class Engine(Protocol):
    """Who samples for RLVR."""

    def generate(self, prompts: Sequence[Tokens], params: SamplingParams) -> Rollouts:
        """`params.copies` completions of each prompt, one prompt after the other: tokens, the log-probs that they were
        drawn at, whether each came to an end; under a filter which tokens it left. TrainError where that fails."""
        ...

    def update_weights(self, model) -> None:
        """From now on sample with this model's weights."""
        ...


class Completion(NamedTuple):
    """What an engine tells of one: token ids with the end token; a log-prob for each, at the temperature and over what
    the filters left; whether it came to an end; which token ids they left for each token, in any order, or None; the
    experts (T, L, k) that all tokens but the last went through, prompt included, or None."""

    tokens: list[int]
    logp: list[float]
    finished: bool
    kept: list[list[int]] | None = None
    experts: Tensor | None = None


def rollouts_of(found: Sequence[Completion], params: SamplingParams, engine: str) -> Rollouts:
    """The completions as `Rollouts`, on the CPU. TrainError on what an engine has not told, or cannot be."""
    for one in found:
        lengths = {len(one.tokens), len(one.logp), *([] if one.kept is None else [len(one.kept)])}
        if lengths == {0} or len(lengths) > 1:
            raise TrainError(
                f"{engine}: expected tokens with a log-prob, and under a filter a sampling mask, for each; got "
                f"{len(one.tokens)} tokens, {len(one.logp)} log-probs and {len(one.kept or ())} masks"
            )
        # -9999 and NaN stand for what the engine could not tell.
        if wrong := [p for p in one.logp if not -1e3 < p <= 1e-3]:
            raise TrainError(f"{engine}: expected the log-prob of a token that it has sampled, got {wrong[0]}")
    if params.filtered and any(one.kept is None for one in found):
        raise TrainError(f"{engine}: it does not tell which tokens the filters have left, which the loss needs")
    lengths = torch.tensor([len(one.tokens) for one in found])
    kept = None
    if params.filtered:
        # A set for each place of the padded rows, empty in the padding.
        counts = pad_sequence([torch.tensor([len(ids) for ids in one.kept or ()]) for one in found], batch_first=True)
        ids = [torch.tensor(ids).sort().values for one in found for ids in one.kept or ()]
        kept = KeptTokens.from_counts(torch.cat(ids).int(), counts)
    experts = [one.experts for one in found if one.experts is not None]
    return Rollouts(
        pad_sequence([torch.tensor(one.tokens) for one in found], batch_first=True, padding_value=params.pad),
        lengths,
        pad_sequence([torch.tensor(one.logp, dtype=torch.float32) for one in found], batch_first=True),
        torch.tensor([one.finished for one in found]),
        kept=kept,
        experts=experts if len(experts) == len(found) else None,
    )
