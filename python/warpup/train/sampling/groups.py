"""The groups of one step of RLVR: prompts, their completions, scores and advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..model.tokens import TokenPair
from ..rewards.reward_set import Scores
from .rollouts import Rollouts, joined

if TYPE_CHECKING:
    from .roles import Roles


@dataclass(frozen=True)
class Sampled:
    """Groups of completions, or of episodes, of some prompts: tokens, scores, advantages (N,) or (N, L), one of them to
    be shown, seconds of sampling. tensors: what else a loss needs of them, (N, L) by the names of `Experience`.
    roles: of episodes whose credit goes by role. drawn: tokens that were sampled; None: those that carry loss."""

    pairs: Sequence[TokenPair]
    rolls: Rollouts
    scores: Scores
    advantages: Tensor
    shown: dict[str, Any]
    seconds: float
    tensors: dict[str, Tensor] = field(default_factory=dict)
    roles: Roles | None = None
    drawn: int | None = None


class Groups:
    """Groups of `samples` completions each, that grow as more are sampled for the step.

    pairs: prompt and completion tokens of each of the N completions; rolls: the same with their log-probs; scores;
    advantages (N,), or (N, L); tensors, as those of `Sampled`; used (N / samples,) bool, the groups in which some
    advantage is not 0.
    """

    rolls: Rollouts
    advantages: Tensor
    tensors: dict[str, Tensor]

    def __init__(self, samples: int):
        self.samples, self.scores, self.seconds, self.drawn = samples, Scores(), 0.0, 0
        self.pairs: list[TokenPair] = []
        self.used = torch.zeros(0, dtype=torch.bool)
        self.shown: dict[str, Any] = {}

    def add(self, more: Sampled, pad: int) -> None:
        """More groups, behind those that are there."""
        if not self.pairs:
            self.rolls, self.shown = more.rolls, more.shown
            self.advantages, self.tensors = more.advantages, more.tensors
        else:
            self.rolls = joined([self.rolls, more.rolls], pad)
            self.advantages = self._together(self.advantages, more.advantages)
            self.tensors = {name: self._together(t, more.tensors[name]) for name, t in self.tensors.items()}
        self.pairs += more.pairs
        self.scores.extend(more.scores)
        self.seconds += more.seconds
        self.drawn += int(more.rolls.learned().sum()) if more.drawn is None else more.drawn
        self.used = (self.advantages.reshape(len(self.pairs) // self.samples, -1) != 0).any(1)

    def _together(self, values: Tensor, more: Tensor) -> Tensor:
        """(N,) or (N, L) of all rows, as wide as their tokens."""
        if values.dim() == 1:
            return torch.cat([values, more])
        width = self.rolls.tokens.shape[1]
        return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in (values, more)])

    def rows(self, *, finished: bool, rewarded: bool) -> list[int]:
        """The completions that are learned from: of groups that teach something, with a token that carries loss; if
        asked for those alone that came to an end, or have a reward."""
        rolls = self.rolls
        rows = self.used.repeat_interleave(self.samples).to(rolls.finished.device) & rolls.learned().any(1)
        if finished:
            rows &= rolls.finished
        if rewarded:
            rows &= ~torch.tensor(self.scores.rewards, device=rows.device).isnan()
        return rows.nonzero().squeeze(1).tolist()

    def numbers(self) -> dict[str, Any]:
        """What the log has of a step's sampling."""
        learned, columns = self.rolls.learned(), self.scores.columns
        mass = self.rolls.kept_mass
        said = self.drawn if self.rolls.turn is not None else int(self.rolls.lengths.sum())
        return {
            "reward": mean(self.scores.rewards),
            **({f"reward/{name}": mean(column) for name, column in columns.items()} if len(columns) > 1 else {}),
            "accuracy": mean(self.scores.correct),
            "format_ok": mean(self.scores.format_ok),
            "length": said / len(self.pairs),
            "unfinished": 1 - mean(self.rolls.finished.tolist()),
            "groups": int(self.used.sum()),
            **({} if mass is None else {"kept": float(mass[learned].mean())}),
            "advantage": float(self.advantages.abs().mean()),
            "tokens_per_s": self.drawn / self.seconds,
            "sampling_seconds": self.seconds,
            "sample": self.shown,
        }


def parts(rows: Sequence[int], count: int, group: int) -> list[list[int]]:
    """The rows in at most `count` parts of whole groups, none empty."""
    by_group: dict[int, list[int]] = {}
    for row in rows:
        by_group.setdefault(row // group, []).append(row)
    groups = list(by_group.values())
    cut = [groups[k * len(groups) // count : (k + 1) * len(groups) // count] for k in range(count)]
    return [[row for g in part for row in g] for part in cut if part]


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [float(v) for v in values if not math.isnan(v)]
    return fmean(known) if known else math.nan
