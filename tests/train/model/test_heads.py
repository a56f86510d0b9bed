"""Log-probs and losses from hidden states are those of the model's own logits, whatever its output layer does."""

import pytest
import torch
import transformers
from torch import nn

from tests.support.tiny import TOKENIZER, llama, mixture
from warpup import policy_loss
from warpup.policy.kinds import PolicyOptions
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*what makes its logits:UserWarning"),
]
PAIRS = [([5, 6, 7], [8, 9, 2]), ([9, 8, 7, 6, 5, 4], [3, 11, 12, 13, 2]), ([11], [4, 2])]
SHAPE = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0, "head_dim": 8,
}  # fmt: skip


def build(name, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | more)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


class Twisted(nn.Linear):
    """An output layer of another kind."""


def twisted():
    model = llama().eval()
    model.lm_head.__class__ = Twisted
    return model


MODELS = {
    "plain": (llama, "linear", 1.0),
    "tied": (lambda: llama(tie_word_embeddings=True), "linear", 1.0),
    "mixture": (mixture, "linear", 1.0),
    "gemma2": (lambda: build("Gemma2", final_logit_softcapping=3.0), "linear", 1.0),
    "cohere": (lambda: build("Cohere", logit_scale=0.25), "linear", 0.25),
    "granite": (lambda: build("Granite", logits_scaling=4.0), "linear", 0.25),
    "twisted": (twisted, "opaque", 1.0),
}


def wanted(model, batch, temperature):
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits.double()[batch.mask]
    every = torch.log_softmax(logits / temperature, -1)
    return every.gather(1, batch.completion[:, None]).squeeze(1), -(every.exp() * every).sum(1)


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_entropies_and_gradients_are_those_of_the_logits(name):
    make, form, scale = MODELS[name]
    model = make().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    assert (head.form, head.scale) == (form, pytest.approx(scale, rel=1e-5))
    logp, entropy = head.logprob(head.hidden(batch), batch.completion, 0.7, entropy=True)
    want = wanted(model, batch, 0.7)
    torch.testing.assert_close(logp, want[0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, want[1].float(), rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, len(logp))
    parameters = [p for p in model.parameters() if p.requires_grad]
    got = torch.autograd.grad((logp * weights).sum() + entropy.sum(), parameters, allow_unused=True)
    exact = torch.autograd.grad((want[0] * weights).sum() + want[1].sum(), parameters, allow_unused=True)
    for g, w in zip(got, exact, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "gemma2", "cohere", "twisted"])
@pytest.mark.parametrize("kind", ["grpo", "gspo"])
def test_policy_loss_under_a_schedule(name, kind):
    model = MODELS[name][0]().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    n = len(batch.completion)
    old, advantages, delta = torch.linspace(-4, -2, n), torch.tensor([1.0, -2.0, 0.5]), torch.linspace(-1, 1, n)
    ids = [2, 8, 9]
    options = PolicyOptions(kind=kind, normalizer=("sequence", 4.0), entropy_coef=0.1, kl_coef=0.2)
    replay = {"delta": delta, "token_set": ids}
    loss, metrics = head.policy_loss(
        options, head.hidden(batch), batch.completion, old, advantages, batch.cu_seqlens, 0.8, replay=replay,
        ref_logp=old - 0.1,
    )  # fmt: skip
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits.double()[batch.mask]
    logits = logits.index_add(1, torch.tensor(ids), delta.double()[:, None].expand(n, 3))
    every = torch.log_softmax(logits / 0.8, -1)
    want, numbers = policy_loss(
        every.gather(1, batch.completion[:, None]).squeeze(1), old.double(), advantages.double(),
        torch.ones(n, dtype=torch.bool), kind=kind, normalizer=("sequence", 4.0), entropy_coef=0.1, kl_coef=0.2,
        entropy=-(every.exp() * every).sum(1), ref_logp=old.double() - 0.1, cu_seqlens=batch.cu_seqlens,
    )  # fmt: skip
    torch.testing.assert_close(loss, want.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["ratio_mean"], numbers["ratio_mean"].float(), rtol=1e-4, atol=1e-5)
    (got,) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
    (exact,) = torch.autograd.grad(want, model.get_input_embeddings().weight)
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


def test_nll_is_the_mean_over_the_denominator():
    model = llama().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    loss = head.nll(head.hidden(batch), batch.completion, 20)
    torch.testing.assert_close(loss, -wanted(model, batch, 1.0)[0].sum().float() / 20)


def test_a_head_that_needs_whole_logits_says_so():
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM: what makes its logits .* lower max_tokens"):
        Head(twisted())


def test_no_logits_of_the_batch_are_ever_made(monkeypatch):
    """Neither the model's own, nor as many numbers at once as they have."""
    model = llama().eval()
    head = Head(model)
    monkeypatch.setattr(model.lm_head, "forward", lambda *a: pytest.fail("the output layer was called"))
    batch = collate(PAIRS, range(3), pad=0)
    head.nll(head.hidden(batch), batch.completion, 1).backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
