"""Actor and critic: advantages and value loss by hand, resuming, and a head that learns to foretell rewards."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, length_reward, llama, log_of, rlvr, same, weights
from warpup.advantage.gae import reference_gae
from warpup.train import Recipe, TrainError, Turn
from warpup.train.model.heads import Head
from warpup.train.model.value_head import ValueHead
from warpup.train.rewards.reward_set import Scores
from warpup.train.sampling.groups import Sampled
from warpup.train.sampling.rollouts import Rollouts
from warpup.train.sampling.rounds import at_turn_ends
from warpup.train.stages.critic import Critic, token_rewards

pytestmark = pytest.mark.usefixtures("one_thread")


def actor(**options):
    return rlvr(**{"advantage": "gae", "loss": "ppo"} | options)


def test_two_states_by_hand(tmp_path, monkeypatch):
    """One token in each of two states (prompts), rewards 1 and 0, values .5 and .25: advantages are reward - value,
    whitened over the four; half the squared error is what the head learns from."""
    lines, step = [], torch.optim.AdamW.step
    prompts = {EXAMPLES[0]["prompt"]: 0.5, EXAMPLES[1]["prompt"]: 0.25}
    pays = iter([1.0, 0.0, 1.0, 1.0])

    def values(critic, run, experience, rows):
        texts = [TOKENIZER.decode(experience.pairs[n][0]) for n in rows]
        known = [next(v for p, v in prompts.items() if TOKENIZER.decode(TOKENIZER(p)["input_ids"]) == t) for t in texts]
        return torch.tensor(known)[:, None] * experience.learned

    seen = {}
    monkeypatch.setattr(Critic, "values", values)
    credit = Critic.credit
    monkeypatch.setattr(Critic, "credit", lambda *a: seen.setdefault("credit", credit(*a)))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda o, *a: lines.append(o.param_groups[1]["lr"]) or step(o, *a))
    stage = actor(
        data=EXAMPLES[:2], reward=lambda text, row: next(pays), steps=1, prompts=2, samples=2, max_new_tokens=1,
        gamma=0.9, lam=0.5, value_clip=None, value_lr=0.02,
    )  # fmt: skip
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    got = seen["credit"]
    first = got.tensors["values"][0, 0].item()
    v = torch.tensor([first, first, 0.75 - first, 0.75 - first])
    raw = torch.tensor([1.0, 0.0, 1.0, 1.0]) - v
    torch.testing.assert_close(got.advantages[:, 0], (raw - raw.mean()) / (raw.var() + 1e-8).sqrt())
    assert got.tensors["returns"][:, 0].tolist() == [1.0, 0.0, 1.0, 1.0]
    line = next(line for line in log_of(tmp_path) if "loss" in line)
    # The head itself begins as 0, so its first errors are the returns.
    assert line["value_loss"] == pytest.approx(0.5 * 3 / 4)
    returns = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert line["explained_variance"] == pytest.approx(1 - (returns - v).var().item() / returns.var().item(), rel=1e-5)
    assert lines == [0.02]


def test_values_discount_and_holes_are_those_of_gae():
    """Three tokens of which the middle one is the environment's: it neither decays nor adds."""
    tokens = torch.ones(2, 3, dtype=torch.long)
    hole = torch.tensor([[True, False, True], [True, True, True]])
    rolls = Rollouts(
        tokens, torch.tensor([3, 2]), torch.zeros(2, 3), torch.ones(2).bool(), sampled=hole, turn=torch.zeros(2, 3)
    )
    scores = Scores(rewards=[2.0, math.nan])
    sampled = Sampled([([1], [1, 1, 1], [True, False, True]), ([1], [1, 1])], rolls, scores, torch.zeros(2), {}, 0.0)
    assert token_rewards(sampled).tolist() == [[0, 0, 2], [0, 0, 0]]
    critic = Critic(Head(llama()), actor(gamma=0.5, lam=0.5), None)
    v = torch.tensor([[0.1, 9.0, 0.4], [0.3, 0.2, 0.0]])
    critic.values = lambda *a: v
    got = critic.credit(None, sampled)
    want = reference_gae(token_rewards(sampled), v, hole & torch.tensor([[True], [False]]), gamma=0.5, lam=0.5)
    torch.testing.assert_close(got.tensors["returns"], want[1])
    assert got.tensors["returns"][0].tolist() == pytest.approx([0.5 * 0.4 + 0.25 * 1.6, 0, 2.0])
    assert got.advantages[1].tolist() == [0, 0, 0]  # no reward, nothing learned
    assert got.advantages[0].sum().item() == pytest.approx(0, abs=1e-6)


