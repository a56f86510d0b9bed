"""topk_divergence beyond the contract: shapes, masks, its meaning, peers, messages."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.divergence.test_divergence import pair, randn
from tests.support.cases import OPS
from tests.support.released import imported, released
from warpup import divergence, token_logprob, topk_divergence
from warpup.divergence.topk_divergence import LEAST_TAIL, TOPK_DIVERGENCES, reference_topk_divergence

CASE = OPS["topk_divergence"]
NAN = math.nan


def with_gradient(function, student, *arguments, **options):
    student = student.detach().clone().requires_grad_()
    value = function(student, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("tail", [False, True])
def test_of_everything_is_divergence(backend, kind, tail):
    """Also with a tail, in which nothing is left."""
    student, teacher = pair(backend, 3, 50)
    ids = torch.stack([torch.randperm(50) for _ in range(3)]).to(backend.device)
    beta = 0.3 if kind == "jsd" else None
    logp = teacher.log_softmax(-1).gather(-1, ids)
    got = with_gradient(topk_divergence, student, ids, logp, kind=kind, beta=beta, tail=tail)
    want = with_gradient(divergence, student, teacher, kind=kind, beta=beta)
    least = -beta * math.log(beta) * LEAST_TAIL if beta else 0.0  # what the teacher's least tail adds to jsd
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=2e-6, atol=2e-6 + least)


@pytest.mark.parametrize(("kind", "beta"), [("jsd", 0.0), ("jsd", 1.0), ("mixed", 0.0), ("mixed", 0.3), ("mixed", 1.0)])
def test_both_ends_and_between(backend, kind, beta):
    """jsd at beta 0 is forward and mixed at 1; between its ends mixed is what its name says."""
    student, teacher = pair(backend, 3, 50)
    logp, ids = teacher.log_softmax(-1).topk(5)
    forward, reverse = (with_gradient(topk_divergence, student, ids, logp, kind=k) for k in ("forward", "reverse"))
    share = 1 - beta if kind == "jsd" else beta
    got = with_gradient(topk_divergence, student, ids, logp, kind=kind, beta=beta)
    for g, f, r in zip(got, forward, reverse, strict=True):
        torch.testing.assert_close(g, share * f + (1 - share) * r)


@pytest.mark.parametrize("kind", TOPK_DIVERGENCES)
@pytest.mark.parametrize("margin", [10.0, 30.0, 80.0])
def test_a_small_tail_has_its_digits(backend, kind, margin):
    """2,000 unlisted tokens share e^-margin: as what the listed ones leave of 1 it would be lost."""
    student = randn(2, 2003).double()
    student[:, :3] += margin
    logp = torch.tensor([[0.5, 0.3, 0.1], [0.6, 0.3, 0.1]]).log()
    ids = torch.arange(3).expand(2, 3).contiguous()
    options = {"kind": kind, "tail": True, "temperature": 1.0}
    want = with_gradient(reference_topk_divergence, student, ids, logp, **options)
    got = with_gradient(topk_divergence, *(t.to(backend.device) for t in (student.float(), ids, logp)), **options)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu().double(), w, rtol=1e-5, atol=1e-7)
    rest = w[:, 3:]  # relative to its own size, which is next to nothing but of forward and mixed
    torch.testing.assert_close(got[1][:, 3:].cpu().double(), rest, rtol=1e-4, atol=2e-5 * rest.abs().max().item())


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 2050), (0, 5), (1, 9001), (1, 70001)])
@pytest.mark.parametrize("k", [0, 1, 5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", [False, True])
def test_shapes(backend, shape, k, dtype, tail):
    student = randn(*shape).to(backend.device, dtype)
    ids = torch.randint(shape[-1], (*shape[:-1], k), generator=torch.Generator().manual_seed(0)).to(backend.device)
    logp = randn(*shape[:-1], max(k, 1), seed=1).log_softmax(-1)[..., :k].to(backend.device)
    inputs = {"student_logits": student, "teacher_ids": ids, "teacher_logp": logp, "temperature": 0.7}
    CASE.check({**inputs, "kind": "mixed" if tail else "forward", "tail": tail})


def test_is_not_renormalised(backend):
    """Half of the teacher's mass listed, on a token to which the student gives all: log(.5) / 2."""
    student = torch.tensor([[100.0, 0.0]], device=backend.device)
    ids, logp = torch.tensor([[0]], device=backend.device), torch.tensor([[math.log(0.5)]], device=backend.device)
    torch.testing.assert_close(topk_divergence(student, ids, logp).item(), 0.5 * math.log(0.5))


