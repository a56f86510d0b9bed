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
    """What each token of some completions was drawn after, the N of them packed, one completion after the other."""

    def __init__(self, pairs: Sequence[TokenPair], device: torch.device):
        def padded(rows: list) -> Tensor:
            return pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=-1)

        self.prompts, self.completions = (padded([pair[part] for pair in pairs]) for part in (0, 1))
        self.row, self.place = (self.completions >= 0).nonzero().unbind(1)

    def masks(self, begin: int, end: int, vocab: int) -> tuple[Tensor, Tensor]:
        """(in_prompt, generated), both (end - begin, vocab) bool, before the tokens [begin, end)."""
        row, place = self.row[begin:end], self.place[begin:end]

        def marked(ids: Tensor) -> Tensor:
            spare = torch.zeros(len(row), vocab + 1, dtype=torch.bool, device=ids.device)
            return spare.scatter_(1, ids.masked_fill(ids < 0, vocab), True)[:, :vocab]

        later = torch.arange(self.completions.shape[1], device=row.device) >= place[:, None]
        return marked(self.prompts[row]), marked(self.completions[row].masked_fill(later, -1))
