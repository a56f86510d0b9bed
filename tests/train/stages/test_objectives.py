"""Objectives of the warm-up by hand in float64, on unpadded rows: loss and gradient."""

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.support.tiny import TOKENIZER, gpt2, llama, same, steps_of, warmup, weights
from warpup.train import Recipe, TrainError
from warpup.train.model.tokens import encode_pair

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("knight", "knave", "says", "not", "and", "or", "implies")
ROWS = [
    {
        "prompt": " ".join(WORDS[n % 5 : n % 5 + 2]),
        "completion": " ".join(WORDS[n % 3 : n % 3 + 1 + n % 4]),
        "r": (n + 1) / 4,
    }
    for n in range(12)
]
SETTINGS = {
    "nll": {},
    "dco": {"attempts": 3000},
    "weighted": {"score": "r"},
    "exp_weighted": {"score": "r", "tau": 0.7},
}


def logp_of(model, row):
    """Log-probs of a row's completion tokens, in float64."""
    prompt, completion = encode_pair(TOKENIZER, row)
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def by_hand(model, objective):
    """Loss of all rows as one batch, as the papers write it."""
    every = [logp_of(model, row) for row in ROWS]
    tokens = sum(map(len, every))
    if objective == "dco":  # the likelihood of one success in n attempts has the objective's gradient
        n = SETTINGS["dco"]["attempts"]
        return sum(-torch.log(1 - (1 - logp.sum().exp()) ** n) for logp in every) / len(every)
    factor = {"nll": lambda r: 1.0, "weighted": lambda r: r, "exp_weighted": lambda r: math.exp(r / 0.7)}[objective]
    return -sum(factor(row["r"]) * logp.sum() for row, logp in zip(ROWS, every, strict=True)) / tokens


def grad_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


@pytest.mark.parametrize("max_tokens", [12, 10_000])
@pytest.mark.parametrize("objective", SETTINGS)
def test_an_objective_by_hand(tmp_path, objective, max_tokens):
    model, before = llama(), llama()
    stage = warmup(data=ROWS, objective=objective, steps=1, batch_size=12, max_tokens=max_tokens, **SETTINGS[objective])
    Recipe([stage]).run(model, TOKENIZER, tmp_path)
    loss = by_hand(before, objective)
    loss.backward()
    [(_, found)], [(_, norm)] = steps_of(tmp_path, "loss"), steps_of(tmp_path, "grad_norm")
    assert norm == pytest.approx(grad_norm(before), rel=1e-4)
    if objective == "dco":  # reported as factor * -log p, whose gradient it is
        p = torch.stack([logp_of(before, row).sum() for row in ROWS]).detach().exp()
        n = SETTINGS["dco"]["attempts"]
        factor = n * p * (1 - p) ** (n - 1) / (1 - (1 - p) ** n)
        loss = -(factor * p.log()).mean()
        assert float(factor.min()) < 0.9 < 0.99 < float(factor.max())  # some are likely enough to be held back
    assert found == pytest.approx(loss.item(), rel=1e-5)


def test_a_lol_holds_the_ratio_to_the_model_before_the_stage(tmp_path):
    """Two steps: in the first the ratio is 1, in the second it is that of the weights after the first. A completion of
    no advantage is left out."""
    data = [row | {"r": row["r"] - 1.25} for row in ROWS]
    settings = {"data": data, "objective": "a_lol", "score": "r", "batch_size": 12, "lr": 0.3, "lr_warmup": 0}
    stage = warmup(**settings, steps=2, max_tokens=30, ratio_clip=0.5, lr_schedule="constant")
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    half = warmup(**settings, steps=1, ratio_clip=0.5, lr_schedule="constant")
    start, after = llama(), Recipe([half]).run(llama(), TOKENIZER, tmp_path / "half")
    want, ratios = [], []
    for model in (start, after):
        total, kept = 0.0, [row for row in data if row["r"] > 0]
        for row in kept:
            logp, before = logp_of(model, row).sum(), logp_of(start, row).sum()
            ratios.append((logp - before).exp().item())
            total = total - row["r"] * (logp - before).exp().clamp(0.5, 1.5).detach() * logp
        want.append(total.item() / len(kept))
    assert [loss for _, loss in steps_of(tmp_path, "loss")] == pytest.approx(want, rel=1e-4)
    assert len(ratios) == 14
    assert max(ratios) > 1.5


def test_a_lol_drops_nothing_out(tmp_path):
    """On a model with dropout, the ratio of the first step is 1: both sides are of one function."""
    Recipe([warmup(data=ROWS, objective="a_lol", score="r", batch_size=12, steps=1)]).run(gpt2(), TOKENIZER, tmp_path)
    start = gpt2().eval()
    wanted = -sum(row["r"] * logp_of(start, row).sum().item() for row in ROWS) / len(ROWS)
    assert steps_of(tmp_path, "loss") == [(1, pytest.approx(wanted, rel=1e-5))]


