"""One round of RLVR's sampling: completions, or episodes, of some prompts, with their scores and advantages."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from warpup import group_advantage
from warpup.advantage import ESTIMATORS, gdpo, reinforce_pp

from ..engines.protocol import Engine, SamplingParams
from ..model.tokens import TokenPair
from ..rewards.calls import completions_of
from ..rewards.reward_set import RewardSet, Scores
from ..run import StageRun
from .episodes import load_environment, play, turn_advantages
from .filters import DRAWN_BY
from .groups import Sampled
from .prompts import Prompts
from .roles import Roles
from .segments import credit_segments
from .trees import grow

if TYPE_CHECKING:
    from ..stages.rlvr_settings import RLVRSettings


def complete(
    settings: RLVRSettings, run: StageRun, prompts: Prompts, picked: Sequence[int], rewards: RewardSet, engine: Engine
) -> Sampled:
    """A group of completions for each of the prompts `picked`, sampled by `engine` and scored by `rewards`."""
    if settings.advantage == "tree":
        return grow(settings, run, prompts, picked, rewards)
    began = time.perf_counter()
    with run.computing():
        params = sampling_params(settings, prompts, run.tokenizer.pad_token_id, run.generator)
        rolls = engine.generate([prompts.ids[k] for k in picked], params).to(run.model.device)
    seconds = time.perf_counter() - began

    # A call that failed gives NaN, is counted, and takes part in nothing that follows; so does one that abstained.
    asked = [prompts.examples[k] for k in picked for _ in range(settings.samples)]
    completions = completions_of(run.tokenizer, rolls)
    scores = rewards.score(completions, asked, group=settings.samples)
    learned = rolls.learned().cpu()
    pairs: list[TokenPair] = [
        (prompts.ids[picked[n // settings.samples]], list(c.token_ids)) for n, c in enumerate(completions)
    ]
    if rolls.sampled is not None:  # a budget wrote some of the tokens
        pairs = [(*pair[:2], own[: len(pair[1])]) for pair, own in zip(pairs, learned.tolist(), strict=True)]
    shown = {"prompt": asked[0]["prompt"], "completion": completions[0].text, "reward": scores.rewards[0]}
    advantages = advantages_of(settings, scores, learned).to(rolls.logp)
    sampled = Sampled(pairs, rolls, scores, advantages, shown, seconds)
    return (
        credit_segments(settings, run, prompts, picked, rewards, sampled)
        if settings.advantage == "segment"
        else sampled
    )


def play_some(settings: RLVRSettings, run: StageRun, prompts: Prompts, picked: Sequence[int]) -> Sampled:
    """A group of episodes for each of the prompts `picked`; the environment gives their rewards."""
    began = time.perf_counter()
    with run.computing():
        played = play(
            run.model, run.tokenizer, load_environment(settings.environment), [prompts.examples[k] for k in picked],
            turns=settings.turns, ends=prompts.ends, copies=settings.samples, limit=prompts.limit,
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, rows=settings.rows,
            generator=run.generator, decoding=prompts.decoding, **how_to_draw(settings, prompts),
        )  # fmt: skip
    seconds, failed = time.perf_counter() - began, played.rewards.isnan().all(1)
    turns = played.rolls.turn
    assert turns is not None  # of episodes they are kept
    total = played.rewards.nansum(1).masked_fill(failed, math.nan)
    scores = Scores(rewards=total.tolist(), correct=played.correct, format_ok=[math.nan] * len(total))
    scores.errors += ["the environment could not tell a reward (NaN)"] * int(failed.sum())
    roles = None
    if settings.advantage in ("gae", "optimal_token_baseline"):
        drawn = turns.masked_fill(~played.rolls.learned(), -1)
        scores.token_rewards = at_turn_ends(played.rewards, drawn)
    if settings.credit == "turn":
        advantages = turn_advantages(
            played.rewards,
            turns.cpu(),
            lambda r: group_advantage(r, settings.samples, baseline=settings.baseline, scale=settings.scale),
        )
    elif settings.credit == "role":
        roles = Roles.of(played.speakers, played.shares, turns, settings.roles)
        scores.columns = {f"role {k}": column.tolist() for k, column in enumerate(roles.earned.T)}
        # Without an estimator they come of running means: `RoleBaselines.credit`.
        advantages = roles.against_group(settings.samples) if settings.advantage else torch.zeros(len(total))
    else:
        advantages = advantages_of(settings, scores, played.rolls.learned().cpu())
    example = prompts.examples[picked[0]]
    shown = {"prompt": example["prompt"], "completion": "\n...\n".join(played.texts[0]), "reward": scores.rewards[0]}
    return Sampled(played.pairs, played.rolls, scores, advantages.to(played.rolls.logp), shown, seconds, roles=roles)


# Advantages that come of more than the rewards: of values, of continuations, of what roles have earned.
BEHIND_SAMPLING = ("gae", "segment", "tree", "optimal_token_baseline", "hierarchical_grpo")


def sampling_params(settings: RLVRSettings, prompts: Prompts, pad: int, generator: torch.Generator) -> SamplingParams:
    """How completions of these prompts are drawn."""
    return SamplingParams(
        prompts.ends, pad, settings.max_new_tokens, generator, settings.samples, settings.temperature, prompts.stop,
        settings.rows, prompts.decoding, prompts.logit_bias, {name: getattr(settings, name) for name in DRAWN_BY},
    )  # fmt: skip


def how_to_draw(settings: RLVRSettings, prompts: Prompts) -> dict[str, Any]:
    """What `rollout` adds and cuts off before it draws, and records for the loss; the texts at which it stops."""
    filters = {name: getattr(settings, name) for name in DRAWN_BY}
    return {**filters, "logit_bias": prompts.logit_bias, "record": True, "stop": prompts.stop}


def advantages_of(settings: RLVRSettings, scores: Scores, learned: Tensor) -> Tensor:
    """Each reward against those of the same prompt: the group is its own baseline, so no value model is needed.

    (N,), or (N, L) of an estimator that gives each token its own. learned (N, L) bool: the tokens that the model has
    drawn."""
    rewards, groups = torch.tensor(scores.rewards), settings.samples
    if settings.advantage in BEHIND_SAMPLING:
        return torch.zeros_like(rewards)
    if settings.advantage is None:
        return group_advantage(rewards, groups, baseline=settings.baseline, scale=settings.scale)
    if settings.advantage == "gdpo":  # normalizes each reward apart, and weights them itself
        weights = None if settings.reward_weights is None else torch.tensor(settings.reward_weights)
        return gdpo(torch.tensor(scores.table()), groups, weights=weights)
    if settings.advantage == "reinforce_pp":  # the whole batch is the baseline; takes rewards of tokens
        if scores.token_rewards is not None:
            learned = learned & ~rewards.isnan()[:, None]  # one without a reward is not in the batch's mean
            rewards = torch.zeros(learned.shape)
            for row, given in zip(rewards, scores.token_rewards, strict=True):
                row[: len(given or ())] = torch.tensor(given or [])
        return reinforce_pp(rewards, mask=learned, gamma=settings.gamma)
    estimator = ESTIMATORS[settings.advantage]
    asks = inspect.signature(estimator).parameters
    given = {"lengths": learned.sum(1), "mask": learned}
    return estimator(rewards, groups, **{name: value for name, value in given.items() if name in asks})


def at_turn_ends(rewards: Tensor, turn: Tensor) -> list[list[float] | None]:
    """Rewards (N, turns), NaN where there was no turn, each at the last token of its turn; turn (N, L), -1 where no
    token was drawn."""
    found: list[list[float] | None] = []
    for given, where in zip(rewards.tolist(), turn.tolist(), strict=True):
        row = [0.0] * len(where)
        for number, reward in enumerate(given):
            if number in where:
                row[len(where) - 1 - where[::-1].index(number)] = reward
        found.append(row)
    return found
