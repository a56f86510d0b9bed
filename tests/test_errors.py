"""Wrong input raises before any work, with a message that names the argument, what came and what was expected."""

import math

import pytest
import torch

from warpup import divergence, policy_loss, replay_logprob, token_logprob
from warpup.policy.kinds import PolicyOptions

# ---- token_logprob --------------------------------------------------------------------------------------------------

LOGPROB = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, dtype=torch.int64)}
LOGPROB_WRONG = [
    ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "logits must be float32, .*got int64"),
    ({"logits": torch.zeros(2, 3, dtype=torch.complex64)}, "float64, float32"),
    ({"logits": torch.tensor(0.0)}, "logits must have at least 1 dimension, got a scalar"),
    ({"logits": torch.zeros(3, 2).T}, r"last dimension of logits must have stride 1, got 2; call .contiguous\(\)"),
    ({"targets": torch.zeros(2)}, "targets must be int64, got float32"),
    ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets must be int64, got int32"),
    ({"targets": torch.zeros(3, dtype=torch.int64)}, r"must have shape \(2\), or \(2, K\) for K.* a row, got \(3\)"),
    ({"targets": torch.zeros(2, 1, 1, dtype=torch.int64)}, r"targets must have shape \(2\), or.*got \(2, 1, 1\)"),
    ({"targets": torch.zeros(3, 1, dtype=torch.int64)}, r"targets must have shape \(2\), or.*got \(3, 1\)"),
    ({"targets": torch.tensor([0, 3])}, r"targets\[1\] = 3 is outside \[0, 3\) and is not ignore_index \(-100\)"),
    ({"targets": torch.tensor([-1, 0])}, r"targets\[0\] = -1 is outside \[0, 3\)"),
    ({"targets": torch.tensor([0, -100]), "ignore_index": -1}, r"targets\[1\] = -100 is outside"),
    ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    ({"temperature": -1.0}, "temperature must be above 0, got -1"),
    ({"temperature": math.nan}, "temperature must be above 0, got nan"),
    ({"temperature": torch.tensor([1.0, 0.0])}, "temperature must be above 0, got 0 in row 1"),
    ({"temperature": 1e-39}, r"must be in \[1.0842e-19, 9.22337e\+18\] where float32 is divided by it, got 1e-39"),
    ({"temperature": math.inf}, "where float32 is divided by it, got inf"),
    ({"temperature": torch.tensor([1.0, 1e-30])}, "where float32 is divided by it, got 1e-30 in row 1"),
    ({"logits": torch.zeros(2, 3, dtype=torch.float64), "temperature": 1e-160}, "where float64 is divided by it"),
    ({"temperature": torch.ones(3)}, r"temperature must have shape \(2,\), got \(3,\)"),
    ({"temperature": torch.ones(2, dtype=torch.float64)}, "temperature must be float32, got float64"),
    ({"logits": torch.zeros(2, 3, 2, 3)[:, :, 0].transpose(0, 1).unsqueeze(0).expand(2, 3, 2, 3),
      "targets": torch.zeros(2, 3, 2, dtype=torch.int64)}, r"leading dimensions of logits .* call .contiguous\(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), LOGPROB_WRONG, ids=[message[:40] for _, message in LOGPROB_WRONG])
@pytest.mark.parametrize("grad", [False, True])
def test_token_logprob(change, message, grad):
    arguments = {**LOGPROB, **change}
    if grad and arguments["logits"].is_floating_point():
        arguments["logits"] = arguments["logits"].detach().requires_grad_()
    with pytest.raises((ValueError, RuntimeError), match=message) as raised:
        token_logprob(**arguments)
    assert raised.type is ValueError


def test_token_logprob_backward():
    """The raw op and `warpup.arrays` take gradients from anyone."""
    ops, z, y = torch.ops.warpup, LOGPROB["logits"], LOGPROB["targets"]
    given = (z, y, None, 1.0, -100, None, None, 0.0, None, 1.0, 0.0)
    *_, stats = ops.token_logprob(*given, False, False, False)
    wrong = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"grad_logp must have shape \(2\), or .*, got \(3\)"):
        ops.token_logprob_backward(*given, stats, None, None, torch.ones(3), None, None, None)
    with pytest.raises(ValueError, match="grad_logp must be float32, got float64"):
        ops.token_logprob_backward(*given, stats, None, None, wrong, None, None, None)
    with pytest.raises(ValueError, match="grad_entropy needs the forward's entropy"):
        ops.token_logprob_backward(*given, stats, None, None, None, torch.ones(2), None, None)
    with pytest.raises(ValueError, match="stats must hold 2 values a row"):
        ops.token_logprob_backward(*given, stats[:1], None, None, torch.ones(2), None, None, None)
    with pytest.raises(ValueError, match=r"columns \[2, 5\) are not within a vocabulary of 4"):
        ops.token_logprob_backward_(*given, stats, None, None, torch.ones(2), None, None, None, 2, 4)


