"""An idle batch, which a rank of a model in shards sends where others have more, adds nothing, whatever the stage."""

from functools import partial
from importlib import import_module
from typing import get_args

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, llama, log_of, rlvr, warmup, weights
from tests.train.rank_checks import PAIRS
from tests.train.stages.test_step_reward import stage as step_reward
from warpup.train import Distill, Preference, Recipe
from warpup.train.model.batch import idle_batch
from warpup.train.settings import PreferenceLoss

pytestmark = pytest.mark.usefixtures("one_thread")
SCORED = [row | {"worth": 0.5 + n % 3} for n, row in enumerate(EXAMPLES)]
SHORT = {"steps": 2, "lr": 1e-3, "batch_size": 3}
CASES = {
    "nll": partial(warmup, steps=2),
    "dco": partial(warmup, steps=2, objective="dco", attempts=4),
    **{o: partial(warmup, steps=2, objective=o, data=SCORED, score="worth") for o in ("weighted", "a_lol")},
    **{loss: partial(Preference, data=PAIRS, loss=loss, nll_coef=0.1, **SHORT) for loss in get_args(PreferenceLoss)},
    **{d: partial(Distill, data=EXAMPLES, divergence=d, **SHORT) for d in ("forward", "jsd", "logit_swap")},
    **{f"step {loss}": partial(step_reward, loss=loss, steps=2) for loss in ("bce", "progress", "bradley_terry")},
    **{name: partial(rlvr, steps=2, lr=1e-4, **options) for name, options in {
        "filters": {"top_p": 0.9},
        "penalties": {"repetition": 1.2, "presence": 0.1},
        "correction": {"correction": "token_truncate"},
        "critic": {"advantage": "gae", "value_lr": 1e-4},
        "quantile": {"entropy_quantile": 0.5},
        "covariance": {"loss": "kl_cov"},
        "sequences": {"loss": "gspo"},
        "full KL": {"kl_coef": 0.1, "kl": "full"},
        "token baseline": {"advantage": "optimal_token_baseline"},
    }.items()},
}  # fmt: skip


def with_idle(model, batches, pad):
    return [*batches, idle_batch(pad, model.device)]


@pytest.mark.parametrize("name", CASES)
def test_it_changes_no_number_and_no_weight(tmp_path, monkeypatch, name):
    found = []
    for run in ("without", "with"):
        if run == "with":
            for module in ("warmup", "preference", "distill", "step_reward", "policy_step"):
                monkeypatch.setattr(import_module(f"warpup.train.stages.{module}"), "even_batches", with_idle)
        options = {"teacher": llama(7)} if CASES[name].func is Distill else {}
        model = llama()
        Recipe([CASES[name](**options)]).run(model, TOKENIZER, tmp_path / run)
        losses = [line["loss"] for line in log_of(tmp_path / run) if "loss" in line]
        assert losses
        found.append((losses, weights(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4, abs=1e-6)
    for key, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], value, rtol=1e-4, atol=1e-5, msg=key)
