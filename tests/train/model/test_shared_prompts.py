"""Completions of one prompt share its run through the model: the same numbers, fewer tokens."""

import functools

import pytest
import torch

from tests.support.tiny import gpt2, llama, mixture
from tests.train.model.test_heads import build
from warpup.train.model.batch import collate, micro_batches
from warpup.train.model.heads import Head
from warpup.train.model.lora import LoRA, add_adapters
from warpup.train.model.precision import checkpoint_layers
from warpup.train.model.shared_prompts import hidden_of_shared

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 3, 5, 7, 8, 4]]
PAIRS = [(PROMPTS[n % 3], [5 + n % 7] * (1 + 2 * n % 5) + [4, 3]) for n in range(9)] + [(PROMPTS[0], [6])]


def gradients(model, head, batches):
    """Of a loss that tells all rows and tokens apart."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        logp = head.logprob(head.hidden(batch), batch.completion)
        lengths = batch.mask.sum(1).tolist()
        for row, part in zip(batch.rows, logp.split(lengths), strict=True):
            loss = (part * torch.linspace(0.5, 1.5, len(part)) * (1 + row)).sum()
            loss.backward(retain_graph=True)
            total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Cohere", "Granite", "Phi3", "GPTNeoX", "gpt2", "adapters"])
def test_loss_and_gradients_are_those_of_plain_batches(kind):
    model = gpt2() if kind == "gpt2" else build("Llama" if kind == "adapters" else kind, num_key_value_heads=1)
    if kind == "adapters":
        model = add_adapters(model, LoRA(r=4))
    model.double().eval()
    head = Head(model)
    assert head.shares
    one, plain = gradients(model, head, micro_batches(PAIRS, range(10), 0, 1000))
    exact = {"rtol": 1e-4, "atol": 1e-5} if kind == "Cohere" else {"rtol": 1e-9, "atol": 1e-11}  # its norms are float32
    for max_tokens in (1000, 60, 1):
        batches = list(micro_batches(PAIRS, range(10), 0, max_tokens, share=True))
        assert any(batch.prompts for batch in batches) == (max_tokens > 1)
        other, shared = gradients(model, head, batches)
        assert other == pytest.approx(one, rel=exact["rtol"])
        for name, value in plain.items():
            torch.testing.assert_close(shared[name], value, **exact)


@pytest.mark.parametrize("kind", ["Mistral", "Gemma2", "Mamba", "Lfm2"])
def test_models_that_keep_less_than_all_keys_do_not_share(kind):
    more = {"layer_types": ["conv", "full_attention"]} if kind == "Lfm2" else {}
    assert not Head(build(kind, **({"sliding_window": 4} if kind in ("Mistral", "Gemma2") else more))).shares


def test_routed_experts_do_not_share():
    assert not Head(mixture()).shares


def test_checkpointed_layers_do_not_share():
    model = llama()
    checkpoint_layers(model)
    assert not Head(model).shares


def test_a_model_that_reads_prompts_twice_is_found_out(monkeypatch):
    """Whether a model shares is tried, not believed: here the second run is told wrong positions."""
    model = llama()
    assert Head(model).shares
    forward = type(model.model).forward

    @functools.wraps(forward)
    def wrong(self, *arguments, position_ids=None, **named):
        return forward(self, *arguments, position_ids=None if position_ids is None else position_ids + 3, **named)

    monkeypatch.setattr(type(model.model), "forward", wrong)
    assert not Head(model).shares


def test_tokens_of_a_group():
    """Sixteen completions of a long prompt: it is there once, and the limit holds."""
    pairs = [([5] * 40, [6] * (3 + n % 4)) for n in range(16)]
    batches = list(micro_batches(pairs, range(16), 0, 100, share=True))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(16))
    tokens = [batch.prompts.ids.numel() + batch.inputs.numel() for batch in batches]
    assert max(tokens) <= 100
    assert sum(tokens) < 250 < 16 * 40
    assert [batch.prompts.ids.shape for batch in batches] == [(1, 40)] * len(batches)


def padded(batches):
    """Tokens that go through the model."""
    return sum(b.inputs.numel() + (b.prompts.ids.numel() if b.prompts else 0) for b in batches)


def test_rows_lie_by_prompt_or_by_length_whichever_leaves_less():
    """Long prompts, lengths that differ: a prompt's rows side by side. Short prompts: rows of one length."""
    lengths = [40, 36, 3, 38, 34, 4]
    for prompt, by_prompt in (([5] * 60, True), ([5], False)):
        pairs = [([*prompt, 6 + n // 3], [7] * length) for n, length in enumerate(lengths)]
        batches = list(micro_batches(pairs, range(6), 0, 200, share=True))
        assert padded(batches) <= padded(micro_batches(pairs, range(6), 0, 200))
        assert all(len({row // 3 for row in b.rows}) == 1 for b in batches) == by_prompt


def test_prompts_of_their_own_are_not_shared():
    pairs = [([n], [6, 7]) for n in range(5, 9)]
    assert [batch.prompts for batch in micro_batches(pairs, range(4), 0, 1000, share=True)] == [None]


def test_completions_of_one_token_run_the_prompts_alone():
    model = llama().eval()
    batch = collate([(PROMPTS[0], [5]), (PROMPTS[0], [6])], range(2), 0, share=True)
    assert batch.inputs.shape == (2, 0)
    assert batch.targets.tolist() == [[5], [6]]
    hidden = hidden_of_shared(model.model, model.config, batch)
    alone = model.model(torch.tensor([PROMPTS[0]])).last_hidden_state[:, -1:]
    torch.testing.assert_close(hidden, alone.expand(2, 1, -1), rtol=1e-4, atol=1e-5)
