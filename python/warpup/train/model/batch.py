"""Token pairs in padded batches, cut to what fits into memory; which of them are a step's."""

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .tokens import TokenPair

IGNORE = -100  # target of a position that carries no loss


@dataclass(frozen=True)
class SharedPrompts:
    """The W distinct prompts of a batch's B rows, each run through the model once: ids, attention (W, P) int64, padded
    on the right; lengths (W,); owner (B,) int64, the prompt of each row."""

    ids: torch.Tensor
    attention: torch.Tensor
    lengths: torch.Tensor
    owner: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, shifted by one: `inputs[i, t]` predicts `targets[i, t]`.

    inputs, attention (B, T) int64, attention 1 on tokens and 0 on padding; targets (B, T) int64, IGNORE outside the
    completion. rows: where the S sequences came from, in the caller's numbering. Without `positions` each row is one
    sequence; with them (B, T) int64 a row has several, one behind the other, and the positions begin at 0 in each (see
    packing.py). learned: (S,) int64, of packed sequences their numbers of tokens that carry loss.

    With `prompts` the rows are completions alone, (B, L - 1), and targets (B, L): the first one is predicted by the
    last token of the row's prompt. A batch of no sequence (`idle_batch`) is a row that carries no loss.

    What the loss reads has no padding: the N completion tokens of the batch, one sequence after the other. `mask` picks
    them out of (B, T), and sequence i has those from cu_seqlens[i] to cu_seqlens[i + 1].
    """

    inputs: torch.Tensor
    attention: torch.Tensor
    targets: torch.Tensor
    rows: list[int]
    positions: torch.Tensor | None = None
    learned: torch.Tensor | None = None
    prompts: SharedPrompts | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        if self.positions is None:
            return {"input_ids": self.inputs, "attention_mask": self.attention, "use_cache": False}
        # Without mask and cache, transformers keeps sequences apart where positions begin anew.
        return {"input_ids": self.inputs, "position_ids": self.positions, "use_cache": False}

    @property
    def attended(self) -> torch.Tensor:
        """`attention`, 0 in an idle batch: the tokens that count."""
        return self.attention if self.rows else torch.zeros_like(self.attention)

    @property
    def mask(self) -> torch.Tensor:
        """Of the targets' shape, bool: True on completion tokens."""
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


def idle_batch(pad: int, device: Any) -> Batch:
    """A batch of no sequence, as small as can be: what a rank sends through a sharded model where others have more."""
    inputs = torch.full((1, 2), pad, device=device)
    targets = torch.full_like(inputs, IGNORE)
    return Batch(inputs, torch.ones_like(inputs), targets, [], learned=inputs.new_zeros(0))


def collate(
    pairs: Sequence[TokenPair] | Mapping[int, TokenPair],
    rows: Sequence[int],
    pad: int,
    device: Any = "cpu",
    *,
    share: bool = False,
) -> Batch:
    """Batch of `pairs[row]` for each of `rows`. A pair may have a third part, which of the completion's tokens carry
    loss; without it all do. share: equal prompts stand in the batch once."""
    picked = [pairs[row] for row in rows]
    prompts = shared_prompts(picked, pad, device) if share else None
    starts = [0 if prompts else len(prompt) - 1 for prompt, *_ in picked]  # where the completions' targets begin
    ends = [start + len(pair[1]) for start, pair in zip(starts, picked, strict=True)]
    targets = torch.full((len(picked), max(ends)), IGNORE, dtype=torch.long)
    inputs = torch.full((len(picked), max(ends) - bool(prompts)), pad, dtype=torch.long)
    attention = torch.zeros_like(inputs)
    for i, (prompt, completion, *learned) in enumerate(picked):
        ids = torch.tensor(completion if prompts else prompt + completion)
        inputs[i, : len(ids) - 1], attention[i, : len(ids) - 1] = ids[:-1], 1
        targets[i, starts[i] : ends[i]] = torch.tensor(completion)
        if learned:
            targets[i, starts[i] : ends[i]].masked_fill_(~torch.tensor(learned[0]), IGNORE)
    return Batch(inputs.to(device), attention.to(device), targets.to(device), list(rows), prompts=prompts)


def shared_prompts(picked: Sequence[TokenPair], pad: int, device) -> SharedPrompts:
    """The distinct prompts of these pairs."""
    place: dict[tuple[int, ...], int] = {}
    owner = [place.setdefault(tuple(prompt), len(place)) for prompt, *_ in picked]
    lengths = torch.tensor([len(prompt) for prompt in place])
    ids = torch.full((len(place), int(lengths.max())), pad, dtype=torch.long)
    for row, prompt in zip(ids, place, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    attention = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return SharedPrompts(*(x.to(device) for x in (ids, attention, lengths, torch.tensor(owner))))


def micro_batches(
    pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, max_tokens: int, device: Any = "cpu", together: int = 1,
    share: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Cut `rows` into batches of similar length, each of at most `max_tokens` padded tokens (and at least one row).
    Each `together` rows in a row stay in one batch, in their order. share: a prompt of several rows of a batch runs
    through the model once, where that leaves fewer tokens in all."""
    taken = {row: pairs[row] for row in rows}  # read once: they may be on disk
    place: dict[tuple[int, ...], int] = {}
    prompt_of = {row: place.setdefault(tuple(taken[row][0]), len(place)) for row in rows}

    def plain(some: Sequence[int]) -> int:
        """Padded tokens of a batch of these rows."""
        return len(some) * max(len(taken[row][0]) + len(taken[row][1]) for row in some)

    def shared(some: Sequence[int]) -> int:
        """The same with each prompt once."""
        prompts = {prompt_of[row]: len(taken[row][0]) for row in some}
        return len(prompts) * max(prompts.values()) + len(some) * max(len(taken[row][1]) for row in some)

    def size(some: Sequence[int]) -> int:
        return min(plain(some), shared(some)) if share else plain(some)

    def cut(order: Iterable[Sequence[int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        for group in order:
            if batches and size([*batches[-1], *group]) <= max_tokens:
                batches[-1].extend(group)
            else:
                batches.append(list(group))
        return batches

    # Rows of one length side by side waste no padding; rows of one prompt side by side can share it.
    groups = [rows[i : i + together] for i in range(0, len(rows), together)]
    ways = [cut(sorted(groups, key=lambda group: -plain(group)))]
    if share:
        ways.append(cut(sorted(groups, key=lambda group: (prompt_of[group[0]], -plain(group)))))
    for some in min(ways, key=lambda way: sum(map(size, way))):
        yield collate(taken, some, pad, device, share=share and shared(some) < plain(some))


class LengthBuckets:
    """Batches of rows of similar length; `self[step]` depends on seed and step alone, so resuming needs no cursor.

    Rows of one length side by side waste no padding, but a batch sorted over all data would always hold the same
    rows. So each epoch shuffles the rows, sorts stretches of `window` batches by length, cuts them into batches and
    shuffles those; with a window of 1 batches are rows of any length. Rows that do not fill a batch wait for another
    epoch. Each `together` pairs in a row are one row, as long as the longest of them.
    """

    def __init__(self, pairs: Sequence[TokenPair], size: int, seed: int, window: int = 32, together: int = 1):
        lengths = array("l", (len(pair[0]) + len(pair[1]) for pair in pairs))
        self.lengths = array("l", (max(lengths[i : i + together]) for i in range(0, len(lengths), together)))
        self.size, self.seed, self.window = min(size, len(self.lengths)), seed, window
        self.per_epoch = len(self.lengths) // self.size
        self.epoch, self.batches = -1, list[list[int]]()

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
