"""Replayed experts: the model's own change nothing, others go where they are told, and an engine's close the gap."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5")

from tests.support.mixtures import MODELS, mixture_of  # noqa: E402
from tests.support.tiny import llama  # noqa: E402
from warpup.integrations.router_replay import record_experts, replay_experts, routed_blocks  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
B, T = 3, 9


def spread_out(name):
    """A model whose routers choose different experts for different tokens, and some of its tokens."""
    model = mixture_of(name).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=generator)
    return model, torch.randint(3, 31, (B, T), generator=generator)


def chosen(model, ids):
    with record_experts(model, len(ids)) as recorded, torch.no_grad():
        model(ids)
    return recorded.experts()


def results(model, ids):
    model.zero_grad()
    logits = model(ids).logits
    logits.square().mean().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_own_choice_changes_nothing(name):
    model, ids = spread_out(name)
    experts, want = chosen(model, ids), results(model, ids)
    blocks = routed_blocks(model)
    k = experts.shape[-1]
    assert experts.shape == (B, T, len(blocks), k)
    with replay_experts(model, experts):
        got = results(model, ids)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(results(model, ids)[0], want[0])  # and nothing stays behind


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("gpt_oss", "deepseek_v2"))])
def test_others_are_taken_and_the_router_learns(name):
    model, ids = spread_out(name)
    own = chosen(model, ids)
    experts = own.clone()
    number = routed_blocks(model)[0][2].num_experts
    experts[:, : T - 2] = torch.rand(B, T - 2, own.shape[2], number).topk(own.shape[-1]).indices.int()
    experts[0, 2] = -1
    with replay_experts(model, experts[:, : T - 1]), record_experts(model, B) as recorded:
        logits, gradients = results(model, ids)
    taken = recorded.experts()
    given = (experts[:, : T - 1] >= 0).all(-1)
    assert torch.equal(taken[:, : T - 1][given], experts[:, : T - 1][given])
    assert (taken[0, 2] >= 0).all()
    assert not torch.allclose(logits, model(ids).logits)
    routers = [g for n, g in gradients.items() if "gate.weight" in n or "router" in n]
    assert len(routers) == len(routed_blocks(model))
    assert all(g.abs().sum() > 0 for g in routers)


def test_weights_and_gradients_are_those_of_the_scores():
    """By hand: a softmax over all experts, the recorded ones' share of it, divided by their sum."""
    model, ids = spread_out("mixtral")
    experts = torch.rand(B, T, 2, 4).topk(2).indices
    with replay_experts(model, experts):
        want = results(model, ids)
    for layer, (_, block, _) in enumerate(routed_blocks(model)):
        indices, gate = experts[:, :, layer].reshape(-1, 2), block.gate

        def forward(hidden, indices=indices, gate=gate):
            logits = hidden.reshape(-1, gate.hidden_dim) @ gate.weight.T
            scores = logits.float().softmax(-1).gather(1, indices)
            return logits, scores / scores.sum(-1, keepdim=True), indices

        gate.forward = forward
    torch.testing.assert_close(results(model, ids), want, rtol=1e-6, atol=1e-8)


def test_checkpointed_activations_are_replayed_too():
    model, ids = spread_out("qwen3_moe")
    experts = torch.rand(B, T, 2, 6).topk(2).indices
    with replay_experts(model, experts):
        want = results(model, ids)
        model.gradient_checkpointing_enable()
        got = results(model.train(), ids)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_layers_as_engines_count_them():
    """DeepSeek-V3's first layer is dense; an engine's buffer has a row for it nevertheless."""
    model, ids = spread_out("deepseek_v3")
    experts = chosen(model, ids).flip(0)
    with replay_experts(model, experts):
        want = results(model, ids)[0]
    counted = torch.cat([torch.full_like(experts, 7), experts], 2)
    with replay_experts(model, counted):
        assert torch.equal(results(model, ids)[0], want)


def test_what_generate_has_chosen():
    model, ids = spread_out("olmoe")
    with record_experts(model, B) as recorded:
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=True
        )
    experts = recorded.experts()
    assert experts.shape == (B, T + 5, 2, model.config.num_experts_per_tok)
    assert torch.equal(experts, chosen(model, whole)[:, :-1])


def test_the_gap_between_sampler_and_trainer():
    """The sampler is in bfloat16, the trainer in float64: with its experts replayed, log-probs differ by rounding."""
    model, _ = spread_out("qwen3_moe")
    sampler = copy.deepcopy(model).bfloat16()
    ids = torch.randint(3, 31, (32, 24), generator=torch.Generator().manual_seed(1))
    with record_experts(sampler, 32) as recorded, torch.no_grad():
        sampled = sampler(ids).logits.double().log_softmax(-1)
        alone = model(ids).logits.log_softmax(-1)
        with replay_experts(model, recorded.experts()):
            replayed = model(ids).logits.log_softmax(-1)
    moved = (recorded.experts().sort(-1).values != chosen(model, ids).sort(-1).values).any(-1).any(-1)
    assert 0.01 < moved.double().mean() < 0.5
    off = [(x - sampled).abs().mean(-1) for x in (alone, replayed)]
    assert off[1][moved].mean() < 0.5 * off[0][moved].mean()
    assert off[1].mean() < 0.95 * off[0].mean()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (torch.zeros(B, T, 2), r"must be \(B, T, L, k\) integers, got torch.float32, shape \(3, 9, 2\)"),
        (torch.zeros(B, T, 3, 2).long(), r"are those of 3 layers, Qwen3MoeForCausalLM has 2 with routed experts of 2"),
        (torch.full((B, T, 2, 2), 6), r"model\.layers\.0\.mlp has 6 experts, got 6"),
        (torch.zeros(B, T + 1, 2, 2).long(), "of 3 sequences of 10 tokens, the model was given 27 tokens"),
        (torch.zeros(2, T, 2, 2).long(), "of 2 sequences of 9 tokens, the model was given 27 tokens"),
    ],
    ids=["dtype", "layers", "ids", "length", "rows"],
)
def test_what_does_not_fit(experts, message):
    model, ids = spread_out("qwen3_moe")
    with pytest.raises(ValueError, match=message), replay_experts(model, experts):
        model(ids)
    model(ids)


def test_what_cannot_be_replayed():
    with pytest.raises(ValueError, match="LlamaForCausalLM has no layer of routed experts"):
        record_experts(llama(), 1).__enter__()
    model, ids = spread_out("qwen3_moe")
    for rows in (0, 2):
        with (
            pytest.raises(ValueError, match=f"rows is {rows}, and the model was given 27 tokens"),
            record_experts(model, rows) as recorded,
        ):
            model(ids)
        with pytest.raises(ValueError, match="the model has run nothing yet"):
            recorded.experts()
    message = r"model\.layers\.0\.mlp \(Qwen3MoeSparseMoeBlock\) did not choose 3 of 6 experts by torch.topk"
    with pytest.raises(RuntimeError, match=message), replay_experts(model, torch.zeros(B, T, 2, 3).long()):
        model(ids)
