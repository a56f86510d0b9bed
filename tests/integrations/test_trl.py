"""TRL's trainers on warpup's operators against TRL's own: the output layer by itself, then whole runs."""

import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from tests.support.largest import Largest
from tests.support.tiny import EXAMPLES, TOKENIZER, llama, mixture

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from trl.kernels import ChunkedLogProbFunction  # noqa: E402
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: E402
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS  # noqa: E402

from warpup.integrations import trl as ours  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

# ---- The output layer -----------------------------------------------------------------------------------------------

FORMS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "capped": {"softcap": 5.0, "temperature": 1.3},
    "scaled": {"scale": 0.25, "softcap": None},
    "both": {"scale": 1.5, "softcap": 8.0},
}


def operands(rows=9, vocab=301, width=12, bias=True, dtype=torch.float32, seed=0):
    """Hidden states, weight and bias; two tokens with the same weight, so that they are as likely."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(*s, generator=g) for s in ((rows, width), (vocab, width)))
    weight[3] *= 1.5
    weight[vocab // 2] = weight[3]
    b = torch.randn(vocab, generator=g) if bias else None
    if bias:
        b[vocab // 2] = b[3]
    return [t if t is None else t.to(dtype).requires_grad_() for t in (hidden, weight, b)]


def slopes(function, tensors, results, seed=1):
    """Gradients of a random sum of the results that have one."""
    g = torch.Generator().manual_seed(seed)
    graded = [r for r in results if r is not None and r.requires_grad]
    total = sum((r * torch.randn(r.shape, generator=g)).sum() for r in graded)
    return len(graded), torch.autograd.grad(total, [t for t in tensors if t is not None])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_log_probs_and_metrics_are_trls(form, bias):
    form = FORMS[form]
    rest = (form.get("temperature", 1.0), 64, form.get("softcap"), form.get("scale", 1.0), OPTIONAL_OUTPUTS)
    tensors = operands(bias=bias)
    logits = tensors[0] @ tensors[1].T + (tensors[2] if bias else 0)
    targets = logits.argmax(1)  # half of them the most likely token, and both of two that are equally likely
    targets[::2] = torch.arange(5) * 17
    with torch.no_grad():
        tensors[0][:2] = tensors[1][3]
    targets[0], targets[1] = 3, len(tensors[1]) // 2
    found = []
    for kind in (ChunkedLogProbFunction, ours.LinearLogprob):
        results = kind.apply(*tensors, targets, *rest)
        found.append((results, *slopes(kind, tensors, results)))
    (want, count, want_slopes), (got, got_count, got_slopes) = found
    assert count == got_count == 2
    assert got[4].tolist() == want[4].tolist()
    assert got[4][:2].tolist() == [True, False]
    torch.testing.assert_close(got[:4], want[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_slopes, want_slopes, rtol=1e-4, atol=1e-5)


def test_only_what_is_asked_for_is_there():
    tensors, targets = operands(), torch.arange(9)
    logp, *others = ours.LinearLogprob.apply(*tensors, targets, 1.0, 64, None, 1.0, ("log_probs",))
    assert others == [None] * 4
    logp.sum().backward()
    want = ChunkedLogProbFunction.apply(*(t.detach() for t in tensors), targets, 1.0, 64, None, 1.0, ())[0]
    torch.testing.assert_close(logp.detach(), want)


def test_under_autocast_products_are_bfloat16():
    tensors, targets = operands(), torch.arange(9)
    found = []
    for kind in (ChunkedLogProbFunction, ours.LinearLogprob):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = kind.apply(*tensors, targets, 1.0, 512, None, 1.0, ("entropy",))
        found.append((results[:2], slopes(kind, tensors, results)[1]))
    (want, want_slopes), (got, got_slopes) = found
    torch.testing.assert_close(got, want, rtol=2e-2, atol=5e-2)
    assert {g.dtype for g in got_slopes} == {torch.float32}
    for g, w in zip(got_slopes, want_slopes, strict=True):
        assert (g - w).norm() < 0.02 * w.norm()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_divergences_are_trls(form, beta):
    form = {"temperature": 1.0, "softcap": None, "scale": 1.0} | FORMS[form]
    student, teacher = operands(), [t.detach() for t in operands(width=7, seed=5)]
    found = []
    for kind in (ChunkedDivergenceFunction, ours.LinearDivergence):
        results = kind.apply(*student, *teacher, beta, form["temperature"], form["scale"], form["softcap"], 0.5, 6.0)
        found.append((results, *slopes(kind, student, results)))
    (want, count, want_slopes), (got, got_count, got_slopes) = found
    assert count == got_count == 1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_slopes, want_slopes, rtol=1e-4, atol=1e-5)


def test_logits_are_never_whole():
    rows, vocab = 300, 50_000
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    with Largest() as largest:
        results = ours.LinearLogprob.apply(
            hidden, weight, None, torch.arange(rows), 1.0, 0, None, 1.0, OPTIONAL_OUTPUTS
        )
        (results[0].sum() + results[1].sum()).backward()
    assert largest.elements * 4 <= 34 << 20 < rows * vocab * 4


def test_zero3_is_refused(monkeypatch):
    monkeypatch.setattr(ours, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="DeepSpeed's ZeRO stage 3 has taken it away"):
        ours.add_head(llama())


def test_another_trl_is_refused():
    with pytest.raises(ImportError, match=r"is written against trl 1\.16: in trl .*does not use other_head"):
        ours.with_names(trl.SFTTrainer.__init__, other_head=None)


# ---- Whole runs -----------------------------------------------------------------------------------------------------


def different_words(completions, **_):
    return [len(set(text.split())) / 8 for text in completions]


@functools.cache
def saved(make, *arguments):
    """The folder of a model: TRL reads it, and its reference, from there. Made once: of several processes, transformers
    lets the first one save."""
    folder = tempfile.mkdtemp()
    make(*arguments).save_pretrained(folder)
    return folder


def talker():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 3  # completions of many lengths
    return model


def gemma():
    """Logits with a soft cap that bends them."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=16,
            num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=2.0, initializer_range=0.2,
            pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id,
            bos_token_id=TOKENIZER.bos_token_id,
        )
    )  # fmt: skip


