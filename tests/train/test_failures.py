"""How the trainer fails: by name, counted, and without losing what was trained."""

import math

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    llama,
    rlvr,
    steps_of,
    warmup,
    weights,
)
from warpup.data import word_tokenizer
from warpup.train import Recipe, TrainError, load_model, newest_model
from warpup.train.optim import guarded_step
from warpup.train.recipe import locked
from warpup.train.rewards import load_reward, score

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tokenizer_without_pad(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(TrainError, match="no pad token"):
        Recipe([warmup()]).run(llama(), tokenizer, tmp_path)


def test_tokenizer_larger_than_the_model(tmp_path):
    with pytest.raises(TrainError, match=r"tokenizer has 41 tokens.*embedding 40 rows|do not fit"):
        Recipe([warmup()]).run(llama(vocab_size=len(TOKENIZER) - 1), TOKENIZER, tmp_path)


def test_nan_loss_is_counted_left_out_and_ends_the_run(tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENIZER.eos_token_id] = math.nan
        model.lm_head.weight[TOKENIZER.eos_token_id] = math.nan
    before = weights(model)
    with pytest.raises(TrainError, match=r"loss nan .* 5 steps in a row"):
        Recipe([warmup()]).run(model, TOKENIZER, tmp_path)
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in zip(before.values(), weights(model).values(), strict=True)
    )
    assert [n for _, n in steps_of(tmp_path, "nonfinite")] == [1, 2, 3, 4]


def test_guarded_step_refuses_an_infinite_gradient():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([math.inf, 0.0])
    assert guarded_step(optimizer, 1.0, 0.1, 1.0)[0] is False
    assert weight.tolist() == [1.0, 1.0]
    weight.grad = torch.tensor([3.0, 4.0])
    assert guarded_step(optimizer, 1.0, 0.5, 1.0) == (True, pytest.approx(5.0))
    torch.testing.assert_close(weight.detach(), torch.tensor([0.7, 0.6]))


def test_failing_rewards_are_counted_and_left_out(tmp_path):
    calls = iter(range(10**6))

    def flaky(completion, example):
        n = next(calls)
        if n % 4 == 0:
            raise KeyError("no such key")
        return math.inf if n % 4 == 1 else float(n % 4)

    Recipe([rlvr(steps=2, reward=flaky)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "reward_errors") == [(1, 6), (2, 12)]
    assert [reward for _, reward in steps_of(tmp_path, "reward")] == [2.5, 2.5]
    assert {message for _, message in steps_of(tmp_path, "message")} == {"KeyError: 'no such key'", "reward is inf"}
    assert all(math.isfinite(loss) for _, loss in steps_of(tmp_path, "loss"))


def test_no_usable_group_is_counted_and_ends_the_run(tmp_path):
    with pytest.raises(TrainError, match=r"no usable group in 3 steps.*mean 0\.5"):
        Recipe([rlvr(reward=lambda completion, example: 0.5, patience=3)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "skipped") == [(1, 1), (2, 2)]
    assert steps_of(tmp_path, "dropped_groups") == [(1, 3), (2, 6)]


def test_folder_of_another_run_is_refused(tmp_path):
    Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"holds another run .*stages\[0\].lr: there 0.01, now 0.5.*another folder"):
        Recipe([warmup(steps=1, lr=0.5)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"model.weights"):
        Recipe([warmup(steps=1)]).run(llama(seed=1), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"data: there 40 examples"):
        Recipe([warmup(steps=1, data=EXAMPLES[:-1])]).run(llama(), TOKENIZER, tmp_path)


def test_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(TrainError, match="another process is training"):
        Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (warmup(data="nowhere.jsonl"), r"warmup.data: .*nowhere.jsonl"),
        (warmup(data=[]), "warmup.data: no examples"),
        (warmup(data=[{"prompt": "A"}]), "example 0 needs a prompt and a completion"),
        (rlvr(data=[{"prompt": ""}]), "a prompt has no tokens"),
        (rlvr(max_new_tokens=5000), r"longest prompt with max_new_tokens has 50\d\d tokens, the model takes at most"),
        (warmup(data=[EXAMPLES[0] | {"completion": "A " * 3000}]), "longest example has 30.. tokens"),
        (rlvr(loss="gpro"), "rlvr.loss: expected one of .*grpo.*, got 'gpro'"),
        (rlvr(sampler="dump"), "40 of 40 examples have no 'category' column"),
        (rlvr(reward="nomodule.here:f"), "cannot import nomodule.here"),
        (rlvr(reward="warpup.data:nothing"), "warpup.data has no function nothing"),
        (rlvr(reward="nowhere.py:f"), "no file nowhere.py"),
        (rlvr(reward="f"), "expected `module:function` or `file.py:function`, got 'f'"),
    ],
)
def test_wrong_data_and_rewards_are_named(stage, message, tmp_path):
    with pytest.raises(TrainError, match=message):
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path)


def test_reward_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def good(completion, example):\n    return len(completion) + example['bonus']\n")
    function = load_reward(f"{tmp_path / 'mine.py'}:good")
    assert score(function, ["ab", "abc"], [{"bonus": 1}] * 2).rewards == [3.0, 4.0]
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(TrainError, match=r"cannot import .*ModuleNotFoundError"):
        load_reward(f"{tmp_path / 'broken.py'}:good")


def test_missing_models_are_named(tmp_path):
    with pytest.raises(TrainError, match="no folder"):
        newest_model(tmp_path / "nothing")
    with pytest.raises(TrainError, match="holds no model and no checkpoint"):
        newest_model(tmp_path)
    with pytest.raises(TrainError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TrainError, match="cannot load the model"):
        load_model(tmp_path)
