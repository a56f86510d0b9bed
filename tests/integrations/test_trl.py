"""TRL's GRPOTrainer on warpup's operators against TRL's own, on a batch that TRL sampled: loss, gradients, metrics."""

import math
import tempfile
from collections import defaultdict

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, llama

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from warpup.integrations.trl import LOSS_TYPES, GRPOTrainer, LogprobMixin  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
STEPS = 2  # batches that one generation is split into, accumulated


class LogprobOnly(LogprobMixin, trl.GRPOTrainer):
    pass


def different_words(completions, **_):
    return [len(set(text.split())) / 8 for text in completions]


def trainer_of(kind, **options):
    """A trainer on a small model that was saved first: TRL reads its reference back."""
    folder = tempfile.mkdtemp()
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 3  # completions of many lengths
    model.save_pretrained(folder)
    settings = {
        "output_dir": folder, "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 6, "num_generations": 4,
        "gradient_accumulation_steps": STEPS, "num_iterations": 2, "max_completion_length": 12, "max_steps": 3,
        "logging_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "beta": 0.1, "use_bias_correction_kl": False,
    }  # fmt: skip
    return kind(
        folder,
        reward_funcs=different_words,
        args=trl.GRPOConfig(**settings | options),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in EXAMPLES]),
        processing_class=TOKENIZER,
    )


@pytest.fixture(scope="module", params=[1.0, 0.7], ids=lambda temperature: f"T{temperature}")
def sampled(request):
    """TRL's trainer, ours, ours for log-probs alone, and the batches of one generation by a model two steps older."""
    kinds = (trl.GRPOTrainer, GRPOTrainer, LogprobOnly)
    trainers = [trainer_of(kind, temperature=request.param, mask_truncated_completions=True) for kind in kinds]
    theirs = trainers[0]
    theirs.model.train()
    torch.manual_seed(0)
    theirs._prepare_inputs(next(iter(theirs.get_train_dataloader())))
    generator = torch.Generator().manual_seed(1)
    noise = [0.03 * torch.randn(p.shape, generator=generator) for p in theirs.model.parameters()]
    for trainer in trainers:
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = STEPS
        with torch.no_grad():
            for p, n in zip(trainer.model.parameters(), noise, strict=True):
                p += n
    return trainers, theirs._buffered_inputs


@pytest.fixture
def compare(sampled, monkeypatch):
    """Asserts that ours gives TRL's loss, gradients and metrics under the same settings; skips what is not covered."""
    trainers, batches = sampled

    def run(attributes=None, extra=None, ours=1, **arguments):
        results = []
        for trainer in (trainers[0], trainers[ours]):
            for name, value in (attributes or {}).items():
                monkeypatch.setattr(trainer, name, value)
            for name, value in arguments.items():
                monkeypatch.setattr(trainer.args, name, value)
            if isinstance(trainer, GRPOTrainer):
                try:
                    trainer._loss_options()
                except ValueError as error:
                    if "leaves the loss to TRL" not in str(error):
                        raise
                    pytest.skip(str(error))
            trainer._metrics["train"] = defaultdict(list)
            trainer.model.zero_grad()
            losses = []
            for batch in batches:
                loss = trainer._compute_loss(trainer.model, batch | (extra(batch) if extra else {}))
                loss.backward()
                losses.append(loss.item())
            slope = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
            results.append((losses, slope, trainer._metrics["train"]))
        (want_losses, want_slope, want_metrics), (losses, slope, metrics) = results
        assert losses == pytest.approx(want_losses, rel=1e-4, abs=1e-6)
        assert want_slope.norm() > 1e-3
        assert (slope - want_slope).norm() <= 1e-4 * want_slope.norm()
        assert metrics.keys() == want_metrics.keys()
        for name in metrics:
            assert metrics[name] == pytest.approx(want_metrics[name], rel=1e-4, abs=1e-6, nan_ok=True), name
        return metrics

    return run


