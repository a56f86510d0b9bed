"""divergence beyond the contract: shapes, strides, special values, options, peers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.logprob.test_token_logprob import FLOATS, VOCABS, to
from tests.support.cases import OPS, gradients_of, upcast
from warpup import divergence
from warpup.divergence.divergence import DIVERGENCES, reference_divergence

CASE = OPS["divergence"]
INF, NAN = math.inf, math.nan
each_kind = pytest.mark.parametrize("kind", DIVERGENCES)


def randn(*shape, seed=0, scale=2.0, **options):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def swapping(kind, targets):
    """What the kinds take as targets: all but one take none."""
    return targets if kind == "logit_swap" else None


def pair(backend, *shape, dtype=torch.float32):
    return randn(*shape, seed=0).to(backend.device, dtype), randn(*shape, seed=1).to(backend.device, dtype)


@st.composite
def problems(draw):
    vocab = draw(st.one_of(VOCABS, st.sampled_from([4096, 5000])))
    lead = draw(st.sampled_from([(), (1,), (7,), (2, 5), (2, 1, 4)]))
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    count = math.prod(lead) * vocab

    def logits(layout):
        def fill(*shape):
            return (scale * torch.randn(shape, generator=generator)).to(dtype)

        if layout == "misaligned":
            return fill(count + 1)[1:].view(*lead, vocab)
        if layout == "padded":
            return fill(*lead, vocab + 3)[..., 1 : vocab + 1]
        if layout == "shifted" and lead:
            return fill(*lead[:-1], lead[-1] + 1, vocab)[..., :-1, :]
        return fill(*lead, vocab)

    layouts = st.sampled_from(["contiguous", "misaligned", "padded", "shifted"])
    sides = [logits(draw(layouts)) for _ in range(2)]
    for side in sides:
        if draw(st.booleans()):
            side[torch.rand(side.shape, generator=generator) < draw(st.sampled_from([0.01, 0.5]))] = -INF
    temperature = draw(st.sampled_from([1.0, 0.7, "per_row"]))
    if temperature == "per_row":
        temperature = torch.rand(lead, generator=generator) + 0.5
    mask = torch.rand(lead, generator=generator) < 0.7 if draw(st.booleans()) else None
    inputs = {"student_logits": sides[0], "teacher_logits": sides[1], "temperature": temperature, "mask": mask}
    kind = draw(st.sampled_from(DIVERGENCES))
    targets = swapping(kind, torch.randint(vocab, lead, generator=generator))
    beta = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 1.0])) if kind == "jsd" else None
    return inputs | {"kind": kind, "targets": targets, "beta": beta}


def check_bound(inputs):
    """Against float64 within some roundings of the largest terms. (The contract's rule takes the largest error of a
    plain formula, which a lucky one makes too small where there are few rows or tokens and much cancels.)"""
    value, grad = CASE.run(inputs)
    exact = upcast(inputs)
    want_value, want_grad = CASE.run(exact, CASE.reference)
    eps, t = torch.finfo(value.dtype).eps, inputs["temperature"]
    t_min = t.min().item() if isinstance(t, torch.Tensor) and t.numel() else 0.5
    logs = [(exact[k] / t_min).nan_to_num(neginf=0.0) for k in ("student_logits", "teacher_logits")]
    size = sum(2 * x.abs().max() + math.log(x.shape[-1]) for x in logs)  # of -log p
    terms = inputs["student_logits"].shape[-1] if inputs["kind"] == "binary" else 1
    assert ((value.double() - want_value).abs() <= 16 * eps * terms * (1 + size)).all()
    info = torch.finfo(grad.dtype)
    tolerance = info.eps * (want_grad.abs() + info.tiny)
    assert ((grad.double() - want_grad).abs() <= tolerance + 64 * eps * (1 + size) / t_min).all()


@given(inputs=problems())
@settings(max_examples=100)
def test_shapes_strides_and_options(backend, inputs):
    check_bound(to(backend.device, inputs))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_launch(backend, kind, dtype):
    """Both sizes of block of the CUDA kernel, more than one piece of a row in its backward, a target in the last."""
    for vocab in (4096, 9001):
        student, teacher = pair(backend, 2, vocab, dtype=dtype)
        targets = swapping(kind, torch.tensor([vocab - 1, 17], device=backend.device))
        CASE.check({"student_logits": student, "teacher_logits": teacher, "kind": kind, "targets": targets})


def test_streaming_stores():
    """Over 16 MiB the CPU backward stores past the cache, in blocks, from any alignment of the result."""
    student, teacher = randn(60, 70001, seed=0), randn(60, 70001, seed=1)
    targets = torch.arange(60) * 1000
    CASE.check({"student_logits": student, "teacher_logits": teacher, "kind": "logit_swap", "targets": targets})


@each_kind
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0), (0, 0)])
def test_nothing(backend, kind, shape):
    student = torch.zeros(shape, device=backend.device, requires_grad=True)
    targets = swapping(kind, torch.zeros(shape[:-1], dtype=torch.int64, device=backend.device))
    mask = torch.zeros(shape[:-1], dtype=torch.bool, device=backend.device)
    value = divergence(student, torch.zeros(shape, device=backend.device), kind=kind, targets=targets, mask=mask)
    assert torch.equal(value, torch.zeros(shape[:-1], device=backend.device))
    value.sum().backward()
    assert student.grad.shape == shape


@pytest.mark.parametrize("layout", ["expanded", "strided"])
def test_gradient_strides(backend, layout):
    student, teacher = pair(backend, 3, 5, 131)
    gradient = {
        "expanded": torch.tensor(0.3, device=backend.device).expand(3, 5),
        "strided": randn(3, 10).to(backend.device)[:, ::2],
    }[layout]

    def gradients(g):
        z = student.detach().requires_grad_()
        return torch.autograd.grad(divergence(z, teacher), z, g)[0]

    assert torch.equal(gradients(gradient), gradients(gradient.contiguous()))


def test_teacher_is_constant(backend):
    student, teacher = (x.requires_grad_() for x in pair(backend, 3, 7))
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    if backend.name != "hostcuda":  # its raw ops are not registered with autograd
        assert not divergence(student.detach(), teacher).requires_grad
    assert student.grad.abs().max() > 0.01


@each_kind
@pytest.mark.parametrize("dtype", FLOATS)
def test_inplace_backward(backend, kind, dtype):
    inputs = CASE.make(dtype=dtype, device=backend.device, variant=f"{kind}+special")
    *_, want = CASE.run(inputs)
    leaf = inputs["student_logits"].clone().requires_grad_()
    logits = leaf * 1
    value = divergence(**{**inputs, "student_logits": logits}, inplace_backward=True)
    loss = (value * gradients_of([value])[0]).sum()
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, want)
    assert torch.equal(logits, want), "the gradient is not where the logits were"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_kind
def test_scale_by_t2(backend, kind):
    inputs = CASE.make(device=backend.device, variant=f"{kind}+special")
    value, gradient = CASE.run(inputs)
    scaled = CASE.run({**inputs, "scale_by_t2": True})
    torch.testing.assert_close(scaled[0], value * inputs["temperature"] ** 2)
    torch.testing.assert_close(scaled[1], gradient * inputs["temperature"].unsqueeze(-1) ** 2)


# ---- special values -------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocab", [6, 2600])
def test_minus_infinity(backend, kind, dtype, vocab):
    """Whichever side rules tokens out, value and gradient are finite, and exact for the sum of what is left."""
    student, teacher = pair(backend, 7, vocab, dtype=dtype)
    student[0, : vocab // 2] = -INF  # with vocab 2600: a whole block of the CPU kernel first
    teacher[1, : vocab // 2] = -INF
    student[2, 1:] = -INF
    teacher[3, 1:] = -INF
    student[4, : vocab // 2], teacher[4, vocab // 2 :] = -INF, -INF  # no token in common
    student[5] = -INF
    teacher[6] = -INF
    targets = torch.arange(7, device=backend.device) % vocab
    inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind}
    inputs["targets"] = targets if kind == "logit_swap" else None
    CASE.check(inputs)
    value, grad = CASE.run(inputs)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert (grad[student == -INF] == 0).all()
    if kind != "binary":
        assert value[5:].tolist() == [0, 0]
        assert (grad[5:] == 0).all()


@each_kind
@pytest.mark.parametrize("content", [NAN, INF, -INF])
def test_masked_rows_are_exactly_zero(backend, kind, content):
    """Whatever stands in them, targets included."""
    student, teacher = pair(backend, 4, 9)
    student[1], teacher[2], student[3, 0], teacher[3, 1] = content, content, content, content
    mask = torch.tensor([True, False, False, False], device=backend.device)
    targets = swapping(kind, torch.tensor([3, -100, 9, -1], device=backend.device))
    inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind, "mask": mask, "targets": targets}
    value, grad = CASE.run(inputs)
    assert value[1:].tolist() == [0, 0, 0]
    assert (grad[1:] == 0).all()
    assert grad[0].isfinite().all()
    assert grad[0].abs().max() > 0


@each_kind
@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("side", ["student_logits", "teacher_logits"])
def test_nan_and_infinity_stay_in_their_row(backend, kind, value, side):
    if kind == "binary" and value == INF:
        pytest.skip("sigmoid(inf) = 1 is a number")
    student, teacher = pair(backend, 3, 2600)
    inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind}
    inputs["targets"] = swapping(kind, torch.tensor([0, 2000, 9], device=backend.device))
    inputs[side][1, 2500] = value
    result, grad = CASE.run(inputs)
    assert result.isnan().tolist() == [False, True, False]
    assert grad[[0, 2]].isfinite().all()


@each_kind
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_huge(backend, kind, size, temperature):
    student, teacher = (x / 2 * size for x in pair(backend, 4, 65))
    student[2], teacher[3] = size, -size
    inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind, "temperature": temperature}
    inputs["targets"] = swapping(kind, torch.arange(4, device=backend.device))
    CASE.check(inputs)
    value, grad = CASE.run(inputs)
    assert value.isfinite().all()
    assert grad.isfinite().all()


@each_kind
def test_equal_distributions(backend, kind):
    """No divergence and no gradient, to rounding; logits differ by a constant, which only the binary kind sees."""
    student, _ = pair(backend, 4, 300)
    shift = 0 if kind == "binary" else 2.0
    targets = swapping(kind, student.argmax(-1))  # nothing to swap
    inputs = {"student_logits": student, "teacher_logits": student + shift, "kind": kind, "targets": targets}
    value, grad = CASE.run(inputs)
    entropy = -(student.softmax(-1) * student.log_softmax(-1)).sum(-1) if kind == "symmetric_ce" else 0 * value
    torch.testing.assert_close(value, entropy, atol=2e-6, rtol=2e-6)
    if kind != "symmetric_ce":
        assert grad.abs().max() < 2e-6


@each_kind
@pytest.mark.parametrize("vocab", [300, 50000])
def test_uniform(backend, kind, vocab):
    """Equal terms, whose roundings all go one way, against the closed form: the teacher knows half of the tokens."""
    student, teacher = torch.zeros(2, 1, vocab, device=backend.device)
    teacher[:, vocab // 2 :] = -INF
    half, log2 = vocab // 2, math.log(2)
    want = {
        "forward": log2,
        "reverse": -log2 / 2,
        "jeffreys": log2 / 2,
        "jsd": 0.5 * math.log(4 / 3) + 0.25 * (math.log(2 / 3) + log2),
        "symmetric_ce": 0.5 * math.log(vocab) + 0.25 * math.log(half),
        "logit_swap": log2,
        "binary": half * log2,
    }[kind]
    targets = swapping(kind, torch.zeros(1, dtype=torch.int64, device=backend.device))
    value = divergence(student, teacher, kind=kind, targets=targets)
    assert value.item() == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_swap_of_equal_maxima(backend):
    """The first of equal logits counts as the largest."""
    teacher = torch.tensor([[1.0, 3.0, 0.0, 3.0]], device=backend.device)
    student, targets = randn(1, 4).to(backend.device), torch.tensor([2], device=backend.device)
    got = divergence(student, teacher, kind="logit_swap", targets=targets)
    want = divergence(student, torch.tensor([[1.0, 0.0, 3.0, 3.0]], device=backend.device))
    torch.testing.assert_close(got, want)


# ---- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trl(backend, beta):
    """TRL's generalized_jsd_loss, values and gradients. Its mixture is ours (beta: the teacher's share) and so are its
    ends: 0 is forward, 1 reverse. Reduction "sum" takes ours summed; masked tokens are left out of both."""
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    student, teacher = pair(backend, 2, 3, 300)
    labels = torch.tensor([[1, -100, 3], [4, 5, -100]], device=backend.device)
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = divergence(mine, teacher, kind="jsd", beta=beta, temperature=1.7, mask=labels != -100).sum()
    want = gkd.GKDTrainer.generalized_jsd_loss(theirs, teacher, labels, beta=beta, temperature=1.7, reduction="sum")
    torch.testing.assert_close(value, want)
    value.backward(), want.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_jsd_ends(backend):
    student, teacher = pair(backend, 4, 50)
    for beta, kind in ((0.0, "forward"), (1.0, "reverse")):
        assert torch.equal(divergence(student, teacher, kind="jsd", beta=beta), divergence(student, teacher, kind=kind))


def test_kl_div(backend):
    student, teacher = pair(backend, 5, 300)
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    forward, reverse = (F.kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((s, t), (t, s)))
    torch.testing.assert_close(divergence(student, teacher), forward)
    torch.testing.assert_close(divergence(student, teacher, kind="reverse"), reverse)
    torch.testing.assert_close(divergence(student, teacher, kind="jeffreys"), forward + reverse)
    ce = F.cross_entropy(student, teacher.softmax(-1), reduction="none")
    ce = 0.5 * (ce + F.cross_entropy(teacher, student.softmax(-1), reduction="none"))
    torch.testing.assert_close(divergence(student, teacher, kind="symmetric_ce"), ce)


def test_binary_cross_entropy(backend):
    student, teacher = pair(backend, 5, 300)
    t = (teacher / 2).sigmoid()
    entropy = F.binary_cross_entropy(t, t, reduction="none")
    want = 4 * (F.binary_cross_entropy_with_logits(student / 2, t, reduction="none") - entropy).sum(-1)
    torch.testing.assert_close(divergence(student, teacher, kind="binary", temperature=2.0, scale_by_t2=True), want)


def test_liger(backend):
    """Liger-Kernel's chunked jsd: `beta` weighs its teacher's term, as here; its chunk sums over the tokens."""
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction
    student, teacher = pair(backend, 5, 300)
    for beta in (0.0, 0.3, 1.0):
        got = divergence(student, teacher, kind="jsd", beta=beta).sum()
        torch.testing.assert_close(got, liger.distillation_loss_fn(student, teacher, beta=beta))


def test_reference_is_the_formula():
    """The oracle itself, against numbers worked out by hand: pS = (1/2, 1/4, 1/4), pT = (1/4, 1/2, 1/4)."""
    student = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    teacher = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64).log()
    log2 = math.log(2)
    want = {
        "forward": log2 / 4,
        "reverse": log2 / 4,
        "jeffreys": log2 / 2,
        "jsd": log2 / 4 * 3 - math.log(3) / 8 * 3 - (math.log(3) - 2 * log2) / 8 * 3 - log2 / 4,
        "symmetric_ce": 1.75 * log2,
        "logit_swap": 0.0,  # the swap makes the teacher the student
    }
    p, q = 1 / (1 + math.e**-1), 0.5
    want_binary = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    m = 0.375
    want["jsd"] = 0.5 * 2 * (0.25 * math.log(0.25 / m) + 0.5 * math.log(0.5 / m))
    for kind, value in want.items():
        got = reference_divergence(student, teacher, kind=kind, targets=torch.tensor([0]))
        assert got.item() == pytest.approx(value, abs=1e-14), kind
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert reference_divergence(one, zero, kind="binary").item() == pytest.approx(want_binary, abs=1e-14)


# ---- messages -------------------------------------------------------------------------------------------------------

GOOD = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3)}
WRONG = [
    ({"student_logits": torch.zeros(2, 3, dtype=torch.int64)}, "student_logits must be float32, .*got int64"),
    ({"student_logits": torch.tensor(0.0)}, "student_logits must have at least 1 dimension, got a scalar"),
    ({"student_logits": torch.zeros(3, 2).T}, "last dimension of student_logits must have stride 1, got 2"),
    ({"teacher_logits": torch.zeros(2, 4)}, r"teacher_logits must have shape \(2, 3\), got \(2, 4\)"),
    ({"teacher_logits": torch.zeros(2, 3).bfloat16()}, "teacher_logits must be float32, got bfloat16"),
    ({"teacher_logits": torch.zeros(3, 2).T}, "last dimension of teacher_logits must have stride 1, got 2"),
    ({"kind": "kl"}, "kind must be one of forward, reverse, .*, binary, got 'kl'"),
    ({"kind": "jsd", "beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
    ({"kind": "jsd", "beta": -0.1}, r"beta must be in \[0, 1\], got -0.1"),
    ({"kind": "jsd", "beta": NAN}, r"beta must be in \[0, 1\], got nan"),
    ({"kind": "reverse", "beta": 0.5}, "beta belongs to kind 'jsd', not to 'reverse'"),
    ({"beta": 0.0}, "beta belongs to kind 'jsd', not to 'forward'"),
    ({"targets": torch.zeros(2, dtype=torch.int64)}, "targets belong to kind 'logit_swap', not to 'forward'"),
    ({"temperature": 0.0}, "temperature must be above 0, got 0"),
    ({"temperature": torch.tensor([1.0, -1.0])}, "temperature must be above 0, got -1 in row 1"),
    ({"temperature": torch.ones(3)}, r"temperature must have shape \(2\), got \(3\)"),
    ({"mask": torch.ones(2)}, "mask must be uint8/bool, got float32"),
    ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have shape \(2\), got \(3\)"),
    ({"kind": "logit_swap"}, "kind logit_swap needs targets, got None"),
    ({"kind": "logit_swap", "targets": torch.tensor([0, 3])}, r"targets\[1\] = 3 is outside \[0, 3\) and not masked"),
    ({"kind": "logit_swap", "targets": torch.zeros(2)}, "targets must be int64, got float32"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
@pytest.mark.parametrize("grad", [False, True])
def test_wrong_input(change, message, grad):
    arguments = {**GOOD, **change}
    if grad and arguments["student_logits"].is_floating_point():
        arguments["student_logits"] = arguments["student_logits"].detach().requires_grad_()
    with pytest.raises(ValueError, match=message):
        divergence(**arguments)
