"""Episodes of several turns: what the environment says is read and not learned, credit goes to the turn that earned
it."""

import math
from typing import get_args

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    completion_logprob,
    killer,
    llama,
    log_of,
    rlvr,
    same,
    weights,
)
from tests.train.model.test_tokens import chat_tokenizer, ids_of
from warpup.train import Recipe, TrainError, Turn
from warpup.train.model.batch import collate
from warpup.train.rewards.reward_set import VERIFIER
from warpup.train.sampling.episodes import bridge, play, turn_advantages
from warpup.train.settings import Advantage

pytestmark = pytest.mark.usefixtures("one_thread")


class Asks:
    """Says `wait` after each turn, ends after a `knight`; a turn is worth its number of words."""

    def reset(self, example):
        return example["prompt"]

    def step(self, completion):
        words = completion.split()
        return Turn("wait wait", float(len(words)), "knight" in words, float("knight" in words))


class Second:
    """Pays for a `knight` as the first word of the second turn."""

    def reset(self, example):
        self.turn = 0
        return example["prompt"]

    def step(self, completion):
        self.turn += 1
        if self.turn == 1:
            return Turn("wait")
        right = float(completion.split()[:1] == ["knight"])
        return Turn(reward=right, done=True, correct=right)


def played(model, tokenizer=TOKENIZER, make=Asks, limit=500, turns=3, examples=EXAMPLES[:3]):
    return play(
        model, tokenizer, make, examples, turns=turns, ends=[tokenizer.eos_token_id, 5], copies=4, limit=limit,
        max_new_tokens=6, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_log_probs_turns_and_masks():
    """The tokens that the model drew have the log-probs of the whole text; those of the environment have no loss."""
    model = llama().eval()
    episodes = played(model)
    rolls, wait = episodes.rolls, ids_of(TOKENIZER, "wait", "wait")
    batch = collate(episodes.pairs, range(12), pad=0)
    assert torch.equal(batch.completion, rolls.tokens[rolls.learned()])
    torch.testing.assert_close(completion_logprob(model, batch), rolls.logp[rolls.learned()], atol=2e-5, rtol=1e-4)
    several = 0
    for n, (_, said, own) in enumerate(episodes.pairs):
        assert rolls.completion(n) == said
        turns = rolls.turn[n, : len(said)].tolist()
        assert [t >= 0 for t in turns] == own
        spoken = [token for token, mine in zip(said, own, strict=True) if not mine]
        assert spoken == wait * (len(episodes.texts[n]) - 1)
        several += bool(spoken)
        for t, text in enumerate(episodes.texts[n]):
            mine = [token for token, at in zip(said, turns, strict=True) if at == t]
            assert TOKENIZER.decode(mine, skip_special_tokens=True) == text
            assert episodes.rewards[n, t] == len(text.split())
        assert episodes.rewards[n, len(episodes.texts[n]) :].isnan().all()
        assert episodes.correct[n] == ("knight" in episodes.texts[n][-1].split())
    assert several > 0


def test_no_room_for_another_turn_ends_an_episode_unfinished():
    longest = max(len(TOKENIZER(example["prompt"])["input_ids"]) for example in EXAMPLES[:3])
    episodes = played(llama().eval(), limit=longest + 10)
    assert all(len(texts) == 1 for texts in episodes.texts)
    assert not episodes.rolls.finished.all()


def test_a_chat_goes_on_behind_what_was_said():
    chat = chat_tokenizer()
    words = ids_of(chat, "<think>", "U", "knave", "</answer>", "<think>", "A")
    prompt = [{"role": "user", "content": "A"}]
    assert bridge(chat, prompt, "knave", closed=True)[-6:] == words
    assert bridge(chat, prompt, "knave", closed=False)[0] == ids_of(chat, "</answer>")[0]
    assert bridge(chat, "A", "knave", closed=True) == ids_of(chat, "knave")
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}  # so does the first turn's prompt
    assert bridge(chat, prompt, "knave", thinks, closed=True)[-7:] == [*words, *ids_of(chat, "<think>")]
    chat.chat_template = "{% for m in messages[-1:] %}{{ m.content }} {% endfor %}"
    with pytest.raises(TrainError, match="changes earlier turns"):
        bridge(chat, prompt, "knave", closed=True)


def test_credit_of_a_turn_by_hand():
    """Returns to go against the group's at the same turn; an episode that is over counts for nothing there."""
    rewards = torch.tensor([[1.0, 2.0], [0.0, math.nan], [3.0, 0.0]])
    turn = torch.tensor([[0, 0, -1, 1], [0, -1, -1, -1], [0, -1, 1, 1]])

    def minus_mean(returns):
        known = returns[~returns.isnan()]
        return (returns - known.mean()).nan_to_num(0.0)

    got = turn_advantages(rewards, turn, minus_mean)
    first, second = [3 - 2, 0 - 2, 3 - 2], [2 - 1, 0, 0 - 1]
    want = [[first[0], first[0], 0, second[0]], [first[1], 0, 0, 0], [first[2], 0, second[2], second[2]]]
    assert got.tolist() == want