def test_what_is_not_listed_is_in_the_tail(backend):
    """A row that lists fewer than K: whatever ids stand beside -inf."""
    student, teacher = pair(backend, 3, 50)
    logp, ids = teacher.log_softmax(-1).topk(3)
    padded = torch.cat([logp, torch.full_like(logp, -math.inf)], -1), torch.cat([ids, 0 * ids], -1)
    got = with_gradient(topk_divergence, student, *padded[::-1], kind="jsd", tail=True)
    want = with_gradient(topk_divergence, student, ids, logp, kind="jsd", tail=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


# ---- peers ----------------------------------------------------------------------------------------------------------


def trl(student, teacher, alpha=1.0, tail=False):
    """TRL's self-distillation, on the student's own top 8; its server trainers compute the same from a teacher's."""
    utils = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    options = {"distillation_topk": 8, "distillation_alpha": alpha, "distillation_add_tail": tail}
    return with_gradient(utils.compute_topk_self_distillation_loss, student, teacher, **options)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", [True, False])
def test_trl(backend, alpha, tail):
    """Its tails are what the listed tokens leave of 1, at least 1e-7 on both sides; without a tail it renormalises,
    which is `divergence` of the listed logits."""
    student, teacher = (2 * randn(6, 300, seed=seed).double().to(backend.device) for seed in (0, 1))
    ids = student.topk(8).indices
    if tail:
        logp = teacher.log_softmax(-1).gather(-1, ids)
        got = with_gradient(topk_divergence, student, ids, logp, kind="jsd", beta=alpha, tail=True)
    else:
        got = with_gradient(
            lambda z: divergence(z.gather(-1, ids), teacher.gather(-1, ids), kind="jsd", beta=alpha), student
        )
    for g, w in zip(got, trl(student, teacher, alpha, tail), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


VERL = "verl.trainer.distillation.fsdp.losses"


@contextmanager
def verl_imported():
    """Its module, as one process without sequence parallelism sees it."""
    one = {"get_ulysses_sequence_parallel_world_size": lambda: 1}
    with imported(released("verl", "0.9.1"), [VERL], ["verl"], given={"verl.utils.ulysses": one}) as modules:
        yield modules[VERL]


def verl_loss(verl, student, ids, logp, clamp=-10.0):
    """Its forward_kl_topk; clamp: the least log-prob, by default as in its config."""
    loss = SimpleNamespace(log_prob_min_clamp=clamp, use_chunked_topk=False)
    packed = [torch.nested.nested_tensor_from_jagged(t, torch.tensor([0, len(t)])) for t in (logp, ids)]

    def theirs(z):
        found = verl.compute_forward_kl_topk(z.unsqueeze(0), *packed, SimpleNamespace(distillation_loss=loss), "thd")
        return found["distillation_losses"].squeeze(0)

    return with_gradient(theirs, student)


def test_verl():
    student, teacher = (2 * randn(5, 300, seed=seed) for seed in (0, 1))
    logp, ids = teacher.log_softmax(-1).topk(8)
    with verl_imported() as verl:
        want = verl_loss(verl, student, ids, logp, clamp=None)
    for g, w in zip(with_gradient(topk_divergence, student, ids, logp), want, strict=True):
        torch.testing.assert_close(g, w)


def test_a_teacher_that_is_e_minus_100_outside_the_list(backend):
    """NeMo-RL's zero_outside_topk (its formula; it is in no package index): reverse, and the rest of the student's
    entropy and probability, from the log-probs of K ids and the entropy that one pass gives."""
    student, teacher = (2 * randn(6, 300, seed=seed).double().to(backend.device) for seed in (0, 1))
    logp, ids = teacher.log_softmax(-1).topk(8)

    def ours(z):
        log_s, entropy = token_logprob(z, ids, entropy=True)
        p_s = log_s.exp()
        listed = topk_divergence(z, ids, logp, kind="reverse")
        return listed - entropy - (p_s * log_s).sum(-1) + 100 * (1 - p_s.sum(-1))

    outside = torch.full_like(teacher, -100.0).scatter(-1, ids, logp)

    def want(z):
        s = z.log_softmax(-1)
        return (s.exp() * (s - outside)).sum(-1)

    for g, w in zip(with_gradient(ours, student), with_gradient(want, student), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


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
        ({"softcap": 0.0}, "softcap must be above 0"),
        ({"kind": "jeffreys"}, "kind must be one of forward, reverse, jsd, mixed, got 'jeffreys'"),
        ({"kind": "mixed", "beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"kind": "reverse", "beta": 0.5}, "beta belongs to kinds 'jsd' and 'mixed', not to 'reverse'"),
        ({"mask": torch.ones(2)}, "mask must be uint8/bool"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_input(change, message):
    good = {"student_logits": torch.zeros(2, 3), "teacher_ids": torch.zeros(2, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        topk_divergence(**{**good, "teacher_logp": torch.zeros(2, 2), **change})
