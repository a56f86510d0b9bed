"""What RLVR draws from: prompts as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..model.tokens import Tokens
from .decoding import DecodingStrategy
from .stopping import StopStrings


@dataclass(frozen=True)
class Prompts:
    """A stage's examples, their prompts' token ids, the ids and the texts that end a completion, what stands between
    logits and tokens, how many tokens the model takes, what is added to the logits of some tokens."""

    examples: Sequence[dict[str, Any]]
    ids: Sequence[Tokens]
    ends: Sequence[int]
    decoding: DecodingStrategy | None
    limit: int
    stop: StopStrings | None = None
    logit_bias: Mapping[int, float] | None = None
