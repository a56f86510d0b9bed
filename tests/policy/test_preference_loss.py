"""Preference losses: closed forms, gradients, and TRL's as peers."""

import math
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional

from warpup import degree_loss, kto_loss, linear_logprob, preference_loss, sequence_logprob
from warpup.policy.preference_loss import PREFERENCE_KINDS


def problem(batch=4, length=7, seed=0, dtype=torch.float64):
    """Log-probs with NaN outside the mask, one empty row."""
    generator = torch.Generator().manual_seed(seed)
    logp = -2 * torch.rand(batch, length, generator=generator, dtype=dtype)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[1] = False
    return logp.masked_fill(~mask, math.nan), mask


def pairs(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [-8 * torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_dpo_by_hand():
    chosen, rejected = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    loss, metrics = preference_loss(chosen, rejected, torch.tensor([-1.0, -1.0]), torch.tensor([-1.8, 0.6]), beta=0.5)
    h = [0.5 * ((-1 + 1) - (-2 + 1.8)), 0.5 * ((-3 + 1) - (-1 - 0.6))]
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in h) / 2)
    assert metrics["accuracy"] == 0.5
    assert metrics["margin"].item() == pytest.approx(sum(h) / 2)
    assert metrics["chosen_reward"].item() == pytest.approx(0.5 * (0 - 2) / 2)
    assert metrics["rejected_reward"].item() == pytest.approx(0.5 * (-0.2 - 1.6) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["dpo", "bradley_terry"])
def test_preference_gradients(kind, smoothing):
    chosen, rejected, *references = pairs()
    references = references if kind == "dpo" else [None, None]
    options = {"kind": kind, "label_smoothing": smoothing, "margin": 0.3, "weights": torch.rand(5).double()}

    def loss(a, b):
        return preference_loss(a, b, *references, normalizer=3.0, **options)[0]

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))
    slope = torch.autograd.grad(loss(chosen, rejected), (chosen, rejected))
    torch.testing.assert_close(slope[0], -slope[1])


def test_preference_is_stable_far_out():
    far = torch.tensor([-1e4, 1e4]).double().requires_grad_()
    loss, _ = preference_loss(far, torch.zeros(2).double(), kind="bradley_terry")
    assert loss.item() == pytest.approx(5e3)
    assert torch.autograd.grad(loss, far)[0].tolist() == [-0.5, 0]


TRL_NAMES = {
    "dpo": "sigmoid", "robust": "robust", "hinge": "hinge", "ipo": "ipo", "exo": "exo_pair", "nca": "nca_pair",
    "bco": "bco_pair", "sppo": "sppo_hard", "apo_zero": "apo_zero", "apo_down": "apo_down", "discopop": "discopop",
}  # fmt: skip


@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("kind", TRL_NAMES)
def test_trl_s_losses_are_the_same(kind, references):
    """TRL's own DPOTrainer code on the same token log-probs."""
    trainer = pytest.importorskip("trl").DPOTrainer
    if not references and PREFERENCE_KINDS[kind].reference == "needed":
        pytest.skip("has no form without a reference")
    smoothing = 0.2 if kind in ("robust", "exo") else None
    logp, mask = problem(6, 9)
    mask[1, 2] = True  # TRL's means have no empty sequence either
    logp = logp.nan_to_num(-0.5).masked_fill(~mask, 0.0).requires_grad_()
    shifted = torch.cat([torch.zeros(6, 1).bool(), mask], 1)
    ref = torch.rand(6, dtype=torch.float64) - 5 if references else torch.zeros(6, dtype=torch.float64)
    like = torch.zeros(6, 9)
    outputs = SimpleNamespace(log_probs=logp, entropy=like, mean_logits=like, is_top1=like.bool())
    own = MagicMock(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[TRL_NAMES[kind]],
        loss_weights=[1.0], beta=0.3, label_smoothing=smoothing or 0.0, use_weighting=False, aux_loss_enabled=False,
        _tp_size=1, _total_train_tokens=0, _metrics={"train": defaultdict(list)},
        args=SimpleNamespace(discopop_tau=0.05),
    )  # fmt: skip
    own.accelerator.device = logp.device
    own.accelerator.gather = own.accelerator.gather_for_metrics = lambda x: x
    inputs = {
        "input_ids": torch.zeros(6, 10).long(), "attention_mask": torch.ones(6, 10),
        "completion_mask": shifted.long(), "ref_chosen_logps": ref[:3], "ref_rejected_logps": ref[3:],
    }  # fmt: skip
    want = trainer._compute_loss(own, lambda **_: outputs, inputs, False)
    average = PREFERENCE_KINDS[kind].average
    total = sequence_logprob(logp, mask, average=average)
    if average:
        ref = ref / mask.sum(1)
    got, metrics = preference_loss(
        total[:3], total[3:], *((ref[:3], ref[3:]) if references else ()), kind=kind, beta=0.3,
        label_smoothing=smoothing,
    )  # fmt: skip
    torch.testing.assert_close(got, want)
    slopes = (torch.autograd.grad(x, logp, retain_graph=True)[0] * mask for x in (got, want))
    torch.testing.assert_close(*slopes)
    names = {"accuracy": "accuracies", "margin": "margins", "chosen_reward": "chosen", "rejected_reward": "rejected"}
    for ours, theirs in names.items() if not average else ():
        assert metrics[ours].item() == pytest.approx(own._metrics["train"][f"rewards/{theirs}"][0])


