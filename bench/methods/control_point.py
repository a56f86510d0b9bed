"""A point on a line that is pushed: x' = x + .2 v, v' = .9 v + .2 (gain a + wind), with pushes a of -1, 0 or 1.

Many points at once as rows of (N, 2) states. The reward of a step is 1 within .15 of the middle and slow, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from bench.methods.runner import Numbers
from warpup import gae
from warpup.control import (
    PenaltyCurriculum,
    gap_loss,
    gap_weights,
    hybrid_critic_loss,
    natural_step,
    tracking_reward,
)

PUSHES, GAMMA = torch.tensor([-1.0, 0.0, 1.0]), 0.95


def moved(states: Tensor, push: Tensor, gain: float = 1.0, wind: float = 0.0, noise: float = 0.0) -> Tensor:
    x, v = states.unbind(-1)
    speed = 0.9 * v + 0.2 * (gain * push + wind) + noise * torch.randn_like(v)
    return torch.stack([x + 0.2 * v, speed], -1).clamp(-3, 3)


def there(states: Tensor) -> Tensor:
    return ((states[..., 0].abs() < 0.15) & (states[..., 1].abs() < 0.3)).float()


def begun(count: int) -> Tensor:
    return torch.stack([4 * torch.rand(count) - 2, torch.zeros(count)], -1)


class Episodes(NamedTuple):
    """(T, N, ...): what `count` points saw and did; `last` is where they ended."""

    states: Tensor
    actions: Tensor
    last: Tensor


@torch.no_grad()
def played(act: Callable[[Tensor], Tensor], count: int, horizon: int, **dynamics: float) -> Episodes:
    """Episodes of a policy that gives actions 0, 1 or 2 of states."""
    states, seen, done = begun(count), [], []
    for _ in range(horizon):
        seen.append(states)
        done.append(act(states))
        states = moved(states, PUSHES[done[-1]], **dynamics)
    return Episodes(torch.stack(seen), torch.stack(done), states)


def network(outputs: int, inputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, outputs))


def steered(states: Tensor) -> Tensor:
    """A good policy, with a fifth of its actions at random: where offline data comes from."""
    wanted = -1.5 * states[..., 0] - 2.0 * states[..., 1]
    good = torch.bucketize(wanted, torch.tensor([-0.3, 0.3]))
    return torch.where(torch.rand(good.shape) < 0.2, torch.randint_like(good, 3), good)


# ---- natural policy gradient ----------------------------------------------------------------------------------------


def natural_policy(size, reward: Callable[[Episodes, int], Tensor], *, offline: Episodes | None = None) -> nn.Module:
    """TRPO's step on episodes of the policy's own. With offline episodes (HNPG) the critic learns from them, too, by
    one-step targets, and the step is taken on states of both. `reward(episodes, iteration)` is (T, N)."""
    policy, critic = network(3), network(3)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)

    def values(states: Tensor) -> Tensor:
        return (policy(states).softmax(-1) * critic(states)).sum(-1)

    for iteration in range(size.iterations):
        own = played(lambda s: Categorical(logits=policy(s)).sample(), size.points, size.horizon)
        rewards = reward(own, iteration)
        with torch.no_grad():
            state_values = values(own.states)
            found = gae(
                rewards.T, state_values.T, torch.ones_like(rewards.T), gamma=GAMMA, lam=0.95, bootstrap=values(own.last)
            )
        advantage, returns = (part.T.flatten() for part in found)
        states, actions = own.states.flatten(0, 1), own.actions.flatten()
        if offline is not None:
            after = torch.cat([offline.states[1:], offline.last[None]]).flatten(0, 1)
            before, did, paid = (
                offline.states.flatten(0, 1),
                offline.actions.flatten(),
                reward(offline, iteration).flatten(),
            )
        for _ in range(size.critic_steps):
            some = torch.randint(len(states), (256,))
            q = critic(states[some]).gather(-1, actions[some, None])[:, 0]
            if offline is None:
                loss = F.mse_loss(q, returns[some])
            else:
                drawn = torch.randint(len(before), (256,))
                with torch.no_grad():
                    targets = paid[drawn] + GAMMA * values(after[drawn])
                q_off = critic(before[drawn]).gather(-1, did[drawn, None])[:, 0]
                loss = hybrid_critic_loss(q, returns[some], q_off, targets, critic.parameters(), 1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if offline is not None:
            chosen = torch.randint(len(before), (len(states),))
            with torch.no_grad():
                sampled = Categorical(logits=policy(before[chosen])).sample()
                gained = critic(before[chosen]).gather(-1, sampled[:, None])[:, 0] - values(before[chosen])
            states, actions = torch.cat([states, before[chosen]]), torch.cat([actions, sampled])
            advantage = torch.cat([advantage, gained])
        now = Categorical(logits=policy(states))
        old = Categorical(logits=now.logits.detach())
        ratio = (now.log_prob(actions) - old.log_prob(actions)).exp()
        objective, kl = (ratio * advantage).mean(), kl_divergence(old, now).mean()
        steps = natural_step(objective, kl, list(policy.parameters()), delta=0.02, damping=0.1)
        with torch.no_grad():
            for p, step in zip(policy.parameters(), steps, strict=True):
                p += step
    return policy


def mean_return(act: Callable[[Tensor], Tensor], size, **dynamics: float) -> float:
    """Share of the steps of an episode that are spent where they should be."""
    return float(there(played(act, 500, size.horizon, **dynamics).states).mean())


def greedy(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda states: net(states).argmax(-1)


def hybrid(seed: int, size, *, offline: bool) -> Numbers:
    data = played(steered, size.points, size.horizon) if offline else None
    policy = natural_policy(size, lambda episodes, _: there(episodes.states), offline=data)
    return {"point": mean_return(greedy(policy), size)}


def scheduled(seed: int, size, *, weak: float) -> Numbers:
    """Reward terms: to be there, and what each push costs. weak: share of the iterations under weak penalties, the rest
    is under strong ones, by which the policy is judged."""
    strong = {"there": 1.0, "effort": -0.4}
    stages = [(max(1, round(weak * size.iterations)), {"there": 1.0, "effort": -0.05}), (None, strong)]
    curriculum = PenaltyCurriculum(stages if weak else stages[1:])

    def reward(episodes: Episodes, iteration: int) -> Tensor:
        terms = {"there": there(episodes.states), "effort": PUSHES[episodes.actions].abs()}
        return curriculum(terms, iteration)

    policy = natural_policy(size, reward)
    played_out = played(greedy(policy), 500, size.horizon)
    judged = PenaltyCurriculum([(None, strong)])
    paid = judged({"there": there(played_out.states), "effort": PUSHES[played_out.actions].abs()}, 0)
    return {"point": float(paid.mean())}


# ---- a simulator that is wrong --------------------------------------------------------------------------------------

GAP = {"gain": 0.5, "wind": -0.25}  # the real point's; the simulator has gain 1 and no wind
NOISE = 0.1  # of both: without it no simulated transition could have been a real one, and all would count nothing


def transitions(count: int, **dynamics: float) -> tuple[Tensor, Tensor, Tensor]:
    """States anywhere, random actions, and where they led."""
    states = torch.stack([4 * torch.rand(count) - 2, 2 * torch.rand(count) - 1], -1)
    actions = torch.randint(3, (count,))
    return states, actions, moved(states, PUSHES[actions], **dynamics)


def dynamics_gap(seed: int, size, *, use: Iterable[str]) -> Numbers:
    """A critic of few real and many simulated transitions; the policy is greedy in it. use: "real", "simulated", or
    both, and "gap" for H2O: simulated ones count by how real they look, and values fall where they do not."""
    real, simulated = transitions(size.real, noise=NOISE, **GAP), transitions(size.simulated, noise=NOISE)
    log_ratio = weights = None
    if "gap" in use:
        log_ratio = discriminated(real, simulated, size)
        weights = gap_weights(log_ratio)
    critic, target = network(3), network(3)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for step in range(size.gap_steps):
        if step % 25 == 0:
            target.load_state_dict(critic.state_dict())
        q, wanted, chosen = [], [], []
        for states, actions, after in (real, simulated):
            some = torch.randint(len(actions), (128,))
            chosen.append(some)
            q.append(critic(states[some]).gather(-1, actions[some, None])[:, 0])
            with torch.no_grad():
                wanted.append(there(after[some]) + GAMMA * target(after[some]).amax(-1))
        if log_ratio is not None and weights is not None:
            drawn = weights[chosen[1]] / weights[chosen[1]].sum()
            loss = gap_loss(q[0], wanted[0], q[1], wanted[1], log_ratio[chosen[1]], drawn)
        else:
            parts = {"real": F.mse_loss(q[0], wanted[0]), "simulated": F.mse_loss(q[1], wanted[1])}
            loss = torch.stack([parts[name] for name in use]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"point": mean_return(greedy(critic), size, noise=NOISE, **GAP)}


def discriminated(real, simulated, size) -> Tensor:
    """log p_sim(s' | s, a) / p_real(s' | s, a) of the simulated transitions, by two classifiers."""
    inputs = [torch.cat([s, F.one_hot(a, 3), 5 * (after - s)], -1) for s, a, after in (real, simulated)]
    whole, part = network(1, 7), network(1, 5)
    optimizer = torch.optim.AdamW([*whole.parameters(), *part.parameters()], 3e-3, weight_decay=0.1)
    labels = torch.cat([torch.zeros(128), torch.ones(128)])
    for _ in range(size.gap_steps // 4):  # few real ones are soon known by heart
        batch = torch.cat([x[torch.randint(len(x), (128,))] for x in inputs])
        batch = batch + 0.1 * torch.randn_like(batch)
        losses = [
            F.binary_cross_entropy_with_logits(net(batch[:, :width])[:, 0], labels)
            for net, width in ((whole, 7), (part, 5))
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return (whole(inputs[1]) - part(inputs[1][:, :5]))[:, 0]


class Point(gymnasium.Env):
    """One point, pushed by any number."""

    observation_space = gymnasium.spaces.Box(-3, 3, (2,))
    action_space = gymnasium.spaces.Box(-3, 3, (1,))

    def __init__(self, gain: float = 1.0, wind: float = 0.0):
        self.gain, self.wind = gain, wind

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array((options or {}).get("state", (1.0, 0.0)))
        return self.state, {}

    def step(self, action):
        x, v = self.state
        push = self.gain * np.clip(float(action[0]), -3, 3) + self.wind
        self.state = np.clip([x + 0.2 * v, 0.9 * v + 0.2 * push], -3, 3)
        return self.state, -float(self.state[0] ** 2), False, False, {}


def best(score: Callable[[np.ndarray], float], start: np.ndarray, rng: np.random.Generator, rounds: int) -> np.ndarray:
    """The cross-entropy method: of 24 draws around a mean the best 6 make the next mean and spread."""
    mean, spread = start.astype(float), np.ones(len(start))
    for _ in range(rounds):
        drawn = mean + spread * rng.standard_normal((24, len(start)))
        elite = drawn[np.argsort([-score(each) for each in drawn])[:6]]
        mean, spread = elite.mean(0), elite.std(0) + 0.01
    return mean


def delta_action(seed: int, size, *, train_in: str) -> Numbers:
    """ASAP: what is added to actions makes a simulator move as recordings of the real point do; a linear policy is then
    found in the "corrected" simulator, the plain "simulator", or the "real" one."""
    from warpup.control.wrappers import DeltaAction

    rng, real = np.random.default_rng(seed), Point(**GAP)
    env: gymnasium.Env = {"real": real}.get(train_in, Point())
    if train_in == "corrected":
        recorded = []
        for _ in range(size.recordings):
            before, action = rng.uniform(-1.5, 1.5, 2), rng.uniform(-2, 2, 1)
            real.reset(options={"state": before})
            recorded.append((before, action, real.step(action)[0]))

        def alike(delta: np.ndarray) -> float:
            corrected = DeltaAction(Point(), lambda _, action: delta[0] * action + delta[1])
            total = 0.0
            for before, action, after in recorded:
                corrected.reset(options={"state": before})
                reward = tracking_reward(corrected.step(action)[0], after, scale=0.01)
                total += reward - 1e-3 * float(np.abs(delta[0] * action + delta[1]).sum())
            return total

        found = best(alike, np.zeros(2), rng, size.rounds)
        env = DeltaAction(Point(), lambda _, action: found[0] * action + found[1])

    def score(gains: np.ndarray, world: gymnasium.Env = env) -> float:
        paid = 0.0
        for start in (-1.5, 1.0):
            state, _ = world.reset(options={"state": (start, 0.0)})
            for _ in range(size.horizon):
                state, reward, *_ = world.step(gains[:2] @ state + gains[2:])
                paid += reward / (2 * size.horizon)
        return paid

    return {"distance": -score(best(score, np.zeros(3), rng, size.rounds), real)}
