"""Credit against the optimal token baseline: what can be expected at a place is what the completions of the group went
on to earn from there, weighed by the variance that each has added to the gradient. No value model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from warpup.advantage import optimal_token_baseline

from ..checks import filled
from ..model.heads import Head
from ..run import StageRun
from ..sampling.groups import Sampled
from .critic import token_rewards
from .policy_step import Experience, score_tokens

if TYPE_CHECKING:
    from .rlvr_settings import RLVRSettings


def credit_tokens(settings: RLVRSettings, run: StageRun, head: Head, sampled: Sampled) -> Sampled:
    """The same completions with advantages (N, L); 0 in those without a reward."""
    rolls, rows = sampled.rolls, range(len(sampled.pairs))
    experience = Experience(sampled.pairs, rolls, sampled.advantages, settings.temperature)
    logp, sum_p2 = score_tokens(run, head, experience, rows, filled(settings.max_tokens), sum_p2=True)
    known = ~torch.tensor(sampled.scores.rewards, device=logp.device).isnan()
    mask, rewards = experience.learned & known[:, None], token_rewards(sampled).to(logp)
    advantages = optimal_token_baseline(rewards, settings.samples, mask=mask, logp=logp, sum_p2=sum_p2)
    return replace(sampled, advantages=advantages.to(rolls.logp))
