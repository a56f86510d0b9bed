"""Preference: one step equals a computation by hand, every loss trains, the data's faults are named."""

from typing import get_args

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, same, steps_of, weights
from warpup import preference_loss
from warpup.train import Preference, Recipe, TrainError
from warpup.train.settings import PreferenceLoss

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "knave " * (3 + n % 5)}
    for n, row in enumerate(EXAMPLES[:12])
]


def stage(**options):
    return Preference(
        **{"data": PAIRS, "steps": 4, "batch_size": 4, "lr": 1e-3, "lr_warmup": 0, "save_every": 2} | options
    )


def sequence(model, prompt, completion):
    prompt = TOKENIZER(prompt)["input_ids"]
    ids = [*TOKENIZER(completion, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None]).sum(), len(ids)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "cpo"])
def test_a_step_is_that_of_a_computation_by_hand(tmp_path, loss):
    """The first step's loss and gradient norm, in pieces of a pair each, with the NLL beside it."""
    options = {"loss": loss, "steps": 1, "batch_size": 12, "clip": 0.0, "max_tokens": 1, "nll_coef": 0.5}
    Recipe([stage(**options)]).run(llama(), TOKENIZER, tmp_path)
    model, compares = llama().eval(), loss != "cpo"
    chosen, rejected, nll, tokens = [], [], 0.0, 0
    for pair in PAIRS:
        (c, n), (r, m) = (sequence(model, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        chosen.append(c / n if loss == "ipo" else c)
        rejected.append(r / m if loss == "ipo" else r)
        nll, tokens = nll - c, tokens + n
    c, r = torch.stack(chosen), torch.stack(rejected)
    references = (c.detach(), r.detach()) if compares else ()
    want = preference_loss(c, r, *references, kind=loss)[0] + 0.5 * nll / tokens
    want.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    [line] = [line for line in log_of(tmp_path) if "loss" in line]
    assert line["loss"] == pytest.approx(want.item(), rel=1e-4)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("loss", get_args(PreferenceLoss))
def test_every_loss_falls(tmp_path, loss):
    Recipe([stage(loss=loss, steps=8, batch_size=12)]).run(llama(), TOKENIZER, tmp_path)
    losses = [value for _, value in steps_of(tmp_path, "loss")]
    assert losses[-1] < losses[0]


def test_killed_and_resumed_bit_for_bit(tmp_path):
    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(3))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ppo"}, "preference.loss: expected one of dpo, .*, got 'ppo'"),
        ({"loss": "nca", "reference": False}, "loss 'nca' compares with a reference; leave it out"),
        ({"loss": "ipo", "margin": 1.0}, "preference: .*kind 'ipo' has no margin"),
        ({"data": [{"prompt": "A", "chosen": "B"}]}, "example 0 needs a prompt and a rejected"),
        ({"batch_size": 0}, "preference.batch_size: expected more than 0"),
    ],
)
def test_wrong_settings(tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        Recipe([stage(**options)]).run(llama(), TOKENIZER, tmp_path)