def test_other_device(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    with pytest.raises(ValueError, match="targets is on cpu, expected cuda"):
        token_logprob(LOGPROB["logits"].to(device), LOGPROB["targets"])


# ---- policy_loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "nope"}, "kind must be one of .*'grpo'.* got 'nope'"),
        ({"kl": "k4"}, "kl must be one of .* got 'k4'"),
        ({"normalizer": "batch"}, "normalizer must be one of .* got 'batch'"),
        ({"normalizer": 0.0}, "normalizer must be above 0, got 0.0"),
        ({"kl_coef": 0.1}, "ref_logp"),
        ({"old_logp": torch.zeros(2, 4)}, r"old_logp must have shape \(2, 3\), got \(2, 4\)"),
        ({"advantages": torch.zeros(3)}, r"advantages must have shape \(2\), got \(3\)"),
        ({"mask": torch.ones(2, dtype=torch.bool)}, "mask must have"),
        ({"logp": torch.zeros(2, 3, dtype=torch.bfloat16)}, "logp must be float32"),
        ({"logp": torch.zeros(6)}, "logp must have 2 dimensions"),
        ({"old_logp": torch.zeros(2, 3, dtype=torch.float64)}, "old_logp must be float32, got float64"),
        ({"clip": (-0.1, 0.2)}, r"clip must be two numbers >= 0, got \(-0.1, 0.2\)"),
        ({"clip": (0.1, 0.2), "kind": "sapo"}, "kind 'sapo' has no clip"),
        ({"clip": (0.2, 5.0), "kind": "cispo"}, r"kind 'cispo' holds the ratio from above only.*got \(0.2, 5.0\)"),
        ({"generator": torch.Generator()}, "generator draws for 'clip_cov' without selected.*kind 'grpo'"),
        ({"generator": torch.Generator(), "kind": "kl_cov"}, "generator draws for 'clip_cov' .*kind 'kl_cov'"),
        (
            {"generator": torch.Generator(), "kind": "clip_cov", "selected": torch.ones(2, 3, dtype=torch.bool)},
            "generator draws for 'clip_cov' without selected",
        ),
        ({"kl_corrected": True}, "kl_corrected needs a KL to correct, by ref_logp or ref_kl"),
        ({"ref_kl": torch.zeros(2, 3)}, "ref_kl belongs to kl='full', got kl='k3'"),
        (
            {"kl": "full", "ref_kl": torch.zeros(2, 3), "ref_logp": torch.zeros(2, 3)},
            "kl='full' takes the KL from ref_kl and has no use for ref_logp",
        ),
        ({"kl": "full", "ref_logp": torch.zeros(2, 3)}, "kl='full' takes the KL from ref_kl"),
        ({"delta": 1.0}, "delta must be above 1, got 1.0"),
        ({"dual_clip": 0.5}, "dual_clip must be above 1, got 0.5"),
        ({"dual_clip": 3.0, "kind": "cispo"}, "dual_clip belongs to the kinds that clip as PPO does, not to 'cispo'"),
        ({"constants": (1.0,)}, r"kind 'grpo' has 0 constants, got \(1.0,\)"),
        ({"constants": (1.0, 0.0), "kind": "sapo"}, "tau_negative must be above 0, got 0"),
        ({"constants": (1e-50, 1.0), "kind": "sapo"}, "tau_positive must be in .* where float32 is divided by it"),
        ({"constants": (1.0, 1e39, 1, 1), "kind": "vespo"}, r"lambda_positive must be a finite float32, got 1e\+39"),
        ({"kl_coef": math.nan, "ref_logp": torch.zeros(2, 3)}, "kl_coef must be a finite float32, got nan"),
        ({"entropy_coef": 1e39, "entropy": torch.zeros(2, 3)}, r"entropy_coef must be a finite float32, got 1e\+39"),
        ({"normalizer": 1e-50}, "normalizer must be in .* where float32 is divided by it, got 1e-50"),
        (
            {"selected": torch.ones(2, 3, dtype=torch.bool)},
            "selected belongs to 'clip_cov' and 'kl_cov', not to 'grpo'",
        ),
        ({"entropy_coef": 0.1}, "entropy_coef needs entropy"),
        ({"kl": "full", "kl_coef": 0.1}, "kl='full' needs ref_kl"),
        ({"weights": torch.ones(3)}, r"weights must have shape \(2\), got \(3\)"),
        ({"weights": torch.ones(2, 4)}, r"weights must have shape \(2, 3\), got \(2, 4\)"),
        ({"entropy": torch.ones(3), "entropy_coef": 0.1}, r"entropy must have shape \(2, 3\), got \(3\)"),
        ({"ref_kl": torch.ones(2, 3, dtype=torch.float64), "kl": "full", "kl_coef": 0.1}, "ref_kl must be float32"),
        ({"cu_seqlens": torch.tensor([0, 3, 6])}, r"logp must have 1 dimensions, got shape \(2, 3\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_policy_loss(change, message):
    good = {"logp": torch.zeros(2, 3), "old_logp": torch.zeros(2, 3), "advantages": torch.zeros(2),
            "mask": torch.ones(2, 3, dtype=torch.bool)}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 4, 2, 6])}, "cu_seqlens must not descend, got 4 and then 2"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "begin with 0 and end with the number of tokens, 6; got 0 and 5"),
        ({"cu_seqlens": torch.tensor([1, 6])}, "begin with 0 and end with the number of tokens, 6; got 1 and 6"),
        ({"cu_seqlens": torch.tensor([0])}, "cu_seqlens must have sequences . 1 entries, got shape .1. for 6 tokens"),
        ({"cu_seqlens": torch.zeros(0)}, "cu_seqlens must have sequences . 1 entries"),
        ({"cu_seqlens": torch.zeros(2, 1)}, "cu_seqlens must have 1 dimensions"),
        ({"advantages": torch.zeros(3)}, r"advantages must have shape \(6\), got \(3\)"),
        ({"normalizer": "constant"}, "normalizer 'constant' needs a number beside cu_seqlens"),
        ({"kind": "dr_grpo"}, "normalizer 'constant' needs a number beside cu_seqlens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_policy_loss_packed(change, message):
    good = {"logp": torch.zeros(6), "old_logp": torch.zeros(6), "advantages": torch.zeros(2),
            "mask": torch.ones(6, dtype=torch.bool), "cu_seqlens": torch.tensor([0, 4, 6])}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**good, **change})


