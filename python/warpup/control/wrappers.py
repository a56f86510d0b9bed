"""Wrappers of gymnasium environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from warpup._optional import needs

with needs("warpup.control.wrappers", "gymnasium", "gymnasium"):
    import gymnasium

from .rewards import PenaltyCurriculum


class StagedReward(gymnasium.Wrapper):
    """Pays what a curriculum makes of the environment's reward terms, which it gives as `info["reward_terms"]`.

    Args:
        env: of which each step's info has the terms, a dictionary of numbers.
        curriculum: counts the steps of this wrapper, over all episodes.
    """

    def __init__(self, env: gymnasium.Env, curriculum: PenaltyCurriculum):
        super().__init__(env)
        self.curriculum, self.steps = curriculum, 0

    def step(self, action: Any):
        observation, _, terminated, truncated, info = self.env.step(action)
        if "reward_terms" not in info:
            raise KeyError("StagedReward: the environment's info has no 'reward_terms'")
        reward = self.curriculum(info["reward_terms"], self.steps)
        self.steps += 1
        return observation, reward, terminated, truncated, info


class DeltaAction(gymnasium.Wrapper):
    """A simulator that is corrected by what is added to actions: s' = f_sim(s, a + delta(s, a)) (ASAP, arXiv
    2502.01143).

    First the correction is learned: a policy gives deltas to recorded actions and is paid for states that are as the
    recorded ones, `tracking_reward(s', s'_real) - lam * |delta|`. Then it is frozen, and a task policy learns here.

    Args:
        env: the simulator.
        delta: of the last observation and the action.
    """

    def __init__(self, env: gymnasium.Env, delta: Callable[[Any, Any], Any]):
        super().__init__(env)
        self.delta, self._observation = delta, None

    def reset(self, **options):
        self._observation, info = self.env.reset(**options)
        return self._observation, info

    def step(self, action: Any):
        result = self.env.step(action + self.delta(self._observation, action))
        self._observation = result[0]
        return result
