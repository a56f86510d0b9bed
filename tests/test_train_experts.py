"""Training of models with routed experts: the balance loss that their routers get, and the load that is reported."""

import pytest
import torch

import warpup
from tiny import EXAMPLES, TOKENIZER, llama, log_of, mixture, rlvr, warmup
from warpup.train import Recipe
from warpup.train.batch import collate, completion_logprob, encode_pair
from warpup.train.experts import Experts
from warpup.train.recipe import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(rows):
    pairs = [encode_pair(TOKENIZER, EXAMPLES[row]) for row in rows]
    return collate(pairs, range(len(rows)), TOKENIZER.pad_token_id)


def watched(model, batch, coefficient=None, share=1.0):
    experts = Experts(model, coefficient)
    with experts.watch(batch.attention):
        completion_logprob(model, batch)
    return experts, experts.loss(share)


def test_loss_is_that_of_the_real_tokens_routers():
    model, batch = mixture(), batch_of([0, 1, 2])
    assert not batch.attention.all()
    experts, loss = watched(model, batch)
    logits = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda m, i, out: logits.append(out[0])) for layer in model.model.layers
    ]
    completion_logprob(model, batch)
    for hook in hooks:
        hook.remove()
    real = batch.attention.bool().flatten()
    routes = [warpup.moe_route(z[real], 2) for z in logits]
    want = torch.stack([warpup.moe_balance_loss(route) for route in routes]).mean()
    torch.testing.assert_close(loss, 0.05 * 2 * want)  # transformers' loss is k times ours
    load = torch.stack([route.counts for route in routes]) / (real.sum() * 2 / 6)
    numbers = experts.numbers()
    assert numbers["balance_loss"] == pytest.approx(float(want.detach()))
    assert numbers["load_max"] == pytest.approx(float(load.max(1).values.mean()))
    assert numbers["load_min"] == pytest.approx(float(load.min(1).values.mean()))


def test_gradient_reaches_the_routers_alone_through_the_scores():
    model, batch = mixture(), batch_of([0, 1])
    _, loss = watched(model, batch, coefficient=1.0, share=0.5)
    loss.backward()
    for layer in model.model.layers:
        assert layer.mlp.gate.weight.grad.abs().sum() > 0
    assert model.lm_head.weight.grad is None
    assert not model.model.layers[0].mlp.gate._forward_hooks


def test_micro_batches_add_up():
    model = mixture()
    experts = Experts(model, 1.0)
    for row in (0, 1):
        batch = batch_of([row])
        with experts.watch(batch.attention):
            completion_logprob(model, batch)
        experts.loss(0.5)
    tokens = sum(int(batch_of([row]).attention.sum()) for row in (0, 1))
    assert [int(counts.sum()) for counts in experts.counts] == [2 * tokens] * 2


def test_a_dense_model_is_left_as_it_is():
    experts, loss = watched(llama(), batch_of([0]))
    assert loss == 0
    assert experts.numbers() == {}


@pytest.mark.parametrize("stage", [warmup(balance=None), rlvr(balance=0.01)], ids=["warmup", "rlvr"])
def test_stages_log_the_load(stage, tmp_path):
    Recipe([stage]).run(mixture(), TOKENIZER, tmp_path / "run")
    lines = [line for line in log_of(tmp_path / "run") if "balance_loss" in line]
    assert lines
    assert all(line["load_max"] >= 1 >= line["load_min"] >= 0 for line in lines)


def test_balance_evens_the_load(tmp_path):
    def last(balance):
        out = tmp_path / f"{balance}"
        Recipe([warmup(steps=30, balance=balance)]).run(mixture(), TOKENIZER, out)
        return log_of(out)[-1]["balance_loss"]

    assert last(1.0) - 1 < 0.7 * (last(0.0) - 1)


def test_a_saved_model_comes_back_on_warpups_experts(tmp_path):
    model = mixture()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert loaded.config._experts_implementation == "warpup"
    batch = batch_of([0, 1])
    torch.testing.assert_close(completion_logprob(loaded, batch), completion_logprob(model, batch))
