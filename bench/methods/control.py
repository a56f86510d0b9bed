"""Control: small environments with and without what a method adds. Needs gymnasium, stable-baselines3 and minigrid.

"MiniGrid" and "Pendulum" are mean returns over evaluations while it learns; "point" is the share of steps at the middle
of a line, of the policy in the end (with penalties: less what its pushes cost); "distance" the mean square from the
middle; "dispatch" the mean cost of a day. Of the last two less is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bench.methods.runner import Arm, Column, Numbers
from warpup.control import target_cost


@dataclass(frozen=True)
class Size:
    room: int = 6  # of MiniGrid, with its walls
    room_steps: int = 60  # of an episode
    grid_steps: int = 4096
    demonstrations: int = 20
    clone_steps: int = 200
    offline_steps: int = 6000  # of Pendulum
    online_steps: int = 600
    warm_steps: int = 200
    points: int = 32
    horizon: int = 40
    iterations: int = 40  # of the natural gradient
    critic_steps: int = 20
    real: int = 200  # transitions
    simulated: int = 4000
    gap_steps: int = 1000
    recordings: int = 40
    rounds: int = 12  # of the cross-entropy method
    days: int = 300  # that the dispatch is trained on


SIZE = Size()
QUICK = Size(
    grid_steps=256, demonstrations=1, clone_steps=2, offline_steps=30, online_steps=24, warm_steps=12, points=4,
    horizon=5, iterations=2, critic_steps=2, real=20, simulated=50, gap_steps=4, recordings=3, rounds=1, days=2,
)  # fmt: skip
COLUMNS = {
    "MiniGrid": Column(1, 2), "Pendulum": Column(1, 0), "point": Column(100, 1), "distance": Column(1, 3),
    "dispatch": Column(1, 2),
}  # fmt: skip


# ---- a battery, hour by hour ----------------------------------------------------------------------------------------

HOURS, CAPACITY, RAMP, DEMAND = 8, 2.0, 1.0, 1.0


class Day:
    """Prices, and a forecast of them that is off by noise."""

    def __init__(self, rng: np.random.Generator):
        hours = np.arange(HOURS)
        self.price = 2 + np.sin(2 * np.pi * hours / HOURS + rng.uniform(-0.7, 0.7)) + 0.3 * rng.standard_normal(HOURS)
        self.price = self.price.clip(0.1)
        self.forecast = torch.tensor(self.price + 0.3 * rng.standard_normal(HOURS), dtype=torch.float32)
        # What is bought in an hour is the demand and what the battery takes, x_t - x_(t-1); its cost as one of x:
        self.cost = torch.tensor(self.price - np.append(self.price[1:], 0.0), dtype=torch.float32)
        self.demand = DEMAND * self.price.sum()

    def paid(self, target: Tensor, penalty: float = 10.0) -> Tensor:
        """The day's cost when the battery is led as near to the target as it can be. With a small penalty the linear
        program follows prices that it should not know: the best there is, afterwards."""
        step = np.eye(HOURS) - np.eye(HOURS, k=-1)
        limits = {"A_ub": np.vstack([step, -step]), "b_ub": np.full(2 * HOURS, RAMP), "bounds": (0, CAPACITY)}
        return self.demand + target_cost(target, self.cost, penalty, **limits)


def dispatch(seed: int, size: Size, *, kind: str) -> Numbers:
    """TS-DDR: a policy proposes the battery's levels from the forecast, and learns by the duals of the linear program.
    Others leave the battery empty, do not learn, or know all prices."""
    rng = np.random.default_rng(seed)
    days, tests = ([Day(rng) for _ in range(count)] for count in (size.days, max(2, size.days // 3)))
    policy = nn.Sequential(nn.Linear(HOURS, 32), nn.Tanh(), nn.Linear(32, HOURS))

    def proposed(day: Day) -> Tensor:
        return CAPACITY * policy(day.forecast - 2).sigmoid()

    if kind == "duals":
        optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
        for day in days:
            optimizer.zero_grad()
            day.paid(proposed(day)).backward()
            optimizer.step()
    with torch.no_grad():
        if kind == "empty":
            costs = [float(day.paid(torch.zeros(HOURS))) for day in tests]
        elif kind == "foresight":
            costs = [float(day.paid(torch.zeros(HOURS), penalty=1e-6)) for day in tests]
        else:
            costs = [float(day.paid(proposed(day))) for day in tests]
    return {"dispatch": float(np.mean(costs))}


# ---- arms -----------------------------------------------------------------------------------------------------------


def of(part: str, function: str, **options):
    """An arm of another file, which is imported when it runs: it needs packages of its own."""

    def run(seed: int, size: Size) -> Numbers:
        from importlib import import_module

        return getattr(import_module(f"bench.methods.control_{part}"), function)(seed, size, **options)

    return run


GYM = ("gymnasium",)
BASELINES = ("gymnasium", "stable_baselines3")
GRID = (*BASELINES, "minigrid")


def arm(run, by: str, against: str = "", needs: tuple[str, ...] = GYM) -> Arm:
    return Arm(run, by, against, needs)


ARMS = {
    "grid: PPO": arm(of("gym", "cloned"), "MiniGrid", needs=GRID),
    "grid: BC, then PPO": arm(of("gym", "cloned", pretrain=True), "MiniGrid", "grid: PPO", GRID),
    "grid: PPO + BC": arm(of("gym", "cloned", beside=True), "MiniGrid", "grid: PPO", GRID),
    "pendulum: empty buffer": arm(of("gym", "warm_started"), "Pendulum", needs=BASELINES),
    "pendulum: warm start": arm(of("gym", "warm_started", warm=True), "Pendulum", "pendulum: empty buffer", BASELINES),
    "pendulum: offline data kept": arm(
        of("gym", "warm_started", keep=True), "Pendulum", "pendulum: empty buffer", BASELINES
    ),
    "point: on policy": arm(of("point", "hybrid", offline=False), "point"),
    "point: hybrid critic": arm(of("point", "hybrid", offline=True), "point", "point: on policy"),
    "simulator: real data alone": arm(of("point", "dynamics_gap", use=["real"]), "point"),
    "simulator: simulated alone": arm(
        of("point", "dynamics_gap", use=["simulated"]), "point", "simulator: real data alone"
    ),
    "simulator: both alike": arm(
        of("point", "dynamics_gap", use=["real", "simulated"]), "point", "simulator: real data alone"
    ),
    "simulator: dynamics gap": arm(of("point", "dynamics_gap", use=["gap"]), "point", "simulator: both alike"),
    "penalties: strong": arm(of("point", "scheduled", weak=0.0), "point"),
    "penalties: weak": arm(of("point", "scheduled", weak=1.0), "point", "penalties: strong"),
    "penalties: weak, then strong": arm(of("point", "scheduled", weak=0.5), "point", "penalties: strong"),
    "delta action: simulator": arm(of("point", "delta_action", train_in="simulator"), "distance"),
    "delta action: corrected": arm(
        of("point", "delta_action", train_in="corrected"), "distance", "delta action: simulator"
    ),
    "delta action: real": arm(of("point", "delta_action", train_in="real"), "distance", "delta action: corrected"),
    "dispatch: battery empty": arm(partial(dispatch, kind="empty"), "dispatch", needs=()),
    "dispatch: untrained": arm(partial(dispatch, kind="untrained"), "dispatch", "dispatch: battery empty", ()),
    "dispatch: duals (TS-DDR)": arm(partial(dispatch, kind="duals"), "dispatch", "dispatch: battery empty", ()),
    "dispatch: prices known": arm(partial(dispatch, kind="foresight"), "dispatch", "dispatch: duals (TS-DDR)", ()),
}
