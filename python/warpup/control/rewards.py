"""Rewards of several terms, whose weights change from stage to stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from warpup._arguments import check_above_0


class PenaltyCurriculum:
    """Weights of reward terms by stage: discover a motion under weak penalties, then track it under strong ones
    (HumanUP, arXiv 2502.12152).

        curriculum = PenaltyCurriculum([(1_000_000, {"height": 1, "torque": -.01}), (None, {...})])
        reward = curriculum(terms, step)  # sum of weight * term

    `warpup.control.wrappers.StagedReward` does so in a gymnasium environment.

    Args:
        stages: (steps it lasts, weight of each term), in order; the last one has no end, None.

    Raises:
        ValueError: no stage, or an end where there must be none, or none, or one below 1, where there must be one.
    """

    def __init__(self, stages: Sequence[tuple[int | None, Mapping[str, float]]]):
        ends = [steps for steps, _ in stages]
        if not stages or ends[-1] is not None or any(steps is None or steps < 1 for steps in ends[:-1]):
            raise ValueError(f"PenaltyCurriculum: all stages but the last one must have a number of steps, got {ends}")
        self.stages = list(stages)

    def weights(self, step: int) -> Mapping[str, float]:
        """Those at a step, counted from 0 over all stages."""
        if step < 0:
            raise ValueError(f"PenaltyCurriculum: step must be at least 0, got {step}")
        for steps, weights in self.stages:
            if steps is None or step < steps:
                return weights
            step -= steps
        raise AssertionError

    def __call__(self, terms: Mapping[str, float], step: int) -> float:
        """The reward; a term without a weight is an error, so that none is forgotten."""
        weights = self.weights(step)
        if terms.keys() != weights.keys():
            raise ValueError(f"PenaltyCurriculum: step {step} has weights of {[*weights]}, got the terms {[*terms]}")
        return sum(weights[name] * value for name, value in terms.items())


def tracking_reward(x: Sequence[float], wanted: Sequence[float], scale: float = 1.0) -> float:
    """`exp(-||x - wanted||^2 / scale)`: 1 where a state is as wanted, such as joint angles of a recorded motion."""
    check_above_0("tracking_reward", scale=scale)
    return math.exp(-sum((a - b) ** 2 for a, b in zip(x, wanted, strict=True)) / scale)
