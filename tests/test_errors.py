"""Wrong input raises before any work, with a message that names the argument, what came and what was expected."""

import math

import pytest
import torch

from warpup import policy_loss, token_logprob

# ---- token_logprob --------------------------------------------------------------------------------------------------

LOGPROB = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, dtype=torch.int64)}
LOGPROB_WRONG = [
    ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, "logits must be float32, .*got int64"),
    ({"logits": torch.zeros(2, 3, dtype=torch.complex64)}, "float64, float32"),
    ({"logits": torch.tensor(0.0)}, "logits must have at least 1 dimension, got a scalar"),
    ({"logits": torch.zeros(3, 2).T}, r"last dimension of logits must have stride 1, got 2; call .contiguous\(\)"),
    ({"targets": torch.zeros(2)}, "targets must be int64, got float32"),
    ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets must be int64, got int32"),
    ({"targets": torch.zeros(3, dtype=torch.int64)}, r"targets must have shape \(2\), got \(3\)"),
    ({"targets": torch.zeros(2, 1, dtype=torch.int64)}, r"targets must have shape \(2\), got \(2, 1\)"),
    ({"targets": torch.tensor([0, 3])}, r"targets\[1\] = 3 is outside \[0, 3\) and is not ignore_index \(-100\)"),
    ({"targets": torch.tensor([-1, 0])}, r"targets\[0\] = -1 is outside \[0, 3\)"),
    ({"targets": torch.tensor([0, -100]), "ignore_index": -1}, r"targets\[1\] = -100 is outside"),
    ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    ({"temperature": -1.0}, "temperature must be above 0, got -1"),
    ({"temperature": math.nan}, "temperature must be above 0, got nan"),
    ({"temperature": torch.tensor([1.0, 0.0])}, "temperature must be above 0, got 0 in row 1"),
    ({"temperature": torch.ones(3)}, r"temperature must have shape \(2\), got \(3\)"),
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
    """The raw op and `_core` take gradients from anyone."""
    ops, z, y = torch.ops.warpup, LOGPROB["logits"], LOGPROB["targets"]
    given = (z, y, None, 1.0, -100, None, None, 0.0, None)
    *_, stats = ops.token_logprob(*given, False, False, False)
    wrong = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"grad_logp must have shape \(2\), got \(3\)"):
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
        ({"clip": (-0.1, 0.2)}, "clip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_policy_loss(change, message):
    good = {"logp": torch.zeros(2, 3), "old_logp": torch.zeros(2, 3), "advantages": torch.zeros(2),
            "mask": torch.ones(2, 3, dtype=torch.bool)}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**good, **change})
