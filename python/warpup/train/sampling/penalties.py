"""A bias on logits, and penalties on tokens that a row has seen, in the sampler and, the same, in the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.tokens import TokenPair


@dataclass(frozen=True)
class Penalties:
    """As `sample_step` has them, after a schedule and before the temperature. logit_bias: pairs of a token and what is
    added to its logits. repetition: of tokens in the prompt or the completion a logit above 0 is divided by it, another
    multiplied. presence: is taken from the logits of tokens in the completion. Both count a token once, however often
    it was there; frequency is taken as often as it was."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def apply(self, logits: Tensor, in_prompt: Tensor, generated: Tensor) -> Tensor:
        """The penalized logits (R, V), float32. in_prompt (R, V) bool: what each row has seen; generated (R, V): how
        often it was generated, without a frequency penalty also as bool: whether."""
        if self.logit_bias:
            logits = logits + self.bias(logits.shape[1], logits.device)
        by, said = logits.new_tensor(self.repetition), generated > 0
        scaled = torch.where(logits > 0, logits / by, logits * by)
        penalized = torch.where(in_prompt | said, scaled, logits) - self.presence * said
        return penalized - self.frequency * generated if self.frequency else penalized

    def bias(self, vocab: int, device: torch.device) -> Tensor:
        """(vocab,) float32, the logit bias of each token."""
        ids, values = (torch.tensor(column, device=device) for column in zip(*self.logit_bias, strict=True))
        return torch.zeros(vocab, device=device).index_put_((ids,), values.float())

    def most_added(self, generated: Tensor) -> Tensor | float:
        """How much these add to each logit (R, V) at most, which is the size of what is rounded there."""
        added = abs(self.presence) + abs(self.frequency) * generated if self.frequency else abs(self.presence)
        if self.logit_bias:
            bias = self.bias(generated.shape[1], generated.device).abs()
            added = added + bias.masked_fill(bias == math.inf, 0.0)
        return added


class SeenTokens:
    """What each of the N tokens that carry loss in B completions was drawn after, one completion after the other.

    learned (B, L) bool: which tokens these are. turn (B, L): of episodes the turns of tokens, -1 where the environment
    spoke; a turn is a completion, and all before it its prompt, as where each turn is a request to a server.
    """

    def __init__(self, pairs: Sequence[TokenPair], learned: Tensor, turn: Tensor | None = None):
        def padded(rows: list) -> Tensor:
            if not rows:  # of an idle batch
                return torch.zeros(0, 0, dtype=torch.int64, device=learned.device)
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
        """Before the tokens [begin, end), both (end - begin, vocab): bool, what is in the prompt, and int32, how often
        each token was generated."""
        row, place, first = (x[begin:end] for x in (self.row, self.place, self.begin))
        at = torch.arange(self.completions.shape[1], device=row.device)
        early, late = at < first[:, None], at >= place[:, None]

        def counted(*ids: Tensor) -> Tensor:
            spare = torch.zeros(len(row), vocab + 1, dtype=torch.int32, device=row.device)
            for some in ids:
                spare.scatter_add_(1, some.masked_fill(some < 0, vocab), torch.ones_like(some, dtype=torch.int32))
            return spare[:, :vocab]

        said = self.completions[row]
        in_prompt = counted(self.prompts[row], said.masked_fill(~early, -1)) > 0
        return in_prompt, counted(said.masked_fill(early | late, -1))