@pytest.mark.parametrize("packing", [False, True])
def test_spans_by_hand(tmp_path, packing):
    """The first word and the end of each completion; the loss is the mean over these, of batches in pieces."""
    data = [r | {"where": [[0, 1], [len(r["completion"]) - 1, len(r["completion"])]]} for r in ROWS]
    Recipe([warmup(data=data, spans="where", steps=1, batch_size=12, max_tokens=30, packing=packing)]).run(
        llama(), TOKENIZER, tmp_path
    )
    total, count = 0.0, 0
    for row in ROWS:
        logp = logp_of(llama(), row)
        kept = [0, *range(max(1, len(logp) - 2), len(logp))]  # first and last word, and the end token
        total, count = total - logp[kept].sum().item(), count + len(kept)
    assert steps_of(tmp_path, "loss") == [(1, pytest.approx(total / count, rel=1e-5))]
    assert steps_of(tmp_path, "tokens") == [(1, count)]


def test_equal_scores_are_plain_fine_tuning(tmp_path):
    plain, weighted = llama(), llama()
    Recipe([warmup(data=ROWS)]).run(plain, TOKENIZER, tmp_path / "plain")
    data = [row | {"r": 1.0} for row in ROWS]
    Recipe([warmup(data=data, objective="weighted", score="r")]).run(weighted, TOKENIZER, tmp_path / "weighted")
    assert same(weights(plain), weights(weighted))


def capped():
    """Logits under a soft cap: the output layer of Gemma 2."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2, final_logit_softcapping=3.0, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize("make", [llama, capped])
def test_label_smoothing_and_soft_labels_by_hand(tmp_path, make):
    """torch's own cross-entropy towards the mixture of a teacher's three tokens and the uniform distribution."""
    torch.manual_seed(1)
    data, wanted, before = [], 0.0, make()
    for row in ROWS:
        prompt, completion = encode_pair(TOKENIZER, row)
        size = len(completion)
        ids = torch.stack([torch.randperm(len(TOKENIZER))[:3] for _ in range(size)])
        logprobs = torch.randn(size, 3)
        data.append(row | {"teacher": {"ids": ids.tolist(), "logprobs": logprobs.tolist()}})
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        target = torch.zeros_like(logits).scatter(1, ids, logprobs.double().softmax(1))
        wanted = wanted + torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.2, reduction="sum")
    (wanted / (tokens := sum(len(d["teacher"]["ids"]) for d in data))).backward()
    data[0]["teacher"] = {name: [[*e, e[0]] for e in each] for name, each in data[0]["teacher"].items()}  # ragged:
    for logprobs in data[0]["teacher"]["logprobs"]:
        logprobs[3] = -math.inf  # a fourth of no probability
    stage = warmup(
        data=data, steps=1, batch_size=12, max_tokens=30, label_smoothing=0.2, soft_labels="teacher", max_length=20
    )
    Recipe([stage]).run(make(), TOKENIZER, tmp_path)
    [(_, loss)], [(_, norm)] = steps_of(tmp_path, "loss"), steps_of(tmp_path, "grad_norm")
    assert loss == pytest.approx(wanted.item() / tokens, rel=1e-5)
    assert norm == pytest.approx(grad_norm(before), rel=1e-4)


def test_what_no_objective_can_have(tmp_path):
    cases = [
        ({"attempts": 4}, r"warmup.attempts: got 4, but the objective is not \"dco\""),
        ({"objective": "dco"}, r"warmup.attempts: dco needs at least 2, got 1"),
        ({"score": "r"}, r"warmup.score: got 'r', but the objective 'nll' reads no score"),
        ({"objective": "weighted"}, r"warmup.score: the objective 'weighted' needs the name of a column"),
        ({"tau": 2.0}, r"warmup.tau: got 2.0, but the objective is not \"exp_weighted\""),
        ({"objective": "a_lol", "score": "r", "ratio_clip": 1.0}, r"warmup.ratio_clip: expected at least 0"),
        ({"objective": "dco", "attempts": 2, "label_smoothing": 0.1}, r"warmup.label_smoothing: got 0.1, but the obj"),
        ({"label_smoothing": 1.0}, r"warmup.label_smoothing: expected a share"),
        ({"spans": "s", "turns": "all"}, r"warmup.spans: turns says already what is learned"),
        ({"markers": ("a", "a")}, r"warmup.markers: expected two different texts"),
        ({"too_long": "cut"}, r"warmup.too_long: got 'cut', but nothing is too long"),
        ({"objective": "exp_weighted", "score": "x"}, r"warmup example 0: no column 'x', there are \['completion'"),
        ({"objective": "exp_weighted", "score": "r", "tau": 0.01}, r"warmup example 3: column 'r': exp\(1.0 / tau\)"),
        ({"objective": "weighted", "score": "prompt"}, r"column 'prompt': expected a finite number, got 'kn"),
        ({"turns": "all"}, r"warmup.turns: got \"all\", but no prompt is chat messages"),
        ({"soft_labels": "r"}, r"warmup example 0: soft labels: expected \{\"ids\""),
        ({"max_length": 3}, r"warmup example 0: 4 tokens are more than max_length, 3: raise it"),
    ]
    for settings, message in cases:
        with pytest.raises(TrainError, match=message):
            Recipe([warmup(data=ROWS, **settings)]).run(llama(), TOKENIZER, tmp_path)
    negative = warmup(data=[row | {"r": -1} for row in ROWS], objective="weighted", score="r")
    with pytest.raises(TrainError, match=r"column 'r': expected a weight of at least 0, got -1"):
        Recipe([negative]).run(llama(), TOKENIZER, tmp_path)