class Framed:
    """Builds its prompt around the example's."""

    def reset(self, example):
        assert "(" not in example["prompt"].split()[:1]  # the data's own, not one that was framed already
        return f"( {example['prompt']} )"

    def step(self, completion):
        return "", float(len(completion)), True  # a plain tuple will do


def test_each_episode_begins_with_the_example_as_it_is_in_the_data(tmp_path):
    data = [example for example in EXAMPLES if not example["prompt"].startswith("(")]
    Recipe([rlvr(environment=Framed, reward=VERIFIER, data=data, steps=2)]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize("advantage", get_args(Advantage))
def test_an_advantage_learns_from_episodes_or_is_refused_before_any_work(tmp_path, advantage):
    stage = rlvr(environment=Asks, reward=VERIFIER, advantage=advantage, turns=2, steps=1)
    if advantage in ("gdpo", "segment", "tree", "hierarchical_grpo"):
        with pytest.raises(TrainError, match=r"rlvr\.(advantage|environment): "):
            stage.check()
    else:
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
        assert "loss" in log_of(tmp_path)[-1]


def test_what_an_environment_raises_is_named(tmp_path):
    class Broken(Asks):
        def step(self, completion):
            return 1 / 0

    with pytest.raises(TrainError, match=r"environment: Broken.step failed on .*ZeroDivisionError: division by zero"):
        Recipe([rlvr(environment=Broken, reward=VERIFIER)]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize("answer", [None, "Again:", Turn(3), (), ("", 1.0, True, 1.0, "more")])
def test_what_is_no_turn_is_named(tmp_path, answer):
    class Odd(Asks):
        def step(self, completion):
            return answer

    with pytest.raises(TrainError, match=r"environment: Odd.step returned .*, expected a Turn, whose observation"):
        Recipe([rlvr(environment=Odd, reward=VERIFIER)]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize("reward", [None, math.inf, math.nan, {0: 1.0, 1: None}])
def test_an_episode_without_a_finite_reward_is_left_out(tmp_path, reward):
    class Unsure(Asks):
        def step(self, completion):
            return Turn("wait", float(len(completion)) if len(completion) % 3 else reward, True, None)

    stage = rlvr(environment=Unsure, reward=VERIFIER, roles=2, credit="role", steps=1)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert line["reward_errors"] > 0
    assert math.isfinite(line["loss"])
    assert math.isfinite(line["reward"])


@pytest.mark.parametrize("turn", [Turn("wait", "good"), Turn("wait", {0: []}), Turn("wait", 1.0, True, "yes")])
def test_what_is_no_reward_is_named(tmp_path, turn):
    class Odd(Asks):
        def step(self, completion):
            return turn

    with pytest.raises(TrainError, match=r"environment: Odd.step returned .*, expected numbers as reward and correct"):
        Recipe([rlvr(environment=Odd, reward=VERIFIER)]).run(llama(), TOKENIZER, tmp_path)


def test_an_environment_that_cannot_be_made_is_named(tmp_path):
    class Board(Asks):
        def __init__(self, size):
            self.size = size

    with pytest.raises(TrainError, match=r"environment: one could not be made, .*: TypeError: .*'size'"):
        Recipe([rlvr(environment=Board, reward=VERIFIER)]).run(llama(), TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())  # told before any work


@pytest.mark.parametrize("credit", ["episode", "turn"])
def test_the_second_turn_is_learned(tmp_path, credit):
    stage = rlvr(environment=Second, reward=VERIFIER, credit=credit, steps=30, prompts=4, samples=16, max_new_tokens=2)
    Recipe([stage]).run(llama(initializer_range=0.02), TOKENIZER, tmp_path)
    rewards = [line["reward"] for line in log_of(tmp_path) if "reward" in line]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.6


def test_killed_and_resumed_bit_for_bit(tmp_path):
    def stage():
        return rlvr(environment=Asks, reward=VERIFIER, turns=2, steps=3, save_every=1)

    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"environment": Asks}, "rlvr.reward: .*an environment gives the rewards"),
        ({"turns": 3}, "rlvr.turns: got 3, but there is no environment"),
        ({"environment": "nowhere.py:Env", "reward": VERIFIER}, "environment: no file nowhere.py"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        Recipe([rlvr(**options)]).run(llama(), TOKENIZER, tmp_path)