def cohere():
    """Logits with a scale."""
    torch.manual_seed(0)
    return CohereForCausalLM(
        CohereConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, logit_scale=0.25, initializer_range=0.2, pad_token_id=TOKENIZER.pad_token_id,
            eos_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id,
        )
    )  # fmt: skip


ROWS = {
    "GRPO": lambda row: {"prompt": row["prompt"]},
    "RLOO": lambda row: {"prompt": row["prompt"]},
    "Distillation": lambda row: {"prompt": row["prompt"]},
    "SFT": lambda row: {"prompt": row["prompt"], "completion": row["completion"]},
    "DPO": lambda row: {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][::-1]},
    "KTO": lambda row: {
        "prompt": row["prompt"],
        "completion": row["completion"],
        "label": len(row["completion"]) % 2 == 0,
    },
}
SETTINGS = {
    "GRPO": {"num_generations": 4, "num_iterations": 2, "max_completion_length": 12, "beta": 0.1},
    "RLOO": {"num_generations": 4, "num_iterations": 2, "max_completion_length": 12, "beta": 0.1, "max_steps": 3},
    "Distillation": {"max_completion_length": 12},
    "SFT": {},
    "DPO": {},
    "KTO": {},
}


def made(method, library, model=talker, **options):
    """A trainer of ours or of TRL's."""
    folder = saved(model)
    arguments = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "max_steps": 2, "seed": 3, "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no",
    }  # fmt: skip
    peft = {"peft_config": options.pop("peft_config")} if "peft_config" in options else {}
    rewarded = {"reward_funcs": different_words}
    extra = {"GRPO": rewarded, "RLOO": rewarded, "Distillation": {"teacher_model": saved(llama, 7)}}
    rows = [ROWS[method](row | {"completion": str(row.get("completion", row["prompt"]))}) for row in EXAMPLES]
    return getattr(library, f"{method}Trainer")(
        folder,
        args=getattr(trl, f"{method}Config")(**arguments | SETTINGS[method] | options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=TOKENIZER,
        **extra.get(method, {}),
        **peft,
    )


def agree(method, **options):
    """Runs both, asserts that they log the same and end with the same weights; our log."""
    return run_alike([made(method, library, **options) for library in (trl, ours)])


def run_alike(trainers):
    before = {n: p.detach().clone() for n, p in trainers[0].model.named_parameters()}
    for trainer in trainers:
        torch.manual_seed(0)
        trainer.train()
    want, got = (trainer.state.log_history for trainer in trainers)
    assert len(got) == len(want) == trainers[0].args.max_steps + 1
    for theirs, mine in zip(want, got, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not re.search(r"runtime|per_second|step_time|perf/|time_in_queue", name):
                assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=2e-5, nan_ok=True), name
    moved = 0
    for (name, p), (_, q) in zip(*(t.model.named_parameters() for t in trainers), strict=True):
        torch.testing.assert_close(q, p, rtol=2e-3, atol=2e-5, msg=name)
        moved += (p - before[name]).abs().sum()
    assert moved > 1e-3
    return got


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"])
def test_grpo(loss_type):
    log = agree("GRPO", loss_type=loss_type, epsilon_high=1.1 if loss_type == "cispo" else 0.2)
    assert log[1]["kl"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.1, "top_entropy_quantile": 0.5},
        {"importance_sampling_level": "sequence", "temperature": 0.7},
        {"off_policy_mask_threshold": 1e-3, "delta": 1.15, "use_bias_correction_kl": True},
        {"cast_lm_head_to_fp32": True, "mask_truncated_completions": True, "beta": 0.0},
        {"model": gemma},
        {"model": mixture, "router_aux_loss_coef": 0.05},
    ],
    ids=lambda options: next(iter(options)),
)
def test_grpo_options(options):
    agree("GRPO", **options)


