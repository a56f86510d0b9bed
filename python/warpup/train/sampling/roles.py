"""Credit by role, for episodes in which the model plays several parts, as in self-play.

What a part can expect differs from the other's (who moves first may win more often), so each has a baseline of its own:
a running mean of what it has earned (role-conditioned advantage estimation, SPIRAL, arXiv 2506.24119), or the mean of
what it has earned in the group's episodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from warpup.advantage import hierarchical_grpo
from warpup.advantage.role_advantage import role_advantage

from ..errors import TrainError
from .groups import Sampled


class Roles(NamedTuple):
    """Of N episodes. earned (N, K): what each role has earned, NaN where it did not speak; of_token (N, L) int64: who
    said each token, -1 where the environment did."""

    earned: Tensor
    of_token: Tensor

    @classmethod
    def of(
        cls, speakers: Sequence[Sequence[int]], shares: Sequence[Mapping[int, float]], turn: Tensor, count: int
    ) -> Roles:
        """From who spoke in each turn, what each role was given, and the turns (N, L) of tokens."""
        earned = torch.full((len(speakers), count), torch.nan)
        width = max(map(len, speakers))
        by_turn = torch.tensor([[*row, *[0] * (width - len(row))] for row in speakers], device=turn.device)
        for n, (spoke, share) in enumerate(zip(speakers, shares, strict=True)):
            for role in {*spoke, *share}:
                if not 0 <= role < count:
                    raise TrainError(f"environment: role {role}, expected 0 to {count - 1}; rlvr.roles says how many")
            for role in () if any(map(math.isnan, share.values())) else spoke:
                earned[n, role] = share.get(role, 0.0)
        return cls(earned, by_turn.gather(1, turn.clamp_min(0)).masked_fill(turn < 0, -1))

    def of_tokens(self, each: Tensor) -> Tensor:
        """(N, L): of each token what its role has in `each` (N, K)."""
        return each.gather(1, self.of_token.clamp_min(0)).masked_fill(self.of_token < 0, 0.0)

    def against_group(self, samples: int) -> Tensor:
        """Advantages (N, L): what a token's role has earned against what it earned in the group's episodes."""
        episodes, count = self.earned.shape
        episode, role = torch.arange(episodes).repeat_interleave(count), torch.arange(count).repeat(episodes)
        each = hierarchical_grpo(self.earned.flatten(), episode // samples, episodes=episode % samples, roles=role)
        return self.of_tokens(each.view_as(self.earned).to(self.of_token.device))


class RoleBaselines:
    """The running means. state (K,) belongs to a checkpoint; what a step makes of it counts once the step is done."""

    def __init__(self, count: int, decay: float):
        self.decay, self.state = decay, torch.zeros(count)
        self.after = self.state

    def credit(self, sampled: Sampled) -> Sampled:
        """The same episodes with advantages (N, L): what the role of each token has earned over its baseline."""
        assert sampled.roles is not None
        earned = sampled.roles.earned
        roles = torch.arange(earned.shape[1]).repeat(len(earned))
        each, self.after = role_advantage(earned.flatten(), roles, self.state, self.decay)
        each = each.view_as(earned).to(sampled.rolls.logp)
        return replace(sampled, advantages=sampled.roles.of_tokens(each))

    def finish_step(self) -> None:
        """The baselines of the next step."""
        self.state.copy_(self.after)
