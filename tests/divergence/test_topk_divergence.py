"""topk_divergence beyond the contract: shapes, masks, its meaning, messages."""

import math

import pytest
import torch

from tests.divergence.test_divergence import pair, randn
from tests.support.cases import OPS
from warpup import divergence, topk_divergence
from warpup.divergence.topk_divergence import reference_topk_divergence

CASE = OPS["topk_divergence"]
NAN = math.nan


def test_of_everything_is_forward(backend):
    student, teacher = pair(backend, 3, 50)
    ids = torch.stack([torch.randperm(50) for _ in range(3)]).to(backend.device)
    mine, full = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = topk_divergence(mine, ids, teacher.log_softmax(-1).gather(-1, ids))
    want = divergence(full, teacher)
    torch.testing.assert_close(value, want)
    value.sum().backward(), want.sum().backward()
    torch.testing.assert_close(mine.grad, full.grad)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 2050), (0, 5), (1, 9001)])
@pytest.mark.parametrize("k", [0, 1, 5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(backend, shape, k, dtype):
    student = randn(*shape).to(backend.device, dtype)
    ids = torch.randint(shape[-1], (*shape[:-1], k), generator=torch.Generator().manual_seed(0)).to(backend.device)
    logp = randn(*shape[:-1], max(k, 1), seed=1).log_softmax(-1)[..., :k].to(backend.device)
    CASE.check({"student_logits": student, "teacher_ids": ids, "teacher_logp": logp, "temperature": 0.7})


def test_is_not_renormalised(backend):
    """Half of the teacher's mass listed, on a token to which the student gives all: log(.5) / 2."""
    student = torch.tensor([[100.0, 0.0]], device=backend.device)
    ids, logp = torch.tensor([[0]], device=backend.device), torch.tensor([[math.log(0.5)]], device=backend.device)
    torch.testing.assert_close(topk_divergence(student, ids, logp).item(), 0.5 * math.log(0.5))


def test_masked_rows(backend):
    student = torch.full((2, 5), NAN, device=backend.device, requires_grad=True)
    ids, logp = torch.full((2, 3), -1, device=backend.device), torch.full((2, 3), NAN, device=backend.device)
    value = topk_divergence(student, ids, logp, mask=torch.zeros(2, dtype=torch.bool, device=backend.device))
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert (student.grad == 0).all()


def test_reference_is_the_formula():
    student = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    logp = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    got = reference_topk_divergence(student, torch.tensor([[1, 2]]), logp)
    assert got.item() == pytest.approx(0.5 * math.log(2), abs=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_ids": torch.zeros(2, 2)}, "teacher_ids must be int64, got float32"),
        ({"teacher_ids": torch.tensor([[0, 1], [2, 3]])}, r"teacher_ids\[1, 1\] = 3 is outside \[0, 3\)"),
        ({"teacher_ids": torch.zeros(2, dtype=torch.int64)}, "teacher_ids must have 2 dimensions"),
        ({"teacher_ids": torch.zeros(3, 2, dtype=torch.int64), "teacher_logp": torch.zeros(3, 2)},
         r"teacher_ids without its last dimension must have shape \(2\), got \(3\)"),
        ({"teacher_logp": torch.zeros(2, 3)}, r"teacher_logp must have shape \(2, 2\), got \(2, 3\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"mask": torch.ones(2)}, "mask must be uint8/bool"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_input(change, message):
    good = {"student_logits": torch.zeros(2, 3), "teacher_ids": torch.zeros(2, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        topk_divergence(**{**good, "teacher_logp": torch.zeros(2, 2), **change})
