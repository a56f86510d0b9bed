"""Divergences between the distributions of two output layers, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from warpup import divergence, linear_divergence

from .heads import ROWS, Head


def divergence_between(
    student: Head, ours: Tensor, teacher: Head, theirs: Tensor, replay: dict[str, Any] | None = None,
    targets: Tensor | None = None, **options: Any,
) -> Tensor:  # fmt: skip
    """(N,): `warpup.divergence` of the student from the teacher, from their hidden states (N, H), of which those of the
    teacher have no gradient. replay, as in `Head.logprob`: both distributions are those that a schedule, penalties and
    filters make of the logits. targets (N,): the tokens themselves, of kind logit_swap.

    Where both heads are linear and there is nothing to replay, a slice of the vocabulary is made at a time; else ROWS
    rows of logits, and again backward."""
    if student.form == teacher.form == "linear" and not replay:
        finish = {f"teacher_{name}": value for name, value in teacher.finish.items()}
        return linear_divergence(
            ours, student.layer.weight, theirs, teacher.layer.weight, targets=targets, **student.finish, **finish,
            **options,
        )  # fmt: skip

    def of_rows(h: Tensor, t: Tensor, begin: int) -> Tensor:
        logits, kept = student.drawn(h, begin, **replay or {})
        constant, _ = teacher.drawn(t, begin, **replay or {})
        if kept is not None:
            out = ~kept.to_mask(logits.shape[1])
            logits, constant = logits.masked_fill(out, -torch.inf), constant.masked_fill(out, -torch.inf)
        swapped = None if targets is None else targets[begin : begin + len(h)]
        return divergence(logits, constant, targets=swapped, **options)

    parts = enumerate(zip(ours.split(ROWS), theirs.split(ROWS), strict=True))
    return torch.cat([checkpoint(of_rows, h, t, n * ROWS, use_reentrant=False) for n, (h, t) in parts])