def test_the_batch_is_no_easy_one(sampled):
    (theirs, *_), batches = sampled
    mask = torch.cat([batch["completion_mask"] for batch in batches])
    assert (mask.sum(1) == 0).any()  # cut off, so left out whole
    assert len(set(mask.sum(1).tolist())) > 3
    logp, _, _ = theirs._get_per_token_logps_and_entropies(
        theirs.model,
        torch.cat([batches[0]["prompt_ids"], batches[0]["completion_ids"]], 1),
        torch.cat([batches[0]["prompt_mask"], batches[0]["completion_mask"]], 1),
        batches[0]["completion_ids"].shape[1],
    )
    off = (logp - batches[0]["old_per_token_logps"])[batches[0]["completion_mask"] == 1]
    assert off.abs().max() > math.log(1.28)  # ratios on both sides of the clip range


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_gradients_and_metrics_are_trls(compare, loss_type, beta):
    high = 1.1 if loss_type == "cispo" else 0.1  # cispo's is a bound of the ratio itself
    metrics = compare({"loss_type": loss_type, "beta": beta, "epsilon_low": 0.05, "epsilon_high": high})
    assert ("kl" in metrics) == (beta > 0)
    assert max(metrics["cispo_clip_ratio" if loss_type == "cispo" else "clip_ratio/region_mean"]) > 0


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
@pytest.mark.parametrize(
    "options",
    [
        {"delta": 1.15},
        {"use_bias_correction_kl": True},
        {"attributes": {"importance_sampling_level": "sequence", "epsilon_low": 0.01, "epsilon_high": 0.01}},
        {"attributes": {"top_entropy_quantile": 0.5}},
        {"attributes": {"off_policy_mask_threshold": 1e-3}},
        {"extra": lambda batch: {"old_per_token_logps": None}},
        {"extra": lambda batch: {"tool_mask": (batch["completion_ids"] % 3 > 0).long()}},
        {"extra": lambda batch: {"advantages": batch["advantages"][:, None] * torch.linspace(-1, 1, 12)}},
        {
            "attributes": {"use_vllm": True, "vllm_importance_sampling_correction": True},
            "extra": lambda batch: {"importance_sampling_ratio": torch.linspace(0, 2, 6)[:, None]},
        },
    ],
    ids=["delta", "kl correction", "sequence level", "entropy", "off-policy mask", "on policy", "tools", "per token",
         "vllm"],
)  # fmt: skip
def test_options_are_trls(compare, loss_type, options):
    options = {"attributes": {}, **options}
    options["attributes"] = {"loss_type": loss_type} | options["attributes"]
    compare(**options)


@pytest.mark.parametrize("first", [-1.0, 1.0])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_advantages_of_tokens_at_sequence_level(compare, loss_type, first):
    """A sequence's ratio is clipped for some of its tokens, by the sign of their advantages: TRL counts tokens then."""
    level = {"importance_sampling_level": "sequence", "epsilon_low": 0.001, "epsilon_high": 0.001}
    metrics = compare(
        {"loss_type": loss_type, **level},
        extra=lambda batch: {"advantages": batch["advantages"][:, None] * torch.linspace(first, -first, 12)},
    )
    assert any(0 < share < 1 for share in metrics["clip_ratio/region_mean"])


@pytest.mark.parametrize("loss_type", ["sapo", "vespo", "luspo"])
def test_log_probs_alone_leave_any_loss_to_trl(compare, loss_type):
    compare({"loss_type": loss_type, "_entropy_bonus_enabled": True, "entropy_coef": 0.01}, ours=2)


def test_a_whole_run_logs_what_trl_logs():
    logs = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        trainer = trainer_of(kind, seed=3)
        trainer.train()
        logs.append(trainer.state.log_history)
    want, got = logs
    assert len(want) == 4
    for theirs, ours in zip(want, got, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {
            "train_runtime",
            "train_samples_per_second",
            "train_steps_per_second",
            "step_time",
        }:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sapo"}, r"loss_type: expected one of .*dr_grpo.*, got 'sapo'; LogprobMixin in place of"),
        ({"entropy_coef": 0.1}, "entropy_coef and use_adaptive_entropy are not covered"),
        (
            {"loss_type": "cispo", "importance_sampling_level": "sequence"},
            "'cispo' with importance_sampling_level 'sequence' is not",
        ),
    ],
)
def test_what_is_not_covered_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(GRPOTrainer, beta=0.0, **options)
