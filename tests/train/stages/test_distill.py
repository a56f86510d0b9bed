"""Distillation: one step equals a computation by hand, the student comes near, on its own completions too."""

from typing import get_args

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, same, steps_of, weights
from tests.train.model.test_heads import build
from warpup import divergence
from warpup.train import Distill, Recipe, TrainError
from warpup.train.settings import Divergence

pytestmark = pytest.mark.usefixtures("one_thread")


def stage(**options):
    return Distill(
        **{
            "data": EXAMPLES[:12], "teacher": llama(seed=5), "steps": 4, "batch_size": 4, "lr": 3e-3, "lr_warmup": 0,
            "save_every": 2, "max_new_tokens": 12,
        }
        | options
    )  # fmt: skip


@pytest.mark.parametrize("kind", get_args(Divergence))
@pytest.mark.parametrize("teacher", ["plain", "capped"])
def test_a_step_is_that_of_a_computation_by_hand(tmp_path, kind, teacher):
    other = llama(seed=5) if teacher == "plain" else build("Gemma2", final_logit_softcapping=3.0)
    nll_coef = 3.0 if kind == "logit_swap" else 0.0  # Mix-CPT: the NLL and a third of this
    options = {"teacher": other, "divergence": kind, "temperature": 0.8, "steps": 1, "batch_size": 12}
    options["nll_coef"] = nll_coef
    Recipe([stage(**options, max_tokens=60)]).run(llama(), TOKENIZER, tmp_path)
    student, total, tokens = llama().eval(), 0.0, 0
    for row in EXAMPLES[:12]:
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        ids = [*TOKENIZER(row["completion"], add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
        ours, theirs = (m(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] for m in (student, other))
        swap = {"targets": torch.tensor(ids)} if kind == "logit_swap" else {}
        total = total + divergence(ours, theirs, kind=kind, temperature=0.8, **swap).sum()
        total = total + nll_coef * torch.nn.functional.cross_entropy(ours, torch.tensor(ids), reduction="sum")
        tokens += len(ids)
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert line["loss"] == pytest.approx((total / tokens).item(), rel=1e-4)


@pytest.mark.parametrize("online", [0.0, 1.0])
def test_packed_examples_are_read_each_by_itself(tmp_path, online):
    """The same first step with examples in one row or in one each, the student's own completions too."""
    found = []
    for packing in (False, True):
        out = tmp_path / str(packing)
        Recipe([stage(steps=1, batch_size=12, packing=packing, online=online)]).run(llama(), TOKENIZER, out)
        found += [line for line in log_of(out) if "loss" in line]
    assert found[1]["tokens"] == found[0]["tokens"]
    for name in ("loss", "grad_norm"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)


@pytest.mark.parametrize("recurrent", ["student", "teacher"])
def test_packing_is_refused_where_either_reads_on(tmp_path, recurrent):
    mamba = build("Mamba", state_size=4)
    student, teacher = (mamba, llama()) if recurrent == "student" else (llama(), mamba)
    with pytest.raises(TrainError, match=r"distill.packing: MambaForCausalLM"):
        Recipe([stage(packing=True, teacher=teacher)]).run(student, TOKENIZER, tmp_path)


@pytest.mark.parametrize("online", [0.0, 1.0])
def test_the_student_comes_nearer(tmp_path, online):
    Recipe([stage(steps=25, batch_size=8, online=online)]).run(llama(), TOKENIZER, tmp_path)
    losses = [loss for _, loss in steps_of(tmp_path, "loss")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert {line["online"] for line in log_of(tmp_path) if "online" in line} == {online}


def test_killed_and_resumed_bit_for_bit(tmp_path):
    whole = weights(Recipe([stage(online=0.5)]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage(online=0.5)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(3))
    assert same(whole, weights(Recipe([stage(online=0.5)]).run(llama(), TOKENIZER, tmp_path / "run")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "distill.divergence: expected one of forward, .*, got 'kl'"),
        ({"beta": 0.5, "divergence": "forward"}, "distill: .*beta"),
        ({"online": 1.5}, "distill.online: expected a share from 0 to 1, got 1.5"),
        ({"online": 0.5, "nll_coef": 1.0}, "distill.online: nll_coef learns the tokens of given completions"),
        ({"online": 1.0, "divergence": "logit_swap"}, "distill.online: divergence 'logit_swap' learns the tokens of"),
        ({"teacher": ""}, "distill.teacher: nothing given"),
        ({"teacher": "nowhere"}, "nowhere is not a saved model"),
        ({"data": [{"prompt": "A"}]}, "example 0 needs a completion, unless distill.online is 1"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        Recipe([stage(**options)]).run(llama(), TOKENIZER, tmp_path)


def test_a_teacher_of_another_vocabulary(tmp_path):
    with pytest.raises(TrainError, match=r"vocabulary has 60 tokens, the student's \d+"):
        Recipe([stage(teacher=llama(vocab_size=60))]).run(llama(), TOKENIZER, tmp_path)