@pytest.mark.parametrize("options", [{}, {"model": gemma, "temperature": 0.7}], ids=["plain", "capped"])
def test_rloo(options):
    log = agree("RLOO", **options)
    # The KL is part of the reward, so TRL measures it where it samples: in every second step here, and 0 at first.
    assert ["kl" in step for step in log] == [True, False, True, False]
    assert log[0]["kl"] == 0 != log[2]["kl"]
    assert log[0]["entropy"] > 0


@pytest.mark.parametrize(
    "options",
    [{}, {"loss_type": "dft"}, {"packing": True, "padding_free": True}, {"model": gemma}, {"model": cohere},
     {"model": mixture}, {"gradient_checkpointing": True}],
    ids=["plain", "dft", "packing", "capped", "scaled", "mixture", "checkpointing"],
)  # fmt: skip
def test_sft(options):
    assert 0 < agree("SFT", **options)[0]["mean_token_accuracy"] < 1


@pytest.mark.parametrize(
    "options",
    [{}, {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]}, {"use_weighting": True, "model": gemma}],
    ids=["plain", "two losses", "weighted, capped"],
)
def test_dpo(options):
    agree("DPO", **options)


def test_kto():
    agree("KTO")


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_distillation(beta):
    assert agree("Distillation", beta=beta, temperature=0.9)[0]["loss"] > 0


@pytest.mark.parametrize("method", ["GRPO", "SFT", "DPO", "Distillation"])
def test_lora(method):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    agree(method, peft_config=config)


def head_of(trainer):
    """What the trainer's model takes its log-probs from."""
    return trainer.model.forward.__func__.__globals__["_ChunkedLogProbFunction"]


@pytest.mark.parametrize("method", ["GRPO", "RLOO", "SFT", "DPO", "KTO"])
def test_trls_own_trainers_stay_as_they_are(method):
    assert head_of(made(method, ours)) is ours.LinearLogprob
    assert head_of(made(method, trl)) is ChunkedLogProbFunction


TWO = """
import sys
from tests.integrations import test_trl
test_trl.agree(sys.argv[1], max_steps=2)
"""


@pytest.mark.parametrize("method", ["GRPO", "SFT"])
def test_two_processes(method):
    """DDP: each rank's share of the batch."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, method], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r), "PYTHONPATH": paths},
        )
        for r in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
