"""Cross-entropy towards distributions, from hidden states: torch's own of the model's logits."""

import pytest
import torch
import transformers

from tests.support.tiny import TOKENIZER, llama
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.model.soft_targets import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = [([5, 6, 7], [8, 9, 2]), ([9, 8, 7, 6, 5, 4], [3, 11, 12, 13, 2]), ([11], [4, 2])]


def build(name, **more):
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0,
    }  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape | more))


def biased():
    model = build("Phi")
    torch.nn.init.normal_(model.lm_head.bias)
    return model


MODELS = {
    "plain": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "scale": lambda: build("Cohere", logit_scale=0.25),
    "bias": biased,
    "capped": lambda: build("Gemma2", head_dim=8, final_logit_softcapping=3.0),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_logits(name, smoothing):
    model = MODELS[name]().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    assert (head.form, head.cap) == ("linear", 3.0 if name == "capped" else None)
    torch.manual_seed(1)
    n = len(batch.completion)
    ids = torch.stack([torch.randperm(len(TOKENIZER))[:4] for _ in range(n)])
    probs = torch.rand(n, 4).softmax(1)
    weights, parameters = torch.linspace(0.5, 2, n), list(model.parameters())
    found = cross_entropy(head, head.hidden(batch), ids, probs, smoothing)
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits.double()[batch.mask]
    target = torch.zeros_like(logits).scatter(1, ids, probs.double())
    wanted = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    got, exact = (
        torch.autograd.grad((loss * weights).sum(), parameters, allow_unused=True) for loss in (found, wanted)
    )
    for g, w in zip(got, exact, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)
