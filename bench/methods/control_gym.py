"""stable-baselines3 in MiniGrid and on Pendulum, with what warpup puts beside it. Imported by its arms alone."""

from __future__ import annotations

import copy
from functools import lru_cache

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed

from bench.methods.runner import Numbers
from warpup.control import bc_loss
from warpup.optim import add_loss

# ---- MiniGrid -------------------------------------------------------------------------------------------------------


class Where(gymnasium.ObservationWrapper):
    """Where the agent is, where it looks, and where the goal is from there: MiniGrid's own image of object numbers is
    taken for a photograph by MlpPolicy, and divided by 255."""

    observation_space = spaces.Box(-1, 1, (8,))

    def observation(self, observation):
        grid = self.unwrapped
        size = grid.width - 2
        at, goal = np.array(grid.agent_pos) - 1, np.array((grid.width - 3, grid.height - 3))
        looks = np.eye(4)[grid.agent_dir]
        return np.concatenate([at / size, (goal - at) / size, looks]).astype(np.float32)


def empty_room(seed: int, size) -> gymnasium.Env:
    import minigrid  # noqa: F401  registers the environments

    env = gymnasium.make(f"MiniGrid-Empty-Random-{size.room}x{size.room}-v0", max_steps=size.room_steps)
    env = Where(env)
    env.action_space = spaces.Discrete(3)  # left, right, forward: there is nothing to take up or open
    env.reset(seed=seed)  # what follows is drawn from there
    return env


def solved(env: gymnasium.Env, episodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and actions of one who knows the way: east to the wall, then south."""
    seen, done = [], []
    for _ in range(episodes):
        observation, _ = env.reset()
        over = False
        while not over:
            grid = env.unwrapped
            wanted = 0 if grid.agent_pos[0] < grid.width - 2 else 1
            turn = (wanted - grid.agent_dir) % 4
            action = 2 if turn == 0 else 0 if turn == 3 else 1
            seen.append(observation)
            done.append(action)
            observation, _, ended, cut, _ = env.step(action)
            over = ended or cut
    return torch.tensor(np.stack(seen)), torch.tensor(done)


class Curve(BaseCallback):
    """Mean return of the policy every so many steps."""

    def __init__(self, env: gymnasium.Env, every: int, episodes: int, **options):
        super().__init__()
        self.env, self.every, self.episodes, self.options, self.found = env, every, episodes, options, []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            mean, _ = evaluate_policy(self.model, self.env, self.episodes, warn=False, **self.options)
            self.found.append(float(mean))
        return True


def cloned(seed: int, size, *, pretrain: bool = False, beside: bool = False) -> Numbers:
    """PPO with demonstrations: behaviour cloning before it, or beside its own loss; or without any."""
    env = empty_room(seed, size)
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=5, seed=seed, device="cpu")
    if pretrain or beside:
        observations, actions = solved(empty_room(seed, size), size.demonstrations)

        def cloning() -> torch.Tensor:
            some = torch.randint(len(actions), (64,))
            _, logp, _ = model.policy.evaluate_actions(observations[some], actions[some])
            return bc_loss(logp)

        if pretrain:
            for _ in range(size.clone_steps):
                model.policy.optimizer.zero_grad()
                cloning().backward()
                model.policy.optimizer.step()
        if beside:
            add_loss(model.policy.optimizer, cloning, weight=0.1)
    curve = Curve(empty_room(seed, size), size.grid_steps // 4, 10, deterministic=False)
    model.learn(size.grid_steps, callback=curve)
    return {"MiniGrid": float(np.mean(curve.found)), "curve": curve.found}


# ---- Pendulum -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)  # seeds
def before(seed: int, size) -> SAC:
    """Trained on a pendulum of less gravity: what is there before the one at hand is met. Kept, as arms share it."""
    env = gymnasium.make("Pendulum-v1", g=8.0)
    net = {"net_arch": [64, 64]}
    model = SAC("MlpPolicy", env, learning_starts=size.warm_steps, learning_rate=2e-3, batch_size=128, seed=seed,
                buffer_size=20_000, policy_kwargs=net, train_freq=2, device="cpu")  # fmt: skip
    model.learn(size.offline_steps)
    return model


def warm_started(seed: int, size, *, keep: bool = False, warm: bool = False) -> Numbers:
    """Online steps from offline weights: with an empty buffer at once, after steps of the frozen policy (warm), or with
    the offline data kept."""
    old = before(seed, size)
    env, test = (gymnasium.make("Pendulum-v1") for _ in range(2))
    model = SAC("MlpPolicy", env, learning_starts=0, learning_rate=1e-3, batch_size=128, seed=seed + 1,
                buffer_size=20_000, policy_kwargs={"net_arch": [64, 64]}, device="cpu")  # fmt: skip
    model.set_parameters(old.get_parameters())
    if keep:
        model.replay_buffer = copy.deepcopy(old.replay_buffer)
    set_random_seed(seed + 1)
    test.reset(seed=seed)
    curve = Curve(test, size.online_steps // 4, 5)
    if warm:
        model.gradient_steps = 0
        model.learn(size.warm_steps, callback=curve)
    model.gradient_steps = 1
    # Warm steps are steps too: all arms have as many.
    model.learn(size.online_steps - size.warm_steps * warm, reset_num_timesteps=not warm, callback=curve)
    return {"Pendulum": float(np.mean(curve.found)), "curve": curve.found}