def test_the_value_loss_is_clipped_as_in_ppo():
    critic = Critic(Head(llama()), actor(value_clip=0.2, value_coef=0.3), None)
    critic.value.bias.data.fill_(1.0)
    hidden = torch.randn(4, 32, requires_grad=True)
    critic.value.weight.data.normal_()
    old, returns = torch.tensor([1.0, 0.0, 0.5, 2.0]), torch.tensor([1.0, 0.0, 3.0, -1.0])
    loss, metrics = critic.loss(hidden, old, returns, 8)
    h = hidden.detach().clone().requires_grad_()
    v = critic.value(h)
    held = old + (v - old).clamp(-0.2, 0.2)
    want = 0.5 * torch.maximum((v - returns) ** 2, (held - returns) ** 2).sum() / 8
    assert loss.item() == pytest.approx(want.item())
    assert metrics["value_clip_fraction"].item() == pytest.approx(
        ((held - returns) ** 2 > (v - returns) ** 2).float().mean().item()
    )
    loss.backward()
    of_head = critic.value.weight.grad.clone()
    critic.value.zero_grad()
    want.backward()
    torch.testing.assert_close(hidden.grad, 0.3 * h.grad)  # the model's share
    torch.testing.assert_close(of_head, critic.value.weight.grad)  # the head's is whole
    apart = Critic(Head(llama()), actor(value_coef=0.0), None)
    apart.loss(hidden.detach().requires_grad_(), old, returns, 8)[0].backward()


def test_the_head_learns_what_a_prompt_is_worth(tmp_path):
    """The reward depends on the prompt alone, which group baselines cannot use: the values come to foretell it. The
    policy hardly moves."""
    stage = actor(
        reward=lambda text, row: row["worth"], steps=40, prompts=3, samples=4,
        data=[{"prompt": word, "worth": worth} for word, worth in (("knight", 1.0), ("knave", 0.0), ("wait", 0.5))],
        max_new_tokens=2, lr=1e-9, value_lr=0.1, value_clip=None, lam=1.0, inner_epochs=5, save_every=100,
    )  # fmt: skip
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    explained = [line["explained_variance"] for line in log_of(tmp_path) if "explained_variance" in line]
    assert abs(explained[0]) < 1e-6
    assert sum(explained[-5:]) / 5 > 0.7