LIGER_NAMES = {kind: name for kind, name in TRL_NAMES.items() if kind != "ipo"}  # whose means it does not have


@pytest.mark.parametrize("kind", LIGER_NAMES)
def test_from_hidden_states_as_liger(kind):
    """What docs/policy.md composes for hidden states is Liger-Kernel's fused linear DPO: loss and gradients."""
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    generator = torch.Generator().manual_seed(0)
    hidden, ref_hidden = (torch.randn(6, 9, 16, generator=generator) for _ in range(2))
    weight, ref_weight = (torch.randn(50, 16, generator=generator) / 4 for _ in range(2))
    targets = torch.randint(50, (6, 9), generator=generator)
    mask = torch.rand(6, 9, generator=generator) < 0.7
    smoothing = 0.2 if kind in ("robust", "exo") else None
    theirs = liger.LigerFusedLinearDPOLoss(
        beta=0.3, loss_type=LIGER_NAMES[kind], label_smoothing=smoothing or 0.0, compiled=False
    )

    def liger_loss(hidden, weight):
        labels = targets.masked_fill(~mask, -100)
        return theirs(weight, hidden, labels, ref_input=ref_hidden, ref_weight=ref_weight)[0]

    def sequences(hidden, weight):
        return sequence_logprob(linear_logprob(hidden, weight, targets), mask).chunk(2)

    def our_loss(hidden, weight):
        reference = sequences(ref_hidden, ref_weight)
        return preference_loss(*sequences(hidden, weight), *reference, kind=kind, beta=0.3, label_smoothing=smoothing)[
            0
        ]

    def with_gradients(loss):
        operands = [t.clone().requires_grad_() for t in (hidden, weight)]
        value = loss(*operands)
        return value.detach(), *torch.autograd.grad(value, operands)

    for got, want in zip(with_gradients(our_loss), with_gradients(liger_loss), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_losses_without_a_reference_by_hand():
    """SimPO, CPO and ORPO on the pair (log .5, log .2); the NLL that stands beside CPO and ORPO is the caller's."""
    c, r = (torch.tensor([math.log(p)]).double() for p in (0.5, 0.2))
    gap = math.log(0.5 / 0.2)
    for kind, h in (("simpo", 2.0 * gap - 0.7), ("cpo", 0.1 * gap)):
        margin = {"margin": 0.7} if kind == "simpo" else {}
        assert preference_loss(c, r, kind=kind, **margin)[0].item() == pytest.approx(math.log1p(math.exp(-h)))
    odds = math.log(0.5 / 0.5) - math.log(0.2 / 0.8)
    assert preference_loss(c, r, kind="orpo")[0].item() == pytest.approx(0.1 * math.log1p(math.exp(-odds)))


def test_bco_draws_its_line_at_the_margin():
    c, r = torch.tensor([2.0]).double(), torch.tensor([-1.0]).double()
    zero = torch.zeros(1).double()
    want = math.log1p(math.exp(-(0.1 * 2 - 0.3))) + math.log1p(math.exp(-(0.3 + 0.1)))
    assert preference_loss(c, r, zero, zero, kind="bco", margin=0.3)[0].item() == pytest.approx(want)


def test_kto_by_hand():
    logp, ref = torch.tensor([-1.0, -2.0, -3.0]).double().requires_grad_(), torch.tensor([-2.0, -1.0, -3.5]).double()
    good = torch.tensor([True, False, False])
    loss, metrics = kto_loss(logp, ref, good, kl=0.4, beta=0.5, weights=(1.0, 2.0))

    def s(x):
        return 1 / (1 + math.exp(-x))

    want = (1 - s(0.5 * (1 - 0.4))) + 2 * (1 - s(0.5 * (0.4 + 1))) + 2 * (1 - s(0.5 * (0.4 - 0.5)))
    assert loss.item() == pytest.approx(want / 3)
    assert metrics["chosen_reward"].item() == pytest.approx(0.5)
    assert metrics["rejected_reward"].item() == pytest.approx(0.5 * (-1 + 0.5) / 2)
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, ref, good, kl=0.4)[0], (logp,))


