"""linear_divergence: chunks, frozen operands, layouts, torch's own checks, peers, messages."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.conftest import Backend
from tests.divergence.test_divergence import each_kind, randn, swapping
from tests.logprob.test_token_logprob import FLOATS
from tests.support.cases import agree, gradients_of, nudged
from warpup import divergence, linear_divergence
from warpup.divergence.linear_divergence import reference_linear_divergence


def problem(backend, n=7, vocab=131, h_s=5, h_t=6, dtype=torch.float32, kind="forward"):
    shapes = {"student_hidden": (n, h_s), "student_weight": (vocab, h_s)}
    shapes |= {"teacher_hidden": (n, h_t), "teacher_weight": (vocab, h_t)}
    inputs = {k: randn(*s, seed=i, scale=1.0).to(backend.device, dtype) for i, (k, s) in enumerate(shapes.items())}
    options = {"kind": kind, "beta": 0.3 if kind == "jsd" else None}
    options["mask"] = torch.arange(n, device=backend.device) != 1
    options["temperature"] = torch.linspace(0.5, 1.5, n, device=backend.device)
    options["targets"] = swapping(kind, torch.arange(n, device=backend.device) % vocab)
    return inputs, options


def run(function, inputs, options, wrt=("student_hidden", "student_weight")):
    inputs = {k: v.detach().requires_grad_(k in wrt) for k, v in inputs.items()}
    value = function(**inputs, **options)
    return value.detach(), *torch.autograd.grad(value, [inputs[k] for k in wrt], gradients_of([value]))


@each_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chunk", [None, 3])
def test_reference(backend, kind, dtype, chunk):
    inputs, options = problem(backend, dtype=dtype, kind=kind)
    got = run(linear_divergence, inputs, {**options, "chunk": chunk})
    want = run(reference_linear_divergence, {k: v.double() for k, v in inputs.items()}, options)
    perturbed = (inputs, *(nudged(inputs, seed) for seed in range(4)))
    agree(got, want, [run(reference_linear_divergence, i, options) for i in perturbed])


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_chunks(backend, chunk):
    """Values do not depend on the chunk beyond the GEMM's rounding; N = 0 has no chunk at all."""
    inputs, options = problem(backend, dtype=torch.float64)
    want = run(linear_divergence, inputs, options)
    for g, w in zip(run(linear_divergence, inputs, {**options, "chunk": chunk}), want, strict=True):
        torch.testing.assert_close(g, w)
    value, hidden, weight = run(linear_divergence, *problem(backend, n=0))
    assert value.shape == (0,)
    assert hidden.shape == (0, 5)
    assert (weight == 0).all()


@each_kind
def test_gradcheck(backend, kind):
    inputs, options = problem(backend, n=3, vocab=7, dtype=torch.float64, kind=kind)
    frozen = [inputs[k] for k in ("teacher_hidden", "teacher_weight")]
    varied = [inputs[k].requires_grad_() for k in ("student_hidden", "student_weight")]
    assert torch.autograd.gradcheck(lambda h, w: linear_divergence(h, w, *frozen, chunk=2, **options), varied)


@pytest.mark.parametrize("chunk", [None, 2])
def test_bias_scale_and_cap_of_each_side(backend, chunk):
    inputs, options = problem(backend, dtype=torch.float64, kind="reverse")
    biases = {"bias": randn(131, seed=8), "teacher_bias": randn(131, seed=9)}
    inputs |= {k: v.to(backend.device, torch.float64) for k, v in biases.items()}
    options |= {"scale": 0.8, "softcap": 2.0, "teacher_scale": 1.5, "teacher_softcap": 4.0}
    wrt = ("student_hidden", "student_weight", "bias")
    got = run(linear_divergence, inputs, {**options, "chunk": chunk}, wrt)
    for g, w in zip(got, run(reference_linear_divergence, inputs, options, wrt), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("wrt", [("student_hidden",), ("student_weight",)])
def test_frozen(backend, wrt, monkeypatch):
    """What is frozen costs no GEMM."""
    inputs, options = problem(backend)
    want = dict(zip(("student_hidden", "student_weight"), run(linear_divergence, inputs, options)[1:], strict=True))
    calls = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _, got = run(linear_divergence, inputs, options, wrt)
    calls = [e.name for e in profile.events() if e.name in ("aten::mm", "aten::addmm", "aten::addmm_")]
    assert torch.equal(got, want[wrt[0]])
    assert len(set(calls)) <= 2
    assert sum(name != "aten::addmm" for name in calls) == 5, "2 forward, these 2 again, 1 gradient"


def test_leading_dimensions(backend):
    inputs, options = problem(backend, n=6)
    want = linear_divergence(**inputs, **options)
    rows = {k: v.view(2, 3, -1) for k, v in inputs.items() if "hidden" in k}
    per_row = {k: v.view(2, 3) for k, v in options.items() if isinstance(v, torch.Tensor)}
    assert torch.equal(linear_divergence(**{**inputs, **rows}, **{**options, **per_row}), want.view(2, 3))


def test_weight_gradient_adds_up_in_float32(backend):
    """512 chunks of one row: in bfloat16 the sum would stop growing at 256 times its terms."""
    n, vocab = 512, 5
    ones = {"dtype": torch.bfloat16, "device": backend.device}
    weight = torch.zeros(vocab, 1, **ones).requires_grad_()
    teacher = torch.arange(vocab, **ones).unsqueeze(1)
    value = linear_divergence(torch.ones(n, 1, **ones), weight, torch.ones(n, 1, **ones), teacher, chunk=1)
    value.sum().backward()
    p = teacher.float().softmax(0)
    torch.testing.assert_close(weight.grad.float(), n * (0.2 - p), rtol=2e-2, atol=0)


def test_compile(device):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_divergence, fullgraph=True, dynamic=True, backend=counter)
    for n in (7, 9):
        inputs, options = problem(Backend(device, device), n=n)
        options |= {"temperature": 1.5, "chunk": 4}
        compilations = counter.frame_count
        got, want = (run(f, inputs, options) for f in (compiled, linear_divergence))
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, w)
    assert compilations == counter.frame_count > 0, "another shape compiled anew"