@pytest.mark.parametrize(
    "options", [{}, {"kl_coef": 0.1, "kl_in_reward": True, "reference_sync": 2, "value_coef": 0.5}], ids=["head", "all"]
)
def test_killed_and_resumed_bit_for_bit(tmp_path, options):
    """What the head says of the last steps is in the log, so a head that was not restored would show."""
    more = {"steps": 5, "save_every": 1, "inner_epochs": 2, "value_lr": 0.05, **options}
    whole = weights(Recipe([actor(**more)]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([actor(**more)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(4))
    assert same(whole, weights(Recipe([actor(**more)]).run(llama(), TOKENIZER, tmp_path / "run")))
    said = [
        [(line["value_loss"], line["explained_variance"]) for line in log_of(tmp_path / name) if "value_loss" in line]
        for name in ("whole", "run")
    ]
    assert said[0] == said[1]
    assert said[0][4][0] < said[0][0][0]


def test_how_a_step_is_cut_changes_nothing(tmp_path):
    results = {}
    for limit in (16384, 40):
        stage = actor(steps=2, max_tokens=limit, rows=5, lr=1e-3, inner_epochs=2, value_coef=0.5, minibatches=2)
        model = Recipe([stage]).run(llama(), TOKENIZER, tmp_path / str(limit))
        results[limit] = weights(model), [n["value_loss"] for n in log_of(tmp_path / str(limit)) if "value_loss" in n]
    assert results[40][1] == pytest.approx(results[16384][1], rel=1e-3)
    for name, value in results[16384][0].items():
        # Eight steps of 1e-3: AdamW makes much of the rounding where a gradient is nearly 0.
        torch.testing.assert_close(results[40][0][name], value, rtol=1e-3, atol=2e-4)


def test_the_kl_is_a_cost_of_each_token(tmp_path, monkeypatch):
    """Two steps: in the second the policy has left its reference, and the rewards are less by the k1 KL of each
    token."""
    got, credit = [], Critic.credit
    monkeypatch.setattr(Critic, "credit", lambda *a: got.append(credit(*a)) or got[-1])
    stage = actor(steps=2, kl_coef=0.7, kl_in_reward=True, lr=1e-2, lam=1.0, gamma=1.0, value_lr=1e-12)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    second, before = got[1], llama()
    row = 0
    prompt, completion = second.pairs[row]
    with torch.no_grad():
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    ref = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None])[:, 0]
    cost = 0.7 * (second.rolls.logp[row, : len(completion)] - ref)
    want = second.scores.rewards[row] - cost.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(second.tensors["returns"][row, : len(completion)], want, rtol=1e-3, atol=1e-4)
    assert cost.abs().max() > 1e-3
    lines = [line for line in log_of(tmp_path) if "ref_kl" in line]
    assert abs(lines[1]["ref_kl"]) > 1e-5  # measured, though not in the loss


class TwoTurns:
    def reset(self, example):
        return example["prompt"]

    def step(self, completion):
        return Turn(" wait ", reward=length_reward(completion, None))


def test_turns_are_rewarded_where_they_end(tmp_path):
    nan = math.nan
    turn = torch.tensor([[0, 0, -1, 1, 1], [0, -1, -1, -1, -1]])
    assert at_turn_ends(torch.tensor([[1.0, 2.0], [3.0, nan]]), turn) == [[0, 1, 0, 0, 2], [3, 0, 0, 0, 0]]
    stage = actor(environment=TwoTurns, reward="warpup.data:verify", steps=2, samples=1, max_new_tokens=4)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    assert all(math.isfinite(line["value_loss"]) for line in log_of(tmp_path) if "value_loss" in line)


def test_a_head_is_as_wide_as_it_need_be_in_float32():
    head = ValueHead(16)
    head.weight.data.fill_(2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = head(torch.full((3, 16), 1 + 2**-8))
    assert value.dtype == torch.float32
    assert value.tolist() == pytest.approx([8 * (1 + 2**-8)] * 3, rel=1e-7)


def test_discount_reaches_reinforce_pp(tmp_path, monkeypatch):
    seen = {}
    from warpup.train.sampling import rounds

    plain = rounds.reinforce_pp
    monkeypatch.setattr(rounds, "reinforce_pp", lambda *a, **k: (seen.update(k), plain(*a, **k))[1])
    Recipe([rlvr(advantage="reinforce_pp", gamma=0.5, steps=1)]).run(llama(), TOKENIZER, tmp_path)
    assert seen["gamma"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": None, "lam": 0.9}, "rlvr.lam: got 0.9, but there is no value head; set advantage to gae"),
        ({"advantage": "rloo", "gamma": 0.9}, "rlvr.gamma: .*gae and reinforce_pp discount"),
        ({"lam": 1.5}, "rlvr.lam: expected 0 to 1, got 1.5"),
        ({"scale": "std"}, "rlvr.scale: .*'gae' has its own"),
        ({"refill": 2}, "rlvr.refill: .*rewards are all alike too"),
        ({"kl_in_reward": True}, "rlvr.kl_in_reward: .*kl_coef is 0"),
        ({"kl_in_reward": True, "kl_coef": 0.1, "kl": "k2"}, "rlvr.kl: .*the KL in the reward is k1"),
        ({"value_clip": 0.0}, "rlvr.value_clip: expected more than 0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        replace(actor(), **options).check()
