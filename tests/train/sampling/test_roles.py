"""Roles: each has a baseline of its own, by hand; who spoke; resuming; a game of two is learned from both sides."""

import math

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, rlvr, same, steps_of, weights
from warpup.train import Recipe, TrainError, Turn
from warpup.train.rewards.reward_set import Scores
from warpup.train.sampling.groups import Sampled
from warpup.train.sampling.roles import RoleBaselines, Roles
from warpup.train.sampling.rollouts import Rollouts

pytestmark = pytest.mark.usefixtures("one_thread")
NAN = math.nan


class Duel:
    """Two speak in turn; who says `knight` first wins one, the other loses one. Each word costs its speaker .1."""

    def reset(self, example):
        self.role = 0
        return example["prompt"]

    def step(self, completion):
        speaker, self.role = self.role, 1 - self.role
        cost = -0.1 * len(completion.split())
        if "knight" in completion.split():
            return Turn(reward={speaker: 1.0 + cost, 1 - speaker: -1.0}, done=True)
        return Turn("wait", reward=cost)


def duel(**options):
    settings = {"environment": Duel, "reward": "warpup.data:verify", "credit": "role", "turns": 3, "max_new_tokens": 4}
    return rlvr(**settings | options)


def test_who_said_what_and_what_it_earned():
    turn = torch.tensor([[0, 0, -1, 1, -1, 2], [0, -1, -1, -1, -1, -1]])
    roles = Roles.of([[0, 1, 0], [1]], [{0: 0.5, 1: -1.0}, {0: 2.0}], turn, 3)
    assert roles.of_token.tolist() == [[0, 0, -1, 1, -1, 0], [1, -1, -1, -1, -1, -1]]
    # A role that spoke and was given nothing has earned 0; one that did not speak has no advantage to learn from.
    torch.testing.assert_close(roles.earned, torch.tensor([[0.5, -1, NAN], [NAN, 0, NAN]]), equal_nan=True)
    # Where a reward could not be told, nobody has earned anything.
    assert Roles.of([[0, 1]], [{0: 1.0, 1: NAN}], turn[1:], 2).earned.isnan().all()
    with pytest.raises(TrainError, match=r"role 2, expected 0 to 1; rlvr.roles says how many"):
        Roles.of([[2]], [{}], turn[1:], 2)


def test_advantages_by_hand():
    """Episodes count in their order: b <- .5 b + .5 r of each role."""
    roles = Roles(torch.tensor([[1.0, -1.0], [2.0, NAN], [0.0, 3.0]]), torch.tensor([[0, 1], [0, -1], [1, 0]]))
    rolls = Rollouts(torch.ones(3, 2).long(), torch.tensor([2, 2, 2]), torch.zeros(3, 2), torch.ones(3).bool())
    baselines = RoleBaselines(2, 0.5)
    sampled = Sampled([], rolls, Scores(), torch.zeros(3), {}, 0.0, roles=roles)
    got = baselines.credit(sampled).advantages
    # role 0: 1 - 0, 2 - .5, 0 - 1.25; role 1: -1 - 0, -, 3 + .5
    assert got.tolist() == [[1.0, -1.0], [1.5, 0.0], [3.5, -1.25]]
    assert baselines.state.tolist() == [0, 0]  # until the step is done
    baselines.finish_step()
    assert baselines.state.tolist() == [0.625, 1.25]


def test_roles_against_the_group_by_hand():
    """Two groups of two episodes: each role against what it earned in the other; who did not speak has no part."""
    earned = torch.tensor([[1.0, -1.0], [3.0, NAN], [0.0, 3.0], [4.0, 5.0]])
    got = Roles(earned, torch.tensor([[0, 1, -1], [0, 0, -1], [1, 0, 0], [0, 1, -1]])).against_group(2)
    assert got.tolist() == [[-1, 0, 0], [1, 1, 0], [-1, -2, -2], [2, 1, 0]]


def test_a_step_against_the_group(tmp_path):
    """No running mean: nothing of one step reaches the next, but the weights."""
    Recipe([duel(steps=2, advantage="hierarchical_grpo", loss="gpg")]).run(llama(), TOKENIZER, tmp_path)
    lines = [line for line in log_of(tmp_path) if "loss" in line]
    assert {"reward/role 0", "reward/role 1"} <= lines[0].keys()
    assert lines[0]["advantage"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "hierarchical_grpo", "samples": 1}, "rlvr.samples: a group needs at least 2"),
        ({"advantage": "hierarchical_grpo", "role_decay": 0.5}, "rlvr.role_decay: .*keeps no running mean"),
        ({"advantage": "hierarchical_grpo", "credit": "episode"}, "set credit to role"),
        ({"advantage": "rloo"}, "rlvr.advantage: got 'rloo', but roles have running means"),
    ],
)
def test_what_does_not_go_with_it(options, message):
    with pytest.raises(TrainError, match=message):
        duel(**options).check()


def test_a_run_logs_both_sides_and_resumes_bit_for_bit(tmp_path):
    more = {"steps": 5, "save_every": 1, "samples": 3, "max_tokens": 60, "role_decay": 0.5}
    whole = weights(Recipe([duel(**more)]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([duel(**more)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(4))
    assert same(whole, weights(Recipe([duel(**more)]).run(llama(), TOKENIZER, tmp_path / "run")))
    lines = [line for line in log_of(tmp_path / "whole") if "loss" in line]
    assert {"reward/role 0", "reward/role 1"} <= lines[0].keys()
    assert lines == [
        {**line, **{k: v for k, v in other.items() if "second" in k or "per_s" in k}}
        for line, other in zip([n for n in log_of(tmp_path / "run") if "loss" in n], lines, strict=True)
    ]


def test_both_sides_learn(tmp_path):
    """Saying the word wins for either side, so it becomes likely in the first turn already."""
    stage = duel(
        steps=30, prompts=2, samples=16, data=EXAMPLES[:2], max_new_tokens=2, turns=2, role_decay=0.9, save_every=100
    )
    Recipe([stage]).run(llama(initializer_range=0.02), TOKENIZER, tmp_path)
    first = [value for _, value in steps_of(tmp_path, "reward/role 0")]
    assert sum(first[:3]) / 3 < 0
    assert sum(first[-3:]) / 3 > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": "rloo"}, "rlvr.advantage: .*running means"),
        ({"scale": "std"}, "rlvr.scale: .*running means"),
        ({"refill": 1}, "rlvr.refill: .*running means"),
        ({"role_decay": 1.5}, "rlvr.role_decay: expected 0 to 1"),
        ({"credit": "turn", "roles": 3}, "rlvr.roles: .*set credit to role"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        duel(**options).check()
