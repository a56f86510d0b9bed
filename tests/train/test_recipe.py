"""A recipe resumes bit for bit, in its own folder only, and its stages follow one another."""

import inspect
import json

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    killer,
    llama,
    log_of,
    rlvr,
    same,
    steps_of,
    warmup,
    weights,
)
from warpup.data import word_tokenizer
from warpup.train import (
    RLVR,
    Distill,
    Preference,
    Recipe,
    StepReward,
    TrainError,
    Warmup,
    checkpoint,
    load_model,
    newest_model,
)

pytestmark = pytest.mark.usefixtures("one_thread")
TWO_KINDS = [{**example, "answer": str(i % 2)} for i, example in enumerate(EXAMPLES)]


@pytest.mark.parametrize("stage", [Warmup, RLVR, Preference, Distill, StepReward])
def test_data_are_a_stages_first_argument(stage):
    assert next(iter(inspect.signature(stage).parameters)) == "data"


def test_warmup_then_rlvr_learns_from_both(tmp_path):
    model = llama()
    Recipe([warmup(), rlvr(steps=2)]).run(model, TOKENIZER, tmp_path)
    log = [line for line in log_of(tmp_path)]
    assert [line["stage"] for line in log] == ["1-warmup"] * 8 + ["2-rlvr"] * 2
    assert not same(weights(load_model(tmp_path / "1-warmup" / "step-00000008")[0]), weights(model))
    assert same(weights(load_model(newest_model(tmp_path))[0]), weights(model))


def test_tokenizer_without_pad(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(TrainError, match="no pad token"):
        Recipe([warmup()]).run(llama(), tokenizer, tmp_path)


def test_tokenizer_larger_than_the_model(tmp_path):
    with pytest.raises(TrainError, match=r"tokenizer has 41 tokens.*embedding 40 rows|do not fit"):
        Recipe([warmup()]).run(llama(vocab_size=len(TOKENIZER) - 1), TOKENIZER, tmp_path)


def test_folder_of_another_run_is_refused(tmp_path):
    Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"1-warmup holds 1 steps of other settings \(lr: there 0.01, now 0.5\)"):
        Recipe([warmup(steps=1, lr=0.5)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"holds another run .*model.weights.*another folder"):
        Recipe([warmup(steps=1)]).run(llama(seed=1), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"data: there 40 examples"):
        Recipe([warmup(steps=1, data=EXAMPLES[:-1])]).run(llama(), TOKENIZER, tmp_path)


def test_the_model_that_a_run_starts_from_is_not_written_over(tmp_path):
    llama().save_pretrained(tmp_path / "model")
    with pytest.raises(TrainError, match=r"model is there already and of no run, .*: choose another folder"):
        Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)
    assert same(weights(LlamaForCausalLM.from_pretrained(tmp_path / "model")), weights(llama()))