def test_policy_loss_backward():
    """The raw op and `warpup.arrays` take options and gradients from anyone."""
    ops, z = torch.ops.warpup, torch.zeros(2, 3)
    optional = dict.fromkeys(("ref_logp", "weights", "penalty", "ref_kl", "entropy", "upstream", "cu_seqlens"))
    named = {
        "logp": z,
        "old_logp": z,
        "advantages": torch.zeros(2),
        "mask": z == 0,
        **optional,
        **PolicyOptions().raw(),
    }

    def forward(**changes):
        return ops.policy_loss(**{**named, "denominator": None, "with_losses": False, **changes})

    def backward(**changes):
        return ops.policy_loss_backward(**{**named, "row_state": state, "grad_loss": loss, **changes})

    for name in ("formula", "level", "kl", "normalizer"):
        with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'nope'"):
            forward(**{name: "nope"})
    with pytest.raises(ValueError, match=r"clip must leave an interval, got \[2, 1.2\]"):
        forward(floor=2.0)
    with pytest.raises(RuntimeError, match=r"missing value for argument 'floor'"):
        ops.policy_loss(**{k: v for k, v in named.items() if k != "floor"}, denominator=None, with_losses=False)
    loss, _, state, _ = forward()
    with pytest.raises(ValueError, match=r"row_state must hold 8 values, got shape \(1, 4\)"):
        backward(row_state=state[:1])
    with pytest.raises(ValueError, match="grad_loss must be float32, got float64"):
        backward(grad_loss=loss.double())


def test_rows_that_share_memory_cannot_be_written():
    """inplace_backward writes a gradient over each row."""
    y = torch.zeros(2, dtype=torch.int64)
    for shared in (
        torch.zeros(3).expand(2, 3),
        torch.zeros(4).unfold(0, 3, 1),
        torch.zeros(5).as_strided((2, 3), (2, 1)),
    ):
        with pytest.raises(ValueError, match="logits is written in place, but elements of it share memory"):
            token_logprob(shared, y, inplace_backward=True)
        with pytest.raises(ValueError, match="logits is written in place"):
            replay_logprob(shared, y, inplace_backward=True)
        with pytest.raises(ValueError, match="student_logits is written in place"):
            divergence(shared, torch.zeros(2, 3), inplace_backward=True)
    token_logprob(torch.zeros(4, 4)[::2, :3].requires_grad_(), y, inplace_backward=True).sum().backward()
    nothing = torch.empty_strided((2, 0, 3), (0, 3, 1))  # has no elements to share
    token_logprob(nothing.requires_grad_(), y.new_zeros(2, 0), inplace_backward=True).sum().backward()


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-39, math.inf, math.nan, torch.tensor([1.0, 1e-39])])
def test_temperature_of_kept_logits(temperature):
    kept = (torch.tensor([0, 0]), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"temperature must be above 0, from 1\.08e-19 to 9\.22e"):
        replay_logprob(torch.zeros(2, 3), LOGPROB["targets"], temperature=temperature, kept=kept)
