"""Reward models: a step equals a computation by hand, both losses learn, resuming, and as a reward of RLVR."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, rlvr, same, steps_of, weights
from warpup.rewards import reward_model
from warpup.train import LoRA, Recipe, StepReward, TrainError, checkpoint, load_model
from warpup.train.config import TrainConfig
from warpup.train.config_file import fill
from warpup.train.model.lora import add_adapters
from warpup.train.model.reward_model import load_reward_model, split_steps, step_ends
from warpup.train.rewards.reward_set import RewardSet

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = [["knight says yes", "wait", "knave"], ["knave", "no wait knight"], ["back"], ["knight", "not", "ok ok", "bad"]]
SOLUTIONS = [
    {
        "prompt": EXAMPLES[n]["prompt"],
        "completions": STEPS[n % 4],
        "labels": ["knight" in step for step in STEPS[n % 4]],
    }
    for n in range(8)
]
PAIRS = [
    {"prompt": EXAMPLES[n]["prompt"], "chosen": "knight " * (1 + n % 3) + "ok", "rejected": "knave " * (1 + n % 4)}
    for n in range(8)
]


OUTCOMES = [solution | {"labels": 0.5 * n} for n, solution in enumerate(SOLUTIONS)]


def stage(**options):
    data = {"bradley_terry": PAIRS, "progress": OUTCOMES}.get(options.get("loss"), SOLUTIONS)
    settings = {"data": data, "steps": 4, "batch_size": 8, "lr": 1e-3, "value_lr": 3e-2, "lr_warmup": 0}
    more = {"save_every": 2, "lr_schedule": "constant"} | ({} if "loss" in options else {"separator": "."})
    return StepReward(**settings | more | options)


def trained(folder, **options):
    Recipe([stage(**options)]).run(llama(), TOKENIZER, folder)
    return folder / "1-stepreward" / "reward"


def scores_by_hand(judge, prompt, texts):
    """The score behind each text, the texts one after the other."""
    ids = TOKENIZER(prompt)["input_ids"]
    found = []
    for text in texts:
        ids = ids + TOKENIZER(text, add_special_tokens=False)["input_ids"]
        hidden = judge.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        found.append(hidden @ judge.value.weight / 32**0.5 + judge.value.bias)
    return torch.stack(found)


def of_solution(judge, solution):
    return scores_by_hand(judge, solution["prompt"], [f"{step} ." for step in solution["completions"]])


def test_the_second_step_on_steps_is_that_of_a_computation_by_hand(tmp_path):
    """With the weights of the first, in pieces of a row each: the mean over labels of the cross-entropy."""
    judge = load_reward_model(trained(tmp_path / "one", steps=1))
    trained(tmp_path / "two", steps=2, max_tokens=1)
    with torch.no_grad():
        logits = torch.cat(
            [scores_by_hand(judge, s["prompt"], [f"{t} ." for t in s["completions"]]) for s in SOLUTIONS]
        )
    labels = torch.tensor([float(label) for s in SOLUTIONS for label in s["labels"]])
    lines = [line for line in log_of(tmp_path / "two") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(math.log(2))  # the head begins as 0
    assert lines[1]["loss"] == pytest.approx(binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-4)
    assert lines[1]["accuracy"] == pytest.approx(((logits > 0) == (labels > 0.5)).float().mean().item())
    assert lines[1]["loss"] < lines[0]["loss"]


def test_the_second_step_on_progress_is_that_of_a_computation_by_hand(tmp_path):
    """The squared error of the sum over a solution's steps; as a reward, each step's own number."""
    folder = trained(tmp_path / "one", steps=1, loss="progress", separator=".")
    trained(tmp_path / "two", steps=2, loss="progress", separator=".", max_tokens=1)
    judge = load_reward_model(folder)
    with torch.no_grad():
        scores = [of_solution(judge, solution) for solution in OUTCOMES]
    wanted = torch.tensor([solution["labels"] for solution in OUTCOMES])
    lines = [line for line in log_of(tmp_path / "two") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(wanted.square().mean().item())  # the head begins as 0
    off = torch.stack([row.sum() for row in scores]) - wanted
    assert lines[1]["loss"] == pytest.approx(off.square().mean().item(), rel=1e-4)
    assert lines[1]["error"] == pytest.approx(off.abs().mean().item(), rel=1e-4)
    text = " . ".join(STEPS[0])
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    (row,) = reward_model([text], OUTCOMES[:1], [ids], [True], folder=str(folder), credit="step")
    assert [n for n in row if n] == pytest.approx(scores[0].tolist(), rel=1e-4)
    (whole,) = reward_model([text], OUTCOMES[:1], [ids], [True], folder=str(folder))
    assert whole == pytest.approx(scores[0].sum().item(), rel=1e-4)
    with pytest.raises(ValueError, match="scores progress: take credit completion or step"):
        reward_model([text], OUTCOMES[:1], [ids], [True], folder=str(folder), credit="progress")
    with pytest.raises(TrainError, match=r"example 0: expected as labels the number that the whole got, got \["):
        trained(tmp_path / "bad", loss="progress", data=SOLUTIONS, separator=".")


def test_the_second_step_on_pairs_is_that_of_a_computation_by_hand(tmp_path):
    options = {"loss": "bradley_terry", "margin": 0.3, "center_coef": 0.1}
    judge = load_reward_model(trained(tmp_path / "one", steps=1, **options))
    trained(tmp_path / "two", steps=2, max_tokens=1, **options)
    with torch.no_grad():
        chosen, rejected = (
            torch.cat([scores_by_hand(judge, pair["prompt"], [f"{pair[side]} <eos>"]) for pair in PAIRS])
            for side in ("chosen", "rejected")
        )
    want = -logsigmoid(chosen - rejected - 0.3).mean() + 0.1 * (chosen + rejected).square().mean()
    lines = [line for line in log_of(tmp_path / "two") if "loss" in line]
    assert lines[1]["loss"] == pytest.approx(want.item(), rel=1e-4)
    assert lines[1]["accuracy"] == (chosen > rejected).float().mean().item()


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_it_learns_to_tell(tmp_path, loss):
    more = {"separator": "."} if loss == "bce" else {}
    trained(tmp_path, loss=loss, steps=25, lr=3e-3, save_every=100, **more)
    assert steps_of(tmp_path, "accuracy")[-1][1] == 1.0
    losses = [value for _, value in steps_of(tmp_path, "loss")]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_killed_and_resumed_bit_for_bit(tmp_path, loss):
    more = {"loss": loss, "steps": 5, "save_every": 1, "batch_size": 4}
    heads = [load_file(trained(tmp_path / "whole", **more) / "score.safetensors")]
    with pytest.raises(Killed):
        Recipe([stage(**more)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(4))
    folder = trained(tmp_path / "run", **more)
    heads.append(load_file(folder / "score.safetensors"))
    assert same(*heads)
    assert heads[0]["weight"].abs().sum() > 0
    models = [load_reward_model(tmp_path / name / "1-stepreward" / "reward").model for name in ("whole", "run")]
    assert same(*map(weights, models))


def test_of_adapters(tmp_path):
    pytest.importorskip("peft")
    checkpoint.save_weights(llama(), TOKENIZER, tmp_path)
    model, tokenizer = load_model(tmp_path)
    Recipe([stage()]).run(add_adapters(model, LoRA(r=2)), tokenizer, tmp_path / "run")
    judge = load_reward_model(tmp_path / "run" / "1-stepreward" / "reward")
    pairs = [judge.steps(SOLUTIONS[0], SOLUTIONS[0]["completions"])]
    with torch.no_grad():
        ids = torch.tensor([pairs[0][0] + pairs[0][1][:-1]])
        hidden = model.model(ids).last_hidden_state[0, -1]  # the model under the adapters has them in it
        want = hidden @ judge.value.weight / 32**0.5 + judge.value.bias
    assert judge.score(pairs, 100)[0][-1] == pytest.approx(want.item(), rel=1e-4)


def test_the_last_label_alone(tmp_path):
    """As if each solution had one label."""
    judge = load_reward_model(trained(tmp_path / "one", steps=1, last_only=True))
    trained(tmp_path / "two", steps=2, last_only=True)
    with torch.no_grad():
        ends = [scores_by_hand(judge, s["prompt"], [f"{t} ." for t in s["completions"]])[-1] for s in SOLUTIONS]
    want = binary_cross_entropy_with_logits(
        torch.stack(ends), torch.tensor([float(s["labels"][-1]) for s in SOLUTIONS])
    )
    assert steps_of(tmp_path / "two", "loss")[1][1] == pytest.approx(want.item(), rel=1e-4)


def test_steps_of_a_text():
    assert split_steps("a\nb\n\n", "\n") == ["a", "b"]
    assert split_steps("", "\n") == [""]
    # "one two", ".", "three": the token that holds the last letter ends the step
    assert step_ends(["one", " two.", " three", ""], ".") == [1, 2]
    assert step_ends(["a", "\n\n", "b", "\n\n"], "\n\n") == [0, 2]
    assert step_ends(["", ""], ".") == [1]


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("judges")
    return {
        "steps": trained(folder / "steps", steps=10),
        "completions": trained(folder / "whole", steps=10, loss="bradley_terry"),
    }


def said(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]


def test_a_reward_of_steps(judges):
    """One number by min, mean, product or last of the probabilities; or numbers at the tokens that end steps."""
    judge, prompt = load_reward_model(judges["steps"]), EXAMPLES[0]["prompt"]
    texts = ["knight says yes . knave no", "back ."]
    with torch.no_grad():
        p = [
            scores_by_hand(judge, prompt, ["knight says yes .", "knave no ."]).sigmoid().tolist(),
            scores_by_hand(judge, prompt, ["back ."]).sigmoid().tolist(),
        ]
    ids = [said(text) for text in texts]
    call = {"completions": texts, "examples": [EXAMPLES[0]] * 2, "token_ids": ids, "finished": [True, False]}
    folder = str(judges["steps"])
    for combine, want in (
        ("min", min(p[0])),
        ("mean", sum(p[0]) / 2),
        ("product", p[0][0] * p[0][1]),
        ("last", p[0][1]),
    ):
        got = reward_model(**call, folder=folder, combine=combine)
        assert got == pytest.approx([want, p[1][0]], rel=1e-4)
    by_step = reward_model(**call, folder=folder, credit="step", max_tokens=1)
    assert by_step[0] == pytest.approx([0, 0, p[0][0], 0, 0, p[0][1], 0], rel=1e-4)
    assert by_step[1] == pytest.approx([p[1][0], 0, 0], rel=1e-4)
    progress = reward_model(**call, folder=folder, credit="progress")
    assert sum(progress[0]) == pytest.approx(p[0][1], rel=1e-4)
    assert progress[0][5] == pytest.approx(p[0][1] - p[0][0], rel=1e-3)


def test_a_reward_of_completions(judges):
    """Read behind the end token, or where the limit cut it off."""
    judge, prompt = load_reward_model(judges["completions"]), EXAMPLES[0]["prompt"]
    got = reward_model(
        ["knight ok", "knight ok"], [EXAMPLES[0]] * 2, [said("knight ok")] * 2, [True, False],
        folder=str(judges["completions"]),
    )  # fmt: skip
    with torch.no_grad():
        want = [scores_by_hand(judge, prompt, [text]).item() for text in ("knight ok <eos>", "knight ok")]
    assert got == pytest.approx(want, rel=1e-4)
    assert got[0] != got[1]


@pytest.mark.parametrize("options", ["", ", credit='progress'"])
def test_rlvr_is_rewarded_by_it(tmp_path, judges, options):
    reward = f"warpup.rewards:reward_model(folder={str(judges['steps'])!r}{options})"
    more = {"advantage": "gae"} if options else {}
    Recipe([rlvr(reward=reward, steps=2, **more)]).run(llama(), TOKENIZER, tmp_path)
    rewards = [value for _, value in steps_of(tmp_path, "reward")]
    assert len(rewards) == 2
    assert all(0 < value < 1 for value in rewards)
    assert not steps_of(tmp_path, "reward_errors")


def test_wrong_names_are_told_before_any_work(judges, tmp_path):
    name = "warpup.rewards:reward_model(folder={!r}{})"
    for folder, more, message in (
        (tmp_path, "", "holds no reward model; a run with the stage step_reward writes one"),
        (judges["completions"], ", credit='step'", "scores whole completions"),
        (judges["steps"], ", credit='token'", "credit: expected one of completion, step, progress"),
        (judges["steps"], ", combine='max'", "combine: expected one of min"),
        (judges["steps"], ", credit='step', combine='last'", "nothing is combined"),
    ):
        with pytest.raises(TrainError, match=message):
            RewardSet(name.format(str(folder), more))
    with pytest.raises(TrainError, match="nothing fills its parameter 'folder'"):
        RewardSet("warpup.rewards:reward_model")


def test_a_config_with_text_and_soft_labels(tmp_path):
    """Steps as one text, labels as numbers, columns of other names, from a file."""
    rows = [{"q": s["prompt"], "text": " . ".join(s["completions"]), "good": [0.9, 0.1, 0.5, 0.0][: len(s["labels"])]}
            for s in SOLUTIONS]  # fmt: skip
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    table = {
        "kind": "step_reward", "data": str(path), "separator": ".", "prompt": "q", "completions": "text",
        "labels": "good", "steps": 1, "batch_size": 8,
    }  # fmt: skip
    [one] = fill(TrainConfig, {"stages": [table]}, "").all_stages()
    Recipe([one]).run(llama(), TOKENIZER, tmp_path / "run")
    assert steps_of(tmp_path / "run", "loss")[0][1] == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dpo"}, "step_reward.loss: expected one of bce, progress, bradley_terry"),
        ({"margin": 1.0}, "step_reward.margin: .*loss 'bce' does not read it"),
        ({"loss": "bradley_terry", "separator": "."}, "step_reward.separator: .*'bradley_terry' does not read it"),
        ({"loss": "bradley_terry", "label_smoothing": 0.5}, "step_reward.label_smoothing: expected 0 to below .5"),
        ({"separator": ""}, "step_reward.separator: expected a text"),
        ({"value_lr": 0.0}, "step_reward.value_lr: expected more than 0"),
        ({"data": [{"prompt": "A", "completions": ["knight"]}]}, "example 0 needs a prompt, completions and labels"),
        (
            {"data": [{"prompt": "A", "completions": ["knight", "no"], "labels": [1]}]},
            "example 0: 2 steps need as many labels",
        ),
        ({"data": [{"prompt": "A", "completions": ["knight"], "labels": [2]}]}, "labels from 0 to 1, got"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        Recipe([stage(**options)]).run(llama(), TOKENIZER, tmp_path)