def test_compile_with_one_head_for_both(device):
    """Dynamo refuses a Function that is given a tensor twice."""
    torch.compiler.reset()
    hidden, weight = (torch.randn(n, 4, device=device, requires_grad=True) for n in (3, 7))
    compiled = torch.compile(linear_divergence, fullgraph=True, backend="aot_eager")
    for of in (hidden, 2 * hidden.detach()):
        inputs, options = (hidden, weight, of, weight), {"kind": "reverse", "softcap": 2.0}
        got, want = (f(*inputs, **options) for f in (compiled, linear_divergence))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            *(torch.autograd.grad(value.sum(), (hidden, weight)) for value in (got, want)), rtol=1e-5, atol=1e-6
        )


def test_opcheck(device):
    inputs, options = problem(Backend(device, device))
    student, teacher = list(inputs.values())[:2], list(inputs.values())[2:]
    bias = torch.zeros(131, device=device)
    options = (options["temperature"], options["mask"], None, "forward", 1.0, 0.5, 1.0, 0.0, 1.0, 0.0, 3)
    args = (*student, bias, *teacher, None, *options)
    torch.library.opcheck(torch.ops.warpup.linear_divergence.default, args)
    value, stats = torch.ops.warpup.linear_divergence(*args)
    for needs in ([True, True, True], [True, False, False], [False, True, False]):
        torch.library.opcheck(torch.ops.warpup.linear_divergence_backward.default, (*args, stats, value, needs))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_liger(device, beta):
    """Liger-Kernel's fused linear jsd with the soft loss alone: its loss is the mean over tokens that are not -100."""
    liger = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction
    inputs, _ = problem(Backend(device, device), n=6)
    labels = torch.tensor([1, -100, 3, 4, -100, 5], device=device)
    mine, theirs = ({k: v.clone().requires_grad_() for k, v in inputs.items()} for _ in range(2))
    value = linear_divergence(**mine, kind="jsd", beta=beta, mask=labels != -100).sum() / 4
    arguments = (*theirs.values(), labels, None, None, 0.0, 1.0, beta, -100, 1.0, False, 4)
    want = liger.apply(*arguments)
    want = want[0] if isinstance(want, tuple) else want
    torch.testing.assert_close(value, want)
    value.backward(), want.backward()
    for name in ("student_hidden", "student_weight"):
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_weight": torch.zeros(3, 5)}, r"student_weight must have shape \(V, H\) for student_hidden"),
        ({"teacher_weight": torch.zeros(4, 6)}, "must have the rows and the vocabulary of student_hidden"),
        ({"teacher_hidden": torch.zeros(3, 6)}, "must have the rows and the vocabulary of student_hidden"),
        ({"teacher_hidden": torch.zeros(2, 6).double()}, "teacher_hidden must be torch.float32 like student_hidden"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must have shape \(2,\), got \(3,\)"),
        ({"kind": "kl"}, "kind must be one of"),
        ({"beta": 0.3}, "linear_divergence: beta belongs to kind 'jsd', not to 'forward'"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, "targets belong to kind 'logit_swap', not to 'forward'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_wrong_input(change, message):
    good = {"student_hidden": torch.zeros(2, 4), "student_weight": torch.zeros(3, 4)}
    good |= {"teacher_hidden": torch.zeros(2, 6), "teacher_weight": torch.zeros(3, 6)}
    with pytest.raises(ValueError, match=message):
        linear_divergence(**{**good, **change})


def test_autocast():
    """float32 heads beside 16-bit hidden states, as mixed precision has them."""
    generator = torch.Generator().manual_seed(0)
    s, w, t, u = (torch.randn(n, 8, generator=generator) for n in (5, 50, 5, 50))
    w.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_divergence(s.bfloat16(), w, t, u)
        want = divergence(torch.nn.functional.linear(s, w), torch.nn.functional.linear(t, u))
    torch.testing.assert_close(got, want)
    assert torch.autograd.grad(got.sum(), w)[0].dtype == torch.float32
