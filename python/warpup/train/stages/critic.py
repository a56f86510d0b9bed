"""Actor and critic (PPO): what each token is worth comes from a value head on the model's own hidden states.

The value of a token is what the head expects of the rest of the completion before the token is chosen; an advantage is
what came beyond it (GAE, arXiv 1506.02438). The head learns the returns by a clipped squared error, as in the code
released with PPO (arXiv 1707.06347, openai/baselines ppo2) and in TRL's. The model's weights do not learn from it
unless a coefficient says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpup.advantage.gae import gae
from warpup.advantage.masked_whiten import masked_whiten

from .. import ranks
from ..checks import filled
from ..model.heads import Head
from ..model.reference import Snapshot
from ..model.value_head import ValueHead
from ..run import StageRun
from ..sampling.groups import Groups, Sampled
from .policy_step import Experience, score_tokens, spread, token_batches

if TYPE_CHECKING:
    from .rlvr_settings import RLVRSettings


class Critic:
    """A value head, and how advantages and its own loss come from it."""

    def __init__(self, head: Head, settings: RLVRSettings, reference: Snapshot | None):
        self.head, self.settings = head, settings
        self.reference = reference if settings.kl_in_reward else None
        weight = head.layer.weight
        self.value = ValueHead(weight.shape[1], weight.device)

    def credit(self, run: StageRun, sampled: Sampled) -> Sampled:
        """The same completions with advantages (N, L), whitened over them; in `tensors` their values and returns."""
        settings, rolls = self.settings, sampled.rolls
        experience = Experience(sampled.pairs, rolls, sampled.advantages, settings.temperature)
        rows, learned, tensors = range(len(sampled.pairs)), experience.learned, {}
        rewards = token_rewards(sampled).to(rolls.logp)
        if self.reference:
            # The KL to the reference as a cost of each token (k1, whose gradient is right as a reward's).
            with self.reference.restored():
                (tensors["ref_logp"],) = score_tokens(run, self.head, experience, rows, filled(settings.max_tokens))
            rewards = rewards - settings.kl_coef * (rolls.logp - tensors["ref_logp"])
        values = self.values(run, experience, rows)
        known = ~torch.tensor(sampled.scores.rewards, device=learned.device).isnan()
        mask = learned & known[:, None]
        advantages, returns = gae(rewards, values, mask, gamma=settings.gamma, lam=settings.lam)
        tensors |= {"values": values, "returns": returns}
        return replace(sampled, advantages=masked_whiten(advantages, mask), tensors=tensors)

    @torch.no_grad()
    def values(self, run: StageRun, experience: Experience, rows) -> Tensor:
        """(N, L): the value before each token that carries loss."""
        values = torch.zeros_like(experience.rolls.logp)
        for batch in token_batches(run, self.head, experience, rows, filled(self.settings.max_tokens)):
            with run.computing():
                spread(self.value(self.head.hidden(batch)), experience, batch, values)
        ranks.sum_(values)
        return values

    def loss(self, hidden: Tensor, old: Tensor, returns: Tensor, tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared error of N values, summed and divided by `tokens`; where a value has left the old one by
        more than the clip, the larger of its error and that of the value held there. hidden (N, H); old, returns (N,).
        """
        coef, clip = self.settings.value_coef, self.settings.value_clip
        fixed = hidden.detach()  # the gradient of the model's weights is coef times that of the loss
        values = self.value(fixed + coef * (hidden - fixed) if coef else fixed)
        errors = (values - returns).square()
        held = errors if clip is None else (old + (values - old).clamp(-clip, clip) - returns).square()
        metrics = {"value_clip_fraction": (held > errors).float().mean()}
        return 0.5 * torch.maximum(errors, held).sum() / tokens, metrics

    def numbers(self, groups: Groups) -> dict[str, float]:
        """How well the values of a step foretold its returns: 1 - Var(return - value) / Var(return), over tokens."""
        known = ~torch.tensor(groups.scores.rewards, device=groups.rolls.logp.device).isnan()
        mask = groups.rolls.learned() & known[:, None]
        values, returns = (groups.tensors[name][mask].double() for name in ("values", "returns"))
        if len(returns) < 2:
            return {}
        explained = 1 - (returns - values).var() / returns.var().clamp_min(1e-12)
        return {"explained_variance": float(explained), "value": float(values.mean()), "return": float(returns.mean())}


def token_rewards(sampled: Sampled) -> Tensor:
    """(N, L): rewards of tokens, or those of completions at their last tokens; 0 for a completion without one."""
    rewards = torch.zeros(sampled.rolls.tokens.shape)
    given = sampled.scores.token_rewards
    for row, (mask, outcome) in enumerate(zip(sampled.rolls.learned().cpu(), sampled.scores.rewards, strict=True)):
        if given is not None:
            rewards[row, : len(given[row] or ())] = torch.tensor(given[row] or [])
        else:
            rewards[row, int(mask.nonzero()[-1])] = torch.tensor(outcome).nan_to_num(0.0)
    return rewards
