"""Credit by segment (SPO-chain, arXiv 2505.23564): what a stretch of a completion has changed in what can be expected.

A completion is cut where the policy was unsure. What stands before a cut is worth the mean reward of continuations that
are sampled from there; a segment is credited with the difference between its two ends. No value model is needed, and
tokens that were nearly certain carry no loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from warpup.advantage.segment_advantage import segment_advantage, segment_ids
from warpup.reflection.sampling import FILTERS

from ..model.tokens import Tokens
from ..rewards.calls import Completion
from ..rewards.reward_set import RewardSet
from ..run import StageRun
from .groups import Sampled
from .prompts import Prompts
from .rollouts import rollout

if TYPE_CHECKING:
    from ..stages.rlvr_settings import RLVRSettings

PARTS = 4  # of the cuts by their place: continuations of one part are sampled to one length


class Cut(NamedTuple):
    """The beginning of a segment: of completion `row`, at its token `at`."""

    row: int
    segment: int
    at: int


def cuts_of(segments: Tensor) -> list[Cut]:
    """The first token of each segment; segments (N, L), -1 where there is none."""
    found = []
    for row, numbers in enumerate(segments.tolist()):
        first: dict[int, int] = {}
        for at, segment in enumerate(numbers):
            if segment >= 0:
                first.setdefault(segment, at)
        found += [Cut(row, segment, at) for segment, at in first.items()]
    return found


def credit_segments(
    settings: RLVRSettings, run: StageRun, prompts: Prompts, picked: Sequence[int], rewards: RewardSet, sampled: Sampled
) -> Sampled:
    """The same completions with advantages (N, L) by segment; tokens that were nearly certain are not learned."""
    began, rolls = time.perf_counter(), sampled.rolls
    learned, chances = rolls.learned(), rolls.logp.exp()
    how = {"threshold": settings.segment_threshold, "every": settings.segment_every}
    cuts = cuts_of(segment_ids(chances, learned, **how))
    values = torch.full((len(sampled.pairs), 1 + max((cut.segment for cut in cuts), default=0)), torch.nan)
    for part in range(PARTS):
        some = [cut for cut in cuts if cut.at * PARTS // settings.max_new_tokens == part]
        if some:
            worth = worth_of(settings, run, prompts, picked, rewards, sampled, some)
            for cut, value in zip(some, worth, strict=True):
                values[cut.row, cut.segment] = value
    outcome = torch.tensor(sampled.scores.rewards)
    found = segment_advantage(outcome.to(chances), values.to(chances), chances, learned, **how)
    known = ~outcome.isnan().to(learned.device)
    mask = found.loss_mask & known[:, None]
    pairs = [(prompt, ids, mask[n, : len(ids)].tolist()) for n, (prompt, ids, *_) in enumerate(sampled.pairs)]
    seconds = sampled.seconds + time.perf_counter() - began
    # A value that nothing is known of (every reward of its continuations failed) gives no advantage.
    advantages = found.advantages.nan_to_num(0.0) * mask
    return replace(
        sampled, pairs=pairs, rolls=replace(rolls, sampled=mask), advantages=advantages, seconds=seconds,
        drawn=int(learned.sum()),
    )  # fmt: skip


def worth_of(
    settings: RLVRSettings, run: StageRun, prompts: Prompts, picked: Sequence[int], rewards: RewardSet,
    sampled: Sampled, cuts: Sequence[Cut],
) -> list[float]:  # fmt: skip
    """The mean reward of `branches` continuations of what stands before each cut; NaN where none has one."""
    prefixes: list[Tokens] = [sampled.pairs[cut.row][1][: cut.at] for cut in cuts]
    contexts = [[*sampled.pairs[cut.row][0], *prefix] for cut, prefix in zip(cuts, prefixes, strict=True)]
    with run.computing():
        rolls = rollout(
            run.model, contexts, eos=prompts.ends, pad=run.tokenizer.pad_token_id, copies=settings.branches,
            max_new_tokens=settings.max_new_tokens - min(cut.at for cut in cuts), temperature=settings.temperature,
            rows=settings.rows, generator=run.generator, **{name: getattr(settings, name) for name in FILTERS},
        )  # fmt: skip
    completions, finished = [], rolls.finished.tolist()
    for n, ended in enumerate(finished):
        prefix = prefixes[n // settings.branches]
        ids = prefix + rolls.completion(n)
        whole = ended and len(ids) <= settings.max_new_tokens
        ids = ids[: settings.max_new_tokens]
        text, raw_text = (run.tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
        completions.append(Completion(text, raw_text, ids, whole))
    asked = [prompts.examples[picked[cut.row // settings.samples]] for cut in cuts for _ in range(settings.branches)]
    scores = rewards.score(completions, asked, group=settings.branches)
    sampled.scores.errors += scores.errors
    sampled.scores.abstained += scores.abstained
    return torch.tensor(scores.rewards).view(len(cuts), settings.branches).nanmean(1).tolist()