def test_bradley_terry_and_smoothing_are_their_formulas():
    good, bad, margin, _ = pairs()
    want = -functional.logsigmoid(good - bad - margin).mean()  # TRL's RewardTrainer
    torch.testing.assert_close(preference_loss(good, bad, kind="bradley_terry", margin=margin)[0], want)
    h = 0.1 * (good - bad)
    want = functional.binary_cross_entropy_with_logits(h, torch.full_like(h, 0.8))  # labels are right with chance .8
    torch.testing.assert_close(preference_loss(good, bad, label_smoothing=0.2)[0], want)


def test_degree_loss():
    logits = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    got = degree_loss(*logits, torch.tensor([2]), torch.tensor([0])).item()
    assert got == pytest.approx(math.log(3) + math.log(1 + 2 * math.exp(-2)))


def test_one_graph():
    sides = pairs()

    def loss():
        return preference_loss(*sides)[0]

    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(), loss())


# ---- messages -------------------------------------------------------------------------------------------------------

ROW, TABLE = torch.zeros(3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preference_loss(ROW, ROW, kind="ppo"), "kind must be one of .*'dpo'.*, got 'ppo'"),
        (lambda: preference_loss(ROW, ROW, kind="nca"), "kind 'nca' needs ref_chosen and ref_rejected"),
        (lambda: preference_loss(ROW, ROW, kind="hinge", margin=1.0), "kind 'hinge' has no margin, got 1.0"),
        (lambda: preference_loss(ROW, ROW, kind="ipo", label_smoothing=0.1), "kind 'ipo' has no label_smoothing"),
        (lambda: preference_loss(ROW, ROW, kind="exo", label_smoothing=0.0), "needs a label_smoothing above 0"),
        (lambda: kto_loss(ROW, ROW, ROW), "desirable must be bool, got torch.float32"),
        (lambda: kto_loss(ROW, ROW[:2], ROW.bool()), r"ref_logp must have logp's shape \(B,\), got \(2,\)"),
        (lambda: kto_loss(ROW, ROW, ROW.bool(), kl=-1.0), "kl must be at least 0, got -1.0"),
        (lambda: preference_loss(ROW, ROW, ROW), "ref_chosen and ref_rejected go together"),
        (lambda: preference_loss(ROW, ROW, ROW, ROW, kind="bradley_terry"), "takes no reference"),
        (lambda: preference_loss(ROW, ROW[:2]), r"rejected must have chosen's shape \(B,\), got \(2,\) beside \(3,\)"),
        (lambda: preference_loss(TABLE, TABLE), r"chosen must have chosen's shape \(B,\), got \(3, 4\)"),
        (lambda: preference_loss(ROW, ROW.half()), "rejected must be float32 or float64, got torch.float16"),
        (lambda: preference_loss(ROW, ROW, label_smoothing=0.5), r"in \[0, .5\), got 0.5"),
        (lambda: preference_loss(ROW, ROW, beta=0.0), "beta must be above 0, got 0.0"),
        (lambda: preference_loss(ROW, ROW, beta=1e39), r"beta must be in \[1.08e-19, 9.22e\+18\], got 1e\+39"),
        (lambda: preference_loss(ROW, ROW, kind="ipo", beta=1e-50), r"beta must be in .*, got 1e-50"),
        (lambda: preference_loss(ROW, ROW, beta=math.nan), "beta must be above 0, got nan"),
        (lambda: preference_loss(ROW, ROW, margin=ROW[:, None]), r"margin must be .* shape \(3,\), got \(3, 1\)"),
        (lambda: preference_loss(ROW, ROW, normalizer=0), "normalizer must be one number above 0, got 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
