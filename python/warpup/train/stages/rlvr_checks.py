"""What no RLVR run can have, and settings that nothing would read beside others: told before any work, and but for
`check_operators` before torch is imported."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from warpup._numbers import LARGEST
from warpup.policy.kinds import POLICY_KINDS
from warpup.reflection.sampling import FILTERS

from ..checks import check_budget, check_not_negative, check_positive, check_stop, check_unused, named
from ..engines.settings import check_engine
from ..errors import TrainError
from ..rewards.loading import load_named
from ..sampling.filters import DRAWN_BY, Filters
from ..settings import depth_of

if TYPE_CHECKING:
    from .rlvr_settings import RLVRSettings

PLACE = "rlvr"


def check_rlvr(settings: RLVRSettings) -> None:
    """Raise TrainError on settings that no run can have, and on those that nothing would read."""
    if settings.loss not in POLICY_KINDS:
        raise TrainError(f"rlvr.loss: expected one of {', '.join(POLICY_KINDS)}, got {settings.loss!r}")
    check_engine(settings, PLACE)
    check_rewards(settings)
    check_sampling(settings)
    check_advantages(settings)
    check_loss(settings)


def check_rewards(settings: RLVRSettings) -> None:
    """Rewards, or an environment that gives them."""
    if settings.environment:
        names = ("reward", "reward_weights", "reward_timeout", "reward_workers")
        check_unused(settings, *names, place=PLACE, why="an environment gives the rewards")
        check_unused(settings, "schedule", place=PLACE, why="schedules are not followed over turns")
        check_positive(settings, "turns", place=PLACE)
        if isinstance(settings.environment, str):
            load_named(settings.environment, "environment")
    else:
        why = "there is no environment; set rlvr.environment or leave it out"
        check_unused(settings, "turns", "credit", place=PLACE, why=why)


def check_sampling(settings: RLVRSettings) -> None:
    """Which prompts come next, and what stands between logits and tokens."""
    if settings.schedule == "plain" or settings.schedule.endswith(".json"):
        why = "no schedule acts on words" if settings.schedule == "plain" else "a schedule's file has its own words"
        check_unused(settings, "words", place=PLACE, why=f"with schedule {settings.schedule!r} {why}; leave it out")
    check_stop(settings.stop, "rlvr.stop")
    if settings.thinking_budget is not None:
        check_budget(settings.thinking_budget, "rlvr.thinking_budget")
    with named(PLACE):
        Filters(settings.temperature, **{name: getattr(settings, name) for name in DRAWN_BY})
    for text, bias in (settings.logit_bias or {}).items():
        if not isinstance(bias, int | float) or not (-LARGEST <= bias <= LARGEST or bias == -math.inf):
            raise TrainError(f"rlvr.logit_bias: expected a number, or -inf for never, got {bias!r} of {text!r}")
    for name, alone in (("top_p", 0), ("top_k", 1), ("min_p", 1)):
        if getattr(settings, name) == alone:
            raise TrainError(f"rlvr.{name}: {alone} leaves the likeliest token alone, which teaches nothing")


def check_advantages(settings: RLVRSettings) -> None:
    """What a token is credited with."""
    by_group = settings.advantage == "hierarchical_grpo"
    if by_group and settings.credit != "role":
        raise TrainError("rlvr.advantage: hierarchical_grpo holds roles against each other; set credit to role")
    if settings.credit == "role":
        why = "roles have running means as their baselines, or hierarchical_grpo"
        names = ("baseline", "scale", *(() if by_group else ("advantage", "refill")))
        check_unused(settings, *names, place=PLACE, why=why)
        if by_group:
            check_unused(settings, "role_decay", place=PLACE, why="hierarchical_grpo keeps no running mean")
        check_positive(settings, "roles", place=PLACE)
        if not 0 <= settings.role_decay <= 1:
            raise TrainError(f"rlvr.role_decay: expected 0 to 1, got {settings.role_decay}")
    else:
        why = "credit does not go by role; set credit to role"
        check_unused(settings, "roles", "role_decay", place=PLACE, why=why)
    check_branches(settings)
    if settings.advantage == "gdpo" and settings.environment:
        raise TrainError(
            "rlvr.advantage: gdpo normalizes several rewards each by itself, and an environment gives one number; "
            "choose another, such as grpo"
        )
    if settings.advantage is not None:
        names = ("baseline",) if settings.advantage == "tree" else ("baseline", "scale")
        check_unused(settings, *names, place=PLACE, why=f"advantage {settings.advantage!r} has its own")
        if settings.credit == "turn":
            raise TrainError(f"rlvr.credit: turns have baseline and scale, not advantage {settings.advantage!r}")
    if settings.advantage == "gae":
        check_positive(settings, "value_lr", place=PLACE)
        check_not_negative(settings, "value_coef", place=PLACE)
        if settings.value_clip is not None:
            check_positive(settings, "value_clip", place=PLACE)
    if settings.advantage in ("gae", "optimal_token_baseline"):
        why = f"{settings.advantage} learns from groups whose rewards are all alike too"
        check_unused(settings, "refill", place=PLACE, why=why)
    if settings.scale == "batch_std":
        why = "batch_std is the deviation of all that a step samples, and what it adds comes later; leave one out"
        check_unused(settings, "refill", place=PLACE, why=why)
    if settings.advantage != "gae":
        names = ("lam", "value_lr", "value_coef", "value_clip", "kl_in_reward")
        check_unused(settings, *names, place=PLACE, why="there is no value head; set advantage to gae")
    if settings.advantage not in ("gae", "reinforce_pp"):
        check_unused(settings, "gamma", place=PLACE, why="only advantages gae and reinforce_pp discount")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(settings, name) <= 1:
            raise TrainError(f"rlvr.{name}: expected 0 to 1, got {getattr(settings, name)}")


def check_branches(settings: RLVRSettings) -> None:
    """Continuations from within a completion."""
    kind = settings.advantage
    if kind not in ("segment", "tree"):
        check_unused(settings, "branches", place=PLACE, why="only advantages segment and tree branch")
    if kind != "segment":
        why = "there are no segments; set advantage to segment"
        check_unused(settings, "segment_threshold", "segment_every", place=PLACE, why=why)
    if kind != "tree":
        check_unused(settings, "edge_tokens", place=PLACE, why="there is no tree; set advantage to tree")
    if kind not in ("segment", "tree"):
        return
    check_positive(settings, "branches", "segment_every", place=PLACE)
    names = ("environment", "schedule", "thinking_budget", "stop", "repetition", "presence", "frequency", "logit_bias")
    names += tuple(FILTERS) if kind == "tree" else ()
    check_unused(settings, *names, place=PLACE, why=f"advantage {kind!r} does not follow it over what it has cut")
    if not 0 < settings.segment_threshold <= 1:
        raise TrainError(f"rlvr.segment_threshold: expected above 0, at most 1, got {settings.segment_threshold}")
    if kind == "tree":
        try:
            depth = depth_of(settings.samples, settings.branches)
        except ValueError as error:
            raise TrainError(f"rlvr.{error}") from error
        why = "a truncated completion may be the one that learns what others begin with too"
        check_unused(settings, "mask_truncated", place=PLACE, why=why)
        edge = settings.edge_tokens
        if edge is not None and not 0 < edge * (depth - 1) < settings.max_new_tokens:
            raise TrainError(
                f"rlvr.edge_tokens: expected {depth - 1} edges before the last to leave some of max_new_tokens, "
                f"{settings.max_new_tokens}, got {edge}"
            )


def check_loss(settings: RLVRSettings) -> None:
    """The loss and its reference."""
    if not 0 <= settings.entropy_quantile < 1:
        raise TrainError(f"rlvr.entropy_quantile: expected 0 (all tokens) to below 1, got {settings.entropy_quantile}")
    if settings.reference_sync is not None:
        check_positive(settings, "reference_sync", place=PLACE)
    largest = math.inf if settings.correction_max is None else settings.correction_max
    weighs = settings.correction_mode() is not None
    if not weighs:
        why = f"correction is {settings.correction or 'none'} and there are no weights; set correction"
        check_unused(settings, "correction_max", "correction_min", place=PLACE, why=why)
    elif not (settings.correction_min or 0) <= 1 <= largest:
        raise TrainError(
            "rlvr.correction_max, correction_min: expected bounds above and below 1, the weight of what both give the "
            f"same probability, got {settings.correction_max} and {settings.correction_min}"
        )
    check_rollout_mask(settings)
    check_not_negative(settings, "correction_min", "off_policy_mask_threshold", place=PLACE)
    if settings.kl_coef == 0:
        why = "kl_coef is 0 and there is no reference; set kl_coef"
        check_unused(settings, "kl", "kl_clamp", "kl_corrected", "kl_in_reward", "reference_sync", place=PLACE, why=why)
    if settings.kl_in_reward:
        why = "the KL in the reward is k1; leave it out"
        check_unused(settings, "kl", "kl_clamp", "kl_corrected", place=PLACE, why=why)
    if settings.clip_ratio is not None and not all(bound >= 0 for bound in settings.clip_ratio):
        raise TrainError(f"rlvr.clip_ratio: expected two numbers of at least 0, got {settings.clip_ratio}")
    if settings.clip_ratio is not None and POLICY_KINDS[settings.loss].clip is None:
        raise TrainError(
            f"rlvr.clip_ratio: loss {settings.loss!r} clips no ratio; leave it out, got {settings.clip_ratio}"
        )
    stale = settings.max_staleness and not weighs and settings.rollout_mask is None  # compared with what was sampled
    if settings.inner_epochs * settings.minibatches == 1 and not stale:
        why = "the one step on each batch is taken where every ratio is 1, nothing is clipped; leave it out or raise "
        check_unused(settings, "clip_ratio", "delta", "dual_clip", place=PLACE, why=why + "inner_epochs or minibatches")
    if settings.loss not in ("clip_cov", "kl_cov"):
        check_unused(settings, "cov_share", place=PLACE, why=f"loss {settings.loss!r} chooses no tokens")
    if settings.loss != "clip_cov":
        check_unused(settings, "cov_bounds", place=PLACE, why=f"loss {settings.loss!r} draws no tokens")
    if settings.cov_share is not None and not 0 < settings.cov_share <= 1:
        raise TrainError(f"rlvr.cov_share: expected more than 0, at most 1, got {settings.cov_share}")
    if settings.cov_bounds is not None and not settings.cov_bounds[0] < settings.cov_bounds[1]:
        raise TrainError(f"rlvr.cov_bounds: expected a lower and an upper bound, got {settings.cov_bounds}")
    try:
        settings.policy_options()
    except ValueError as error:
        raise TrainError(f"rlvr: {error}") from error


def check_rollout_mask(settings: RLVRSettings) -> None:
    """What is left out because sampler and trainer differ."""
    if settings.rollout_mask is None:
        names = ("rollout_mask_over", "rollout_mask_cap", "rollout_mask_floor")
        check_unused(settings, *names, place=PLACE, why="nothing is measured; set rollout_mask")
        return
    if settings.rollout_mask_cap is None:
        raise TrainError("rlvr.rollout_mask_cap: nothing given; say how large a difference is still learned from")


def check_operators(settings: RLVRSettings) -> None:
    """What the operators themselves refuse of these settings. It imports torch."""
    import torch

    from warpup.advantage.tree_advantage import tree_advantage
    from warpup.policy.masks import rollout_mask

    from ..rewards.reward_set import Scores
    from ..sampling.rounds import advantages_of

    some, one = [float(n) for n in range(settings.samples)], torch.ones(1, 1)
    try:
        advantages_of(settings, Scores(rewards=some, columns={"one": some}), torch.ones(len(some), 1).bool())
        if settings.advantage == "tree":
            tree_advantage(torch.zeros(1), torch.tensor([-1]), scale=settings.scale)
        if settings.rollout_mask:
            rollout_mask(one, one, one, **settings.mask_options())
    except ValueError as error:
        raise TrainError(f"rlvr: {error}") from error