def test_a_stage_is_compared_with_its_own_checkpoint_only(tmp_path):
    """What a later stage is set to may change until it has computed something; what is not computed with, always."""
    Recipe([warmup(steps=2)]).run(llama(), TOKENIZER, tmp_path)
    Recipe([warmup(steps=2, max_tokens=99, save_every=1), rlvr(lr=1e-3, steps=2)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"2-rlvr holds 2 steps of other settings \(lr: there 0.001, now 0.002\)"):
        Recipe([warmup(steps=2), rlvr(lr=2e-3, steps=2)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"1-warmup holds 2 steps of other settings \(steps: there 2, now 3\)"):
        Recipe([warmup(steps=3), rlvr()]).run(llama(), TOKENIZER, tmp_path)


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path):
    Recipe([warmup(lr_schedule="constant")]).run(llama(), TOKENIZER, tmp_path)
    file = tmp_path / "1-warmup" / "stage.json"
    settings = json.loads(file.read_text())
    del settings["objective"], settings["betas"]
    file.write_text(json.dumps(settings))
    with pytest.raises(TrainError, match=r"other settings \(objective: there nll, now dco; attempts: there 1, now 2\)"):
        Recipe([warmup(lr_schedule="constant", objective="dco", attempts=2)]).run(llama(), TOKENIZER, tmp_path)
    Recipe([warmup(lr_schedule="constant", steps=9)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "loss")[-1][0] == 9


def test_more_steps_under_a_constant_rate(tmp_path):
    """A finished run goes on, to the bits of one that was meant to be as long from the beginning."""
    long = Recipe([rlvr(steps=4)]).run(llama(), TOKENIZER, tmp_path / "long")
    Recipe([rlvr(steps=2)]).run(llama(), TOKENIZER, tmp_path / "short")
    more = Recipe([rlvr(steps=4)]).run(llama(), TOKENIZER, tmp_path / "short")
    assert same(weights(more), weights(long))
    assert same(weights(LlamaForCausalLM.from_pretrained(tmp_path / "short" / "model")), weights(long))
    with pytest.raises(TrainError, match="steps: there 4, now 3"):
        Recipe([rlvr(steps=3)]).run(llama(), TOKENIZER, tmp_path / "short")


def test_a_model_of_fewer_steps_is_not_taken_for_the_result(tmp_path, monkeypatch):
    """Killed behind the last checkpoint of a run that was made longer, before its model is written."""
    Recipe([rlvr(steps=1)]).run(llama(), TOKENIZER, tmp_path)

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_model", killed)
        with pytest.raises(Killed):
            Recipe([rlvr(steps=2)]).run(llama(), TOKENIZER, tmp_path)
    assert newest_model(tmp_path).name == "step-00000002"
    model = Recipe([rlvr(steps=2)]).run(llama(), TOKENIZER, tmp_path)
    assert same(weights(LlamaForCausalLM.from_pretrained(tmp_path / "model")), weights(model))


def test_a_run_that_cannot_be_made_longer_keeps_its_model(tmp_path):
    model = Recipe([rlvr(steps=1)]).run(llama(), TOKENIZER, tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "elsewhere")  # on another disk, say
    (tmp_path / "run" / "model").symlink_to(tmp_path / "elsewhere")
    weight = next((tmp_path / "run" / "1-rlvr" / "step-00000001").glob("*.safetensors"))
    whole = weight.read_bytes()
    weight.write_bytes(whole[:-8])
    with pytest.raises(TrainError, match="step-00000001"):
        Recipe([rlvr(steps=2)]).run(llama(), TOKENIZER, tmp_path / "run")
    assert same(weights(LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model")), weights(model))

    weight.write_bytes(whole)
    model = Recipe([rlvr(steps=2)]).run(llama(), TOKENIZER, tmp_path / "run")
    assert same(weights(LlamaForCausalLM.from_pretrained(tmp_path / "run" / "model")), weights(model))
    assert (tmp_path / "elsewhere" / "config.json").is_file()


def test_every_stage_is_checked_before_the_first_begins(tmp_path):
    trained = []
    with pytest.raises(TrainError, match="longest prompt with max_new_tokens"):
        Recipe([warmup(), rlvr(max_new_tokens=5000)]).run(
            llama(), TOKENIZER, tmp_path, report=lambda *a: trained.append(a)
        )
    assert not trained
    assert not (tmp_path / "1-warmup").exists()


def test_out_of_memory_names_the_settings(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr("warpup.train.stages.rlvr.policy_step", full)
    with pytest.raises(TrainError, match=r"lower max_tokens .* or rows .*same command goes on.*Tried to allocate"):
        Recipe([rlvr()]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (warmup(data="nowhere.jsonl"), r"warmup.data: .*nowhere.jsonl"),
        (warmup(data=[]), "warmup.data: no examples"),
        (warmup(data=[{"prompt": "A"}]), "example 0 needs a prompt and a completion"),
        (rlvr(data=[{"prompt": ""}]), "a prompt has no tokens"),
        (rlvr(max_new_tokens=5000), r"longest prompt with max_new_tokens has 50\d\d tokens, the model takes at most"),
        (warmup(data=[EXAMPLES[0] | {"completion": "A " * 3000}]), "longest example has 30.. tokens"),
        (rlvr(scale="batch_std", refill=2), "rlvr.refill: got 2, but batch_std is the deviation of all that a step"),
        (rlvr(loss="gpro"), "rlvr.loss: expected one of .*grpo.*, got 'gpro'"),
        (
            rlvr(words="wait"),
            "rlvr.words: got 'wait', but with schedule 'plain' no schedule acts on words; leave it out",
        ),
        (rlvr(schedule="x.json", words="wait"), "with schedule 'x.json' a schedule's file has its own words"),
        (rlvr(category="level"), "rlvr.category: got 'level', but the uniform sampler reads no category"),
        (rlvr(sampler="thompson"), "rlvr.sampler: expected one of uniform, sec, dump, .*, got 'thompson'"),
        (rlvr(sampler="aioli"), "rlvr.sampler: aioli learns from losses, which rlvr does not give"),
        (warmup(sampler="pass_rate"), "warmup.sampler: pass_rate learns from correct and rewards, which warmup does"),
        (
            warmup(sampler="rs2", category="level"),
            "warmup.category: got 'level', but the rs2 sampler reads no category",
        ),
        (warmup(sampler="rs2:share=.001"), "warmup.sampler: share: 0.001 of 40 examples is not one"),
        (warmup(sampler=7), "warmup.sampler: expected a name, or an object with next, observe"),
        (
            rlvr(loss="sapo", clip_ratio=(0.1, 0.2), inner_epochs=2),
            "rlvr.clip_ratio: loss 'sapo' clips no ratio; leave",
        ),
        (
            rlvr(clip_ratio=(0.1, 0.2)),
            "rlvr.clip_ratio: .* every ratio is 1, nothing is clipped; leave it out or raise",
        ),
        (rlvr(clip_ratio=(-0.1, 0.2), inner_epochs=2), r"rlvr\.clip_ratio: expected two numbers of at least 0"),
        (rlvr(dual_clip=3.0), "rlvr.dual_clip: got 3.0, but .* nothing is clipped; leave it out or raise"),
        (rlvr(kl_coef=0.1, reference_sync=0), "rlvr.reference_sync: expected more than 0, got 0"),
        (rlvr(normalizer="batch"), r"rlvr\.normalizer: expected one of token, sequence"),
        (rlvr(baseline="medium"), "rlvr.baseline: expected one of mean, leave_one_out"),
        (rlvr(balance=0.1), "rlvr.balance: got 0.1, but LlamaForCausalLM has no routed experts; leave it out"),
        (warmup(balance=0.1), "warmup.balance: got 0.1, but LlamaForCausalLM has no routed experts; leave it out"),
        (warmup(clip=-1.0), "warmup.clip: expected at least 0, got -1.0"),
        (warmup(steps=0), "warmup.steps: expected more than 0, got 0"),
        (warmup(limit=0), "warmup.limit: expected at least 1, or none for all, got 0"),
        (
            warmup(completion="text"),
            "warmup.completion: got 'text', but a list of examples is read by the keys 'prompt'",
        ),
        (rlvr(answer="solution"), "rlvr.answer: got 'solution', but a list of examples is read by the keys 'prompt'"),
        (rlvr(patience=0), "rlvr.patience: expected more than 0, got 0"),
        (rlvr(samples=1), "rlvr.samples: a group needs at least 2 completions, got 1"),
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


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        (warmup(), 5),
        (warmup(sampler="aioli:every=12,rounds=2,steps=2", category="answer", data=TWO_KINDS), 7),
        (rlvr(), 3),
        (rlvr(sampler="pass_rate"), 3),
        (rlvr(inner_epochs=2, kl_coef=0.1, sampler="sec", category="answer"), 5),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(stage, at, tmp_path):
    whole, halved = llama(), llama()
    Recipe([stage]).run(whole, TOKENIZER, tmp_path / "whole", seed=7)
    with pytest.raises(Killed):
        Recipe([stage]).run(halved, TOKENIZER, tmp_path / "halved", seed=7, report=killer(at))
    torch.rand(5)  # whatever else the process drew
    halved = llama()
    Recipe([stage]).run(halved, TOKENIZER, tmp_path / "halved", seed=7)
    assert same(weights(whole), weights(halved))
    assert steps_of(tmp_path / "whole", "loss") == steps_of(tmp_path / "halved", "loss")  # every step once, same value
    assert len(steps_of(tmp_path / "halved", "loss")) == stage.steps


def test_killed_between_stages_starts_the_second_from_the_first(tmp_path):
    whole, halved = llama(), llama()
    recipe = Recipe([warmup(), rlvr(kl_coef=0.1)])  # KL to the warmed model, not to the resumed one
    recipe.run(whole, TOKENIZER, tmp_path / "whole")
    for at in (8, 5):
        with pytest.raises(Killed):
            recipe.run(llama(), TOKENIZER, tmp_path / "halved", report=killer(at))
    recipe.run(halved, TOKENIZER, tmp_path / "halved")
    assert same(weights(whole), weights(halved))


def test_a_finished_run_is_only_loaded(tmp_path):
    model, again = llama(), llama()
    Recipe([warmup()]).run(model, TOKENIZER, tmp_path)
    Recipe([warmup()]).run(again, TOKENIZER, tmp_path, report=killer(1))
    assert same(weights(model), weights(again))
    assert not same(weights(model), weights(llama()))
