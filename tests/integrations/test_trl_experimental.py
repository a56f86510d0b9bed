"""Trainers of trl.experimental on warpup's operators against TRL's own, in whole runs."""

import queue
import tempfile
import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.integrations.test_trl import cohere, gemma, head_of, run_alike, saved, talker
from tests.support.largest import Largest
from tests.support.tiny import EXAMPLES, TOKENIZER, llama

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

from trl.import_utils import TRLExperimentalWarning  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental import async_grpo, gkd

from trl.experimental.async_grpo import packing  # noqa: E402
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample  # noqa: E402

from warpup.integrations import trl_experimental as ours  # noqa: E402
from warpup.integrations.trl import LinearLogprob  # noqa: E402


def settings(**options):
    return {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "max_steps": 2, "seed": 3, "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no",
    } | options  # fmt: skip


def tokens(row):
    """The prompt's and the completion's."""
    return [TOKENIZER(str(row[part]), add_special_tokens=False)["input_ids"] for part in ("prompt", "completion")]


# ---- GKD ------------------------------------------------------------------------------------------------------------


def gkd_trainer(library, model=talker, teacher=(llama, 7), peft_config=None, **options):
    rows = []
    for row in EXAMPLES:
        prompt, completion = tokens(row)
        ids = prompt + completion + [TOKENIZER.eos_token_id]
        learned = [0] * len(prompt) + [1] * (len(ids) - len(prompt))
        rows.append({"prompt": row["prompt"], "input_ids": ids, "completion_mask": learned})
    return library.GKDTrainer(
        saved(model),
        saved(*teacher),
        args=gkd.GKDConfig(**settings(max_new_tokens=12, **options)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": 0.3}, {"beta": 1.0, "lmbda": 1.0}, {"model": gemma, "teacher": (cohere,)}],
    ids=["forward", "jsd", "reverse, own completions", "capped from scaled"],
)
def test_gkd(options):
    options = {"lmbda": 0.0} | options
    assert run_alike([gkd_trainer(library, **options) for library in (gkd, ours)])[0]["loss"] > 0


def test_gkd_lora():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    run_alike([gkd_trainer(library, lmbda=0.0, peft_config=config) for library in (gkd, ours)])


def test_gkd_refuses_prompt_tuning():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="prompt tuning acts outside of the model's layers; use LoRA"):
        gkd_trainer(ours, peft_config=config)


def test_gkd_makes_no_logits_but_for_metrics():
    trainer = gkd_trainer(ours, lmbda=0.0)
    inputs = next(iter(trainer.get_train_dataloader()))
    whole = inputs["input_ids"].numel() * len(TOKENIZER)
    losses, largest = [], []
    for outputs in (False, True):
        with Largest(columns=len(TOKENIZER)) as found:
            loss = trainer.compute_loss(trainer.model, inputs, return_outputs=outputs)
        losses.append(loss[0] if outputs else loss)
        largest.append(found.elements)
    torch.testing.assert_close(*losses)
    assert largest[0] < whole <= largest[1]


# ---- Asynchronous GRPO ----------------------------------------------------------------------------------------------


def segments_attention(q, k, v, ends_q, ends_k, _longest_q, _longest_k, softmax_scale, causal, window_size):
    """What flash-attention 3 computes for segments of one row, the last query aligned with the last key."""
    assert causal
    assert window_size == (-1, -1)
    found = []
    for (a, b), (c, d) in zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True):
        visible = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        heads = (t.transpose(0, 1) for t in (q[a:b], k[c:d], v[c:d]))
        out = scaled_dot_product_attention(*heads, attn_mask=visible, scale=softmax_scale, enable_gqa=True)
        found.append(out.transpose(0, 1))
    return torch.cat(found)


class Worker:
    """Completions that are there from the start, two of each prompt, and a transfer of weights to nobody."""

    def __init__(self, count):
        self.rollout_buffer, self.metrics_queue, self.sent = queue.Queue(), queue.Queue(), {}
        generator = torch.Generator().manual_seed(0)
        for number in range(count):
            prompt, completion = tokens(EXAMPLES[number // 2])
            completion = completion[: 4 + number % 5]
            ids = torch.tensor(prompt + completion)
            learned = torch.tensor([0] * len(prompt) + [1] * len(completion))
            logp = -4 * torch.rand(len(ids), generator=generator) * learned
            self.rollout_buffer.put(
                RolloutSample([], [], ids.numpy(), learned.numpy(), logp.numpy(), 1.0 - number % 3, 1, number // 2, {})
            )

    def nothing(self, *_):
        pass

    start = stop = update_model_version = init_weight_transfer = pause = resume = destroy = nothing

    def check_health(self, _stale_after_s):
        raise RuntimeError("the trainer wants more than it was given")

    def send_weights(self, weights):
        self.sent = {name: weight.clone() for name, weight in weights}


@pytest.mark.parametrize("model", [talker, cohere], ids=["plain", "scaled"])
def test_async_grpo(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a CPU")  # TRL asks, to tell how busy it is
    monkeypatch.setattr(packing, "_flash_attn", lambda: SimpleNamespace(flash_attn_varlen_func=segments_attention))
    workers = [Worker(24), Worker(24)]  # the loader fetches one batch ahead
    trainers = [
        library.AsyncGRPOTrainer(
            saved(model),
            args=async_grpo.AsyncGRPOConfig(**settings(token_budget=0, temperature=0.8, dtype="float32")),
            train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in EXAMPLES]),
            processing_class=TOKENIZER,
            rollout_worker=worker,
            weight_transfer=worker,
        )
        for library, worker in zip((async_grpo, ours), workers, strict=True)
    ]
    assert head_of(trainers[1]) is LinearLogprob
    log = run_alike(trainers)
    assert log[0]["entropy"] > 0
    assert log[1]["ratio"] != 1.0
    after = trainers[1].model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in workers[1].sent.items())
    assert len(workers[1].sent) > 10
