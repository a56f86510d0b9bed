"""Training of models with routed experts: the balance loss that their routers get, and the load that is reported."""

import warnings

import pytest
import torch
from torch import nn

import warpup
from tests.support.mixtures import COMMON, MODELS, mixture_of, transformers
from tests.support.tiny import EXAMPLES, TOKENIZER, completion_logprob, llama, log_of, mixture, rlvr, warmup
from warpup.train import Recipe
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.model.load_model import load_model
from warpup.train.model.routers import Routers
from warpup.train.model.tokens import encode_pair

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(rows):
    pairs = [encode_pair(TOKENIZER, EXAMPLES[row]) for row in rows]
    return collate(pairs, range(len(rows)), TOKENIZER.pad_token_id)


def watched(model, batch, coefficient=None, share=1.0):
    routers, head = Routers(model, coefficient), Head(model)
    with routers.watch(batch.attention):
        completion_logprob(head, batch)
    return routers, routers.loss(share)


def test_loss_is_that_of_the_real_tokens_routers():
    model, batch = mixture(), batch_of([0, 1, 2])
    assert not batch.attention.all()
    routers, loss = watched(model, batch)
    logits, head = [], Head(model)
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda m, i, out: logits.append(out[0])) for layer in model.model.layers
    ]
    completion_logprob(head, batch)
    for hook in hooks:
        hook.remove()
    real = batch.attention.bool().flatten()
    routes = [warpup.moe_route(z[real], 2) for z in logits]
    want = torch.stack([warpup.moe_balance_loss(route) for route in routes]).mean()
    torch.testing.assert_close(loss, 0.05 * 2 * want)  # transformers' loss is k times ours
    load = torch.stack([route.counts for route in routes]) / (real.sum() * 2 / 6)
    numbers = routers.numbers()
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
    routers, head = Routers(model, 1.0), Head(model)
    for row in (0, 1):
        batch = batch_of([row])
        with routers.watch(batch.attention):
            completion_logprob(head, batch)
        routers.loss(0.5)
    tokens = sum(int(batch_of([row]).attention.sum()) for row in (0, 1))
    assert [int(counts.sum()) for counts in routers.counts] == [2 * tokens] * 2


ROUTERS = dict.fromkeys(MODELS, "gate") | dict.fromkeys([name for name in MODELS if "gpt_oss" in name], "router")


@pytest.mark.parametrize("implementation", ["warpup", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_routers_of_any_model_are_found(name, implementation):
    """Against the router's own logits and indices: the load, the loss and its gradient; DeepSeek's first is dense."""
    model = mixture_of(name)
    model.set_experts_implementation(implementation)
    gates = [gate for layer in model.model.layers if (gate := getattr(layer.mlp, ROUTERS[name], None)) is not None]
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    ids, attention, routed = torch.randint(3, 31, (2, 9)), torch.ones(2, 9), []
    attention[1, 5:] = 0
    hooks = [gate.register_forward_hook(lambda m, i, out: routed.append(out)) for gate in gates]
    routers = Routers(model, 1.0)
    with warnings.catch_warnings(action="error"), routers.watch(attention):
        model(input_ids=ids, attention_mask=attention)
    for hook in hooks:
        hook.remove()
    real = attention.bool().flatten()
    assert len(routed) == len(gates) == (1 if "deepseek" in name else 2)
    losses, counts = [], []
    for logits, _, indices, *_ in routed:
        e, k = logits.shape[-1], indices.shape[-1]
        counts.append(torch.bincount(indices[real].flatten(), minlength=e))
        losses.append((counts[-1] * e / (k * int(real.sum())) * logits[real].float().softmax(-1).mean(0)).sum())
    want, loss = torch.stack(losses).mean(), routers.loss(1.0)
    torch.testing.assert_close(loss, want)
    assert all(torch.equal(a, b) for a, b in zip(routers.counts, counts, strict=True))
    parameters = [gate.weight for gate in gates]
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    for got, g in zip(found, torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(got, g)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4TextConfig"), reason="this transformers has no Gemma 4")
def test_a_router_that_gives_probabilities():
    options = {"num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 10, "intermediate_size": 12}
    options |= {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 31, "hidden_size_per_layer_input": 4}
    config = transformers.Gemma4TextConfig(**COMMON, **options, enable_moe_block=True)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="warpup")
    routers, routed = Routers(model, 1.0), []
    hooks = [
        layer.router.register_forward_hook(lambda m, i, out: routed.append(out[0])) for layer in model.model.layers
    ]
    with routers.watch(torch.ones(2, 9)):
        model(input_ids=torch.randint(3, 31, (2, 9)))
    for hook in hooks:
        hook.remove()
    loss = routers.loss(1.0)
    f = [counts * 6 / counts.sum() for counts in routers.counts]
    want = torch.stack([(g * p.view(-1, 6).mean(0)).sum() for g, p in zip(f, routed, strict=True)]).mean()
    torch.testing.assert_close(loss, want)


def test_experts_that_cannot_be_watched_are_told_once():
    config = transformers.Llama4TextConfig(
        **COMMON, head_dim=8, intermediate_size=12, intermediate_size_mlp=12, num_local_experts=4
    )
    for _ in range(2):  # each model once
        model = transformers.Llama4ForCausalLM(config)
        with warnings.catch_warnings(record=True, action="always") as said:
            for _ in range(2):
                routers = Routers(model, 1.0)
                with routers.watch(torch.ones(1, 5)):
                    model(input_ids=torch.randint(3, 31, (1, 5)))
                assert routers.loss(1.0) == 0
                assert routers.numbers() == {}
        told = [str(w.message) for w in said if "can be watched" in str(w.message)]
        assert told == [
            "Llama4ForCausalLM: 0 layers of routed experts can be watched, 0 with their router's logits; the load of "
            "others is not reported, and without logits there is no balance loss"
        ]


def test_experts_whose_router_is_not_seen_show_their_load():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.chooser = mixture().model.layers[0].mlp.experts, nn.Linear(32, 6)

        def forward(self, x):
            weights, indices = self.chooser(x).topk(2)
            return self.experts(x, indices, weights)

    layer = Layer()
    routers = Routers(layer, 1.0)
    said = pytest.warns(UserWarning, match="Layer: 1 layers of routed experts can be watched, 0 with")
    with said, routers.watch(torch.tensor([[1, 1, 1, 0]])):
        layer(torch.randn(4, 32))
    assert routers.loss(1.0) == 0
    assert routers.counts[0].sum() == 6
    assert routers.numbers()["load_max"] >= 1


def test_a_dense_model_is_left_as_it_is():
    routers, loss = watched(llama(), batch_of([0]))
    assert loss == 0
    assert routers.numbers() == {}


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
