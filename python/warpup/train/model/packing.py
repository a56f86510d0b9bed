"""Several sequences in one row, each by itself: no padding between them.

transformers keeps the sequences of a row apart where position_ids begin anew, but only without an attention mask and
without a cache (`Batch.arguments`), and only in attention: a recurrent layer reads on. So a model is tried first.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from warpup._evaluating import evaluating

from ..errors import TrainError
from .batch import IGNORE, Batch
from .tokens import TokenPair

PROBE = 24  # tokens of each sequence that a model is tried with
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}  # of logits, as a share of the largest; 16 bits: SIXTEEN
SIXTEEN = 0.06


def packed_batches(
    pairs: Sequence[TokenPair], rows: Sequence[int], pad: int, max_tokens: int, device: Any = "cpu"
) -> Iterator[Batch]:
    """`rows` packed into rows as long as the longest of them, in batches of at most `max_tokens` tokens (and at least
    one row). Which sequences share a row does not depend on `max_tokens`."""
    if not rows:
        return
    lengths = {row: len(pairs[row][0]) + len(pairs[row][1]) - 1 for row in rows}
    width, packs, free = max(lengths.values()), [], []
    for row in sorted(rows, key=lambda row: -lengths[row]):  # first fit, the longest first
        place = next((i for i, left in enumerate(free) if left >= lengths[row]), len(packs))
        if place == len(packs):
            packs.append([])
            free.append(width)
        packs[place].append(row)
        free[place] -= lengths[row]
    together = max(1, max_tokens // width)
    for begin in range(0, len(packs), together):
        yield collate_packed(pairs, packs[begin : begin + together], pad, device)


def collate_packed(pairs: Sequence[TokenPair], packs: Sequence[Sequence[int]], pad: int, device: Any = "cpu") -> Batch:
    """Batch whose row i is the sequences `packs[i]`, one behind the other; what is left of a row is a sequence of
    padding that carries no loss."""
    picked = [[pairs[row] for row in pack] for pack in packs]
    width = max(sum(len(p[0]) + len(p[1]) - 1 for p in pack) for pack in picked)
    inputs = torch.full((len(packs), width), pad, dtype=torch.long)
    targets, attention, positions = torch.full_like(inputs, IGNORE), torch.zeros_like(inputs), torch.zeros_like(inputs)
    counts = []
    for i, pack in enumerate(picked):
        begin = 0
        for prompt, completion, *learned in pack:
            ids = torch.tensor(prompt + completion)
            end = begin + len(ids) - 1
            inputs[i, begin:end], attention[i, begin:end] = ids[:-1], 1
            positions[i, begin:end] = torch.arange(end - begin)
            target = targets[i, begin + len(prompt) - 1 : end]
            target.copy_(ids[len(prompt) :])
            if learned:
                target.masked_fill_(~torch.tensor(learned[0]), IGNORE)
            counts.append(int((target != IGNORE).sum()))
            begin = end
        positions[i, begin:] = torch.arange(width - begin)
    rows = [row for pack in packs for row in pack]
    inputs, attention, targets, positions = (t.to(device) for t in (inputs, attention, targets, positions))
    return Batch(inputs, attention, targets, rows, positions, torch.tensor(counts, device=device))


@torch.no_grad()
def check_packing(model, place: str) -> None:
    """Raise TrainError unless a packed sequence gets the logits that it gets alone."""
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    name = kind.__name__
    if "position_ids" not in inspect.signature(kind.forward).parameters:
        raise TrainError(
            f"{place}.packing: {name} takes no position_ids, so nothing keeps sequences apart; leave it out"
        )
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocab, (4, PROBE + 1), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [(row[:1], row[1:]) for row in ids]
    with evaluating(model):
        # Two rows of two: some attention kernels tell sequences apart in batches of one row alone.
        packed = model(**collate_packed(pairs, [[0, 1], [2, 3]], 0, model.device).arguments).logits[:, PROBE:]
        alone = model(**collate_packed(pairs, [[1], [3]], 0, model.device).arguments).logits
    off = float((packed - alone).abs().max() / alone.abs().max())
    if not off <= ROUNDING.get(packed.dtype, SIXTEEN):
        raise TrainError(
            f"{place}.packing: {name} does not keep the sequences of a row apart: the logits of the second are off by "
            f"{off:.1%} of the largest from what they are alone; leave it out"
        )
