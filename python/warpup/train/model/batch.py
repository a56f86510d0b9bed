"""Token pairs in padded batches, cut to what fits into memory; which of them are a step's."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .tokens import TokenPair

IGNORE = -100  # target of a position that carries no loss


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, shifted by one: `inputs[i, t]` predicts `targets[i, t]`.

    inputs, attention (B, T) int64, attention 1 on tokens and 0 on padding; targets (B, T) int64, IGNORE outside the
    completion. rows: where the S sequences came from, in the caller's numbering. Without `positions` each row is one
    sequence; with them (B, T) int64 a row has several, one behind the other, and the positions begin at 0 in each (see
    packing.py). learned: (S,) int64, of packed sequences their numbers of tokens that carry loss.

    What the loss reads has no padding: the N completion tokens of the batch, one sequence after the other. `mask` picks
    them out of (B, T), and sequence i has those from cu_seqlens[i] to cu_seqlens[i + 1].
    """

    inputs: torch.Tensor
    attention: torch.Tensor
    targets: torch.Tensor
    rows: list[int]
    positions: torch.Tensor | None = None
    learned: torch.Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        if self.positions is None:
            return {"input_ids": self.inputs, "attention_mask": self.attention, "use_cache": False}
        # Without mask and cache, transformers keeps sequences apart where positions begin anew.
        return {"input_ids": self.inputs, "position_ids": self.positions, "use_cache": False}

    @property
    def mask(self) -> torch.Tensor:
        """(B, T) bool, True on completion tokens."""
        return self.targets != IGNORE

    @property
    def completion(self) -> torch.Tensor:
        """(N,) int64, the completion tokens."""
        return self.targets[self.mask]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """(S + 1,) int64, from 0 to N."""
        learned = self.mask.sum(1) if self.learned is None else self.learned
        return torch.nn.functional.pad(learned.cumsum(0), (1, 0))


def collate(pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, device: Any = "cpu") -> Batch:
    """Batch of `pairs[row]` for each of `rows`. A pair may have a third part, which of the completion's tokens carry
    loss; without it all do."""
    picked = [pairs[row] for row in rows]
    width = max(len(pair[0]) + len(pair[1]) for pair in picked) - 1
    inputs = torch.full((len(picked), width), pad, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORE)
    attention = torch.zeros_like(inputs)
    for i, (prompt, completion, *learned) in enumerate(picked):
        ids, start = torch.tensor(prompt + completion), len(prompt) - 1
        length = len(ids) - 1
        inputs[i, :length], attention[i, :length] = ids[:-1], 1
        targets[i, start:length] = ids[start + 1 :]
        if learned:
            targets[i, start:length].masked_fill_(~torch.tensor(learned[0]), IGNORE)
    return Batch(inputs.to(device), attention.to(device), targets.to(device), list(rows))


def micro_batches(
    pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, max_tokens: int, device: Any = "cpu", together: int = 1
) -> Iterator[Batch]:
    """Cut `rows` into batches of similar length, each of at most `max_tokens` padded tokens (and at least one row).
    Each `together` rows in a row stay in one batch, in their order."""

    def length(group: Sequence[int]) -> int:
        return max(len(pairs[row][0]) + len(pairs[row][1]) for row in group)

    groups = [rows[i : i + together] for i in range(0, len(rows), together)]
    longest = sorted(groups, key=lambda group: -length(group))
    begin = 0
    while begin < len(longest):
        end = begin + max(1, max_tokens // (length(longest[begin]) * together))
        yield collate(pairs, [row for group in longest[begin:end] for row in group], pad, device)
        begin = end


class LengthBuckets:
    """Batches of rows of similar length; `self[step]` depends on seed and step alone, so resuming needs no cursor.

    Rows of one length side by side waste no padding, but a batch sorted over all data would always hold the same
    rows. So each epoch shuffles the rows, sorts stretches of `window` batches by length, cuts them into batches and
    shuffles those; with a window of 1 batches are rows of any length. Rows that do not fill a batch wait for another
    epoch.
    """

    def __init__(self, pairs: Sequence[TokenPair], size: int, seed: int, window: int = 32):
        self.lengths = [len(pair[0]) + len(pair[1]) for pair in pairs]
        self.size, self.seed, self.window = min(size, len(pairs)), seed, window
        self.per_epoch = len(pairs) // self.size
        self.epoch = self.batches = None

    def __getitem__(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self._shuffled(random.Random(f"{self.seed} {epoch}"))
        return self.batches[place]

    def _shuffled(self, rng: random.Random) -> list[list[int]]:
        rows = list(range(len(self.lengths)))
        rng.shuffle(rows)
        rows, stretch, batches = rows[: self.per_epoch * self.size], self.window * self.size, []
        for start in range(0, len(rows), stretch):
            part = sorted(rows[start : start + stretch], key=self.lengths.__getitem__)
            batches += [part[i : i + self.size] for i in range(0, len(part), self.size)]
        rng.shuffle(batches)
        return batches
