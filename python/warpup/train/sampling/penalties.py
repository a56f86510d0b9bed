"""Penalties on tokens that a row has seen, in the sampler and, the same, in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.tokens import TokenPair


@dataclass(frozen=True)
class Penalties:
    """As `sample_step` has them, after a schedule and before the temperature. repetition: of tokens in the prompt or
    the completion a logit above 0 is divided by it, another multiplied. presence: is taken from the logits of tokens
    in the completion. Both count a token once, however often it was there."""

    repetition: float = 1.0
    presence: float = 0.0

    def apply(self, logits: Tensor, in_prompt: Tensor, generated: Tensor) -> Tensor:
        """The penalized logits (R, V), float32; in_prompt, generated (R, V) bool: what each row has seen."""
        by = logits.new_tensor(self.repetition)
        scaled = torch.where(logits > 0, logits / by, logits * by)
        return torch.where(in_prompt | generated, scaled, logits) - self.presence * generated


class SeenTokens:
    """What each of the N tokens that carry loss in B completions was drawn after, one completion after the other.

    learned (B, L) bool: which tokens these are. turn (B, L): of episodes the turns of tokens, -1 where the environment
    spoke; a turn is a completion, and all before it its prompt, as where each turn is a request to a server.
    """

    def __init__(self, pairs: Sequence[TokenPair], learned: Tensor, turn: Tensor | None = None):
        def padded(rows: list) -> Tensor:
            return pad_sequence(
                [torch.tensor(row, device=learned.device) for row in rows], batch_first=True, padding_value=-1
            )

        self.prompts, self.completions = (padded([pair[part] for pair in pairs]) for part in (0, 1))
        self.row, self.place = learned[:, : self.completions.shape[1]].nonzero().unbind(1)
        self.begin = torch.zeros_like(self.place)  # where the token's turn begins
        if turn is not None:
            places = torch.arange(turn.shape[1], device=turn.device)
            fresh = turn != torch.nn.functional.pad(turn[:, :-1], (1, 0), value=-2)
            self.begin = (places * fresh).cummax(1).values[self.row, self.place]

    def masks(self, begin: int, end: int, vocab: int) -> tuple[Tensor, Tensor]:
        """(in_prompt, generated), both (end - begin, vocab) bool, before the tokens [begin, end)."""
        row, place, first = (x[begin:end] for x in (self.row, self.place, self.begin))
        at = torch.arange(self.completions.shape[1], device=row.device)
        early, late = at < first[:, None], at >= place[:, None]

        def marked(*ids: Tensor) -> Tensor:
            spare = torch.zeros(len(row), vocab + 1, dtype=torch.bool, device=row.device)
            for some in ids:
                spare.scatter_(1, some.masked_fill(some < 0, vocab), True)
            return spare[:, :vocab]

        said = self.completions[row]
        return marked(self.prompts[row], said.masked_fill(~early, -1)), marked(said.masked_fill(early | late, -1))
