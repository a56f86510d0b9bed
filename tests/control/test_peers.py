"""With gymnasium and stable-baselines3, where they are installed."""

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

from warpup.control import PenaltyCurriculum, bc_loss  # noqa: E402
from warpup.control.wrappers import DeltaAction, StagedReward  # noqa: E402
from warpup.optim import add_loss  # noqa: E402


class Point(gymnasium.Env):
    """A point that is pushed for eight steps, paid for being near 0."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.x, {}

    def step(self, action):
        self.x, self.steps = (self.x + action).astype(np.float32), self.steps + 1
        terms = {"near": -float(abs(self.x[0])), "push": float(abs(action[0]))}
        return self.x, terms["near"], False, self.steps == 8, {"reward_terms": terms}


class Silent(Point):
    def step(self, action):
        return *super().step(action)[:-1], {}


def test_stages_count_over_episodes():
    env = StagedReward(
        Point(), PenaltyCurriculum([(9, {"near": 0.0, "push": 1.0}), (None, {"near": 0.0, "push": -2.0})])
    )
    paid = []
    for _ in range(2):
        env.reset(seed=0)
        paid += [env.step(np.full(1, 0.5, np.float32))[1] for _ in range(8)]
    assert paid == [0.5] * 9 + [-1.0] * 7
    silent = StagedReward(Silent(), env.curriculum)
    silent.reset(seed=0)
    with pytest.raises(KeyError, match="no 'reward_terms'"):
        silent.step(np.zeros(1, np.float32))


def test_a_correction_sees_the_last_observation():
    env = DeltaAction(Point(), delta=lambda observation, action: -observation - action)
    env.reset(seed=0)
    assert abs(env.step(np.ones(1, np.float32))[0]) < 1e-6  # it undoes state and action


def test_ppo_learns_from_demonstrations_beside_it():
    library = pytest.importorskip("stable_baselines3")
    model = library.PPO("MlpPolicy", Point(), n_steps=64, batch_size=32, n_epochs=10, learning_rate=1e-2, seed=0)
    states = torch.linspace(-1, 1, 64).unsqueeze(-1)
    expert = -0.5 * states

    def cloning():
        return bc_loss(model.policy.evaluate_actions(states, expert)[1])

    @torch.no_grad()
    def off():
        return (model.policy.get_distribution(states).distribution.mean - expert).abs().mean()

    before = off()
    add_loss(model.policy.optimizer, cloning, weight=10.0)
    model.learn(256)
    assert off() < 0.3 * before


def test_a_warm_start_collects_and_does_not_learn():
    """The settings that docs/methods.md names for row 44 do what it says."""
    library = pytest.importorskip("stable_baselines3")
    model = library.SAC("MlpPolicy", Point(), learning_starts=0, gradient_steps=0, batch_size=16, seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(40)
    assert model.replay_buffer.size() == 40
    assert all(p.equal(b) for p, b in zip(model.policy.parameters(), before, strict=True))
    model.gradient_steps = 4
    model.learn(2, reset_num_timesteps=False)
    assert model.replay_buffer.size() == 42
    assert model._n_updates == 8
