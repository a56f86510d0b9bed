"""token_logprob beyond the contract: shapes, strides, special values, options, peers, messages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS, agree, gradients_of, nudged, upcast
from warpup import token_logprob
from warpup.logprob import token_logprob as token_logprob_module
from warpup.logprob.token_logprob import IGNORE_INDEX, reference_token_logprob, sampled_tokens

CASE = OPS["token_logprob"]
INF, NAN = math.inf, math.nan
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

# Around: one element, 16-byte vectors, a warp, the CUDA kernels' blocks (1024), the CPU kernel's (2048).
VOCABS = st.sampled_from([1, 2, 3, 7, 8, 31, 32, 33, 127, 1023, 1025, 2047, 2048, 2049, 4097])


@st.composite
def problems(draw, vocabs=VOCABS):
    vocab = draw(vocabs)
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2), (1, 1)]))
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layout = draw(st.sampled_from(["contiguous", "misaligned", "padded", "shifted"]))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0]))
    count = math.prod(lead) * vocab

    def fill(*shape):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    if layout == "misaligned":
        logits = fill(count + 1)[1:].view(*lead, vocab)
    elif layout == "padded":  # a row has more elements than we look at
        logits = fill(*lead, vocab + 3)[..., 1 : vocab + 1]
    elif layout == "shifted" and lead:  # next-token prediction: all positions but the last
        logits = fill(*lead[:-1], lead[-1] + 1, vocab)[..., :-1, :]
    else:
        logits = fill(*lead, vocab)
    if draw(st.booleans()) and vocab > 1:
        logits[..., vocab // 2] = -INF
    targets = torch.randint(vocab, lead, generator=generator)
    if draw(st.booleans()):
        targets = torch.where(torch.rand(lead, generator=generator) < 0.3, IGNORE_INDEX, targets)
    temperature = draw(st.sampled_from([1.0, 0.7, "per_row"]))
    if temperature == "per_row":
        temperature = torch.rand(lead, generator=generator) + 0.5
    return {"logits": logits, "targets": targets, "temperature": temperature, "entropy": draw(st.booleans())}


def to(device, inputs):
    """Like `.to`, but on the same strides."""

    def move(v):
        if not isinstance(v, torch.Tensor) or device == "cpu":
            return v
        whole = v.as_strided((v.untyped_storage().nbytes() // v.element_size(),), (1,), 0).to(device)
        return whole.as_strided(v.shape, v.stride(), v.storage_offset())

    return {k: move(v) for k, v in inputs.items()}


@given(inputs=problems())
@settings(max_examples=60)
def test_shapes_strides_and_options(backend, inputs):
    """By the rule of `agree`, with a scale of 1 where the results are smaller: the entropy of a row that has nearly all
    of its probability on one token is a difference of numbers near 1."""
    inputs = to(backend.device, inputs)
    want = CASE.run(upcast(inputs), CASE.reference)
    naive = [CASE.run(i, CASE.reference) for i in (inputs, *(nudged(inputs, seed) for seed in range(4)))]
    *outputs, gradient = CASE.run(inputs)
    agree([gradient], want[-1:], [n[-1:] for n in naive])
    for got, w, *plain in zip(outputs, want[:-1], *(n[:-1] for n in naive), strict=True):
        assert got.shape == w.shape
        finite = w.isfinite()
        assert torch.equal(got[~finite].double(), w[~finite])
        if finite.any():
            w = w[finite]
            error, lucky = ((t[finite].double() - w).abs().max() for t in (got, torch.stack(plain).amax(0)))
            roundings = 16 if got.dtype == torch.float64 else 2
            assert error <= 2 * lucky + roundings * torch.finfo(got.dtype).eps * w.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_launch(backend, dtype):
    """Each size of block that the CUDA backend chooses between, and more than one piece of a row in its backward."""
    for vocab in (1024, 16384, 16391):
        generator = torch.Generator().manual_seed(vocab)
        logits = (4 * torch.randn(2, vocab, generator=generator)).to(backend.device, dtype)
        targets = torch.tensor([vocab - 1, 5000 % vocab], device=backend.device)
        CASE.check({"logits": logits, "targets": targets, "entropy": True})


def test_streaming_stores():
    """Over 16 MiB the CPU backward stores past the cache, in blocks, from any alignment of the result."""
    logits = torch.randn(60, 70001, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(60) * 1000
    CASE.check({"logits": logits, "targets": targets})


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 0)])
def test_no_rows(backend, shape):
    logits = torch.zeros(shape, device=backend.device, requires_grad=True)
    logp, entropy = token_logprob(
        logits, torch.zeros(shape[:-1], dtype=torch.int64, device=backend.device), entropy=True
    )
    assert logp.shape == entropy.shape == shape[:-1]
    (logp.sum() + entropy.sum()).backward()
    assert logits.grad.shape == shape


def test_no_vocabulary(backend):
    logits = torch.zeros(3, 0, device=backend.device, requires_grad=True)
    targets = torch.full((3,), IGNORE_INDEX, device=backend.device)
    logp, entropy = token_logprob(logits, targets, entropy=True)
    assert logp.tolist() == entropy.tolist() == [0, 0, 0]
    logp.sum().backward()
    assert logits.grad.shape == (3, 0)


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["expanded", "strided", "expanded_rows"])
def test_gradient_strides(backend, layout):
    """`.sum().backward()` gives a gradient with stride 0; a slice of a larger loss gives one with gaps."""
    inputs = CASE.make(device=backend.device, variant="entropy")
    logits = inputs["logits"].repeat(3, 1, 1)
    inputs |= {"logits": logits, "targets": inputs["targets"].repeat(3, 1), "temperature": 1.5}
    gradient = {
        "expanded": torch.tensor(0.3, device=backend.device).expand(3, 5),
        "strided": torch.randn(3, 10, generator=torch.Generator().manual_seed(0)).to(backend.device)[:, ::2],
        "expanded_rows": torch.arange(3.0, device=backend.device).unsqueeze(1).expand(3, 5),
    }[layout]

    def gradients(g):
        z = logits.detach().requires_grad_()
        return torch.autograd.grad(token_logprob(**{**inputs, "logits": z}), z, (g, 2 * g))[0]

    assert torch.equal(gradients(gradient), gradients(gradient.contiguous()))


def test_gradient_of_one_output(backend):
    """An output that the loss does not use must not matter, though its gradient is undefined."""
    inputs = CASE.make(device=backend.device, variant="entropy")
    z, gradient = inputs["logits"].requires_grad_(), {}
    for used in ("logp", "entropy", "both"):
        logp, entropy = token_logprob(**inputs)
        loss = {"logp": logp.sum(), "entropy": entropy.sum(), "both": logp.sum() + entropy.sum()}[used]
        (gradient[used],) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(gradient["both"], gradient["logp"] + gradient["entropy"])
    assert gradient["entropy"].abs().max() > 0.1


@pytest.mark.parametrize("asked", ["none", "entropy", "lse", "sum_p2"])
def test_what_is_not_asked_for_is_not_made(backend, asked):
    """It is not returned, is None below, and has no gradient: that of the log-probs alone is what arrives."""
    logits = torch.randn(3, 7, device=backend.device, requires_grad=True)
    targets = torch.tensor([0, 3, 6], device=backend.device)
    names = ("entropy", "lse", "sum_p2")
    flags = [name == asked for name in names]
    tokens = sampled_tokens("test", 7, targets, 1.0, IGNORE_INDEX)
    logp, *extras, stats = token_logprob_module._token_logprob(logits, *tokens, *flags)
    assert logp.requires_grad
    assert [e is not None and e.requires_grad for e in extras] == [e is not None for e in extras] == flags
    assert not stats.requires_grad
    found = token_logprob(logits, targets, **dict(zip(names, flags, strict=True)))
    if asked == "none":
        assert isinstance(found, torch.Tensor)
    else:
        assert [torch.equal(f, e) for f, e in zip(found, (logp, extras[names.index(asked)]), strict=True)] == [True] * 2
    (got,) = torch.autograd.grad(logp.sum(), logits)
    (want,) = torch.autograd.grad(torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).sum(), logits)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_inplace_backward(backend, dtype):
    inputs = CASE.make(dtype=dtype, device=backend.device, variant="entropy")
    *_, want = CASE.run(inputs)
    leaf = inputs["logits"].clone().requires_grad_()
    logits = leaf * 1  # what a model's last layer returns
    outputs = token_logprob(**{**inputs, "logits": logits}, inplace_backward=True)
    untouched = logits.detach().clone()
    loss = sum((o * g).sum() for o, g in zip(outputs, gradients_of(outputs), strict=True))
    assert torch.equal(logits, untouched), "the forward wrote to the logits"
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, want)
    assert torch.equal(logits, want), "the gradient is not where the logits were"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- several targets a row ------------------------------------------------------------------------------------------


def test_several_targets_are_calls_of_one_each(backend):
    """Bit for bit forward; the gradient is the sum of theirs."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 3, 5000, generator=generator)).to(backend.device)
    targets = torch.randint(5000, (2, 3, 40), generator=generator).to(backend.device)
    targets[0, 0, 7] = targets[0, 0, 3]
    targets[0, 1, ::2] = IGNORE_INDEX
    targets[1, 2] = IGNORE_INDEX
    weights = torch.randn(targets.shape, generator=generator).to(backend.device)

    def run(score):
        z = logits.clone().requires_grad_()
        logp = score(z)
        return logp.detach(), torch.autograd.grad((weights * logp).sum(), z)[0]

    logp, gradient = run(lambda z: token_logprob(z, targets))
    each, want = run(lambda z: torch.stack([token_logprob(z, y) for y in targets.unbind(-1)], -1))
    assert torch.equal(logp, each)
    torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)
    assert (gradient[1, 2] == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_of_several_that_cancel(backend, inplace):
    """Their sum is 0, and nothing but the two targets moves."""
    logits = torch.zeros(1, 9, device=backend.device, requires_grad=True)
    logp = token_logprob(logits * 1, torch.tensor([[2, 5]], device=backend.device), inplace_backward=inplace)
    (logp @ torch.tensor([1.0, -1.0], device=backend.device)).backward()
    assert logits.grad.tolist() == [[0, 0, 1, 0, 0, -1, 0, 0, 0]]


def test_several_that_are_strided_or_none(backend):
    logits = torch.randn(3, 11, device=backend.device)
    targets = torch.arange(12, device=backend.device).view(4, 3) % 11
    want = torch.log_softmax(logits, -1).gather(-1, targets.t())
    torch.testing.assert_close(token_logprob(logits, targets.t()), want)
    logp, entropy = token_logprob(logits, targets.t()[:, :0], entropy=True)
    assert logp.shape == (3, 0)
    assert entropy.tolist() == [0, 0, 0]  # as a row whose target is ignored


def test_several_under_transforms():
    """Forward mode and vmap, which see results of one number a row alone."""
    generator = torch.Generator().manual_seed(0)
    logits, tangent = torch.randn(2, 3, 4, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (3, 4, 2), generator=generator)
    targets[0, 0, 0] = targets[1, 1] = IGNORE_INDEX
    temperature = torch.rand(3, 4, generator=generator) + 0.5

    def score(function, z, y, t):
        return function(z, y, temperature=t, entropy=True, lse=True)

    got = torch.func.jvp(lambda z: score(token_logprob, z, targets, temperature), (logits,), (tangent,))
    want = torch.func.jvp(lambda z: score(reference_token_logprob, z, targets, temperature), (logits,), (tangent,))
    torch.testing.assert_close(got, want)
    got = torch.func.vmap(lambda z, y, t: score(token_logprob, z, y, t))(logits, targets, temperature)
    torch.testing.assert_close(got, want[0])


def test_no_targets_under_transforms():
    """A row without targets counts for nothing there too."""
    logits, targets = torch.randn(3, 7), torch.zeros(3, 0, dtype=torch.int64)

    def score(z, y):
        return token_logprob(z, y, entropy=True, lse=True)

    want = score(logits, targets)
    assert [r.shape for r in want] == [(3, 0), (3,), (3,)]
    torch.testing.assert_close(torch.func.vmap(score)(logits, targets), want)
    got, slopes = torch.func.jvp(lambda z: score(z, targets), (logits,), (torch.ones_like(logits),))
    torch.testing.assert_close(got, want)
    assert not any(s.any() for s in slopes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"targets": torch.zeros(2, 2, 3, dtype=torch.int64)},
            r"targets must have shape \(2\), or \(2, K\).*got \(2, 2, 3\)",
        ),
        (
            {"targets": torch.zeros(3, 2, dtype=torch.int64)},
            r"targets must have shape \(2\), or \(2, K\)",
        ),
        ({"targets": torch.tensor([[0, 1], [2, 5]])}, r"targets\[3\] = 5 is outside \[0, 5\)"),
        ({"temperature": torch.ones(2, 2)}, r"temperature must have shape \(2,\), got \(2, 2\)"),
    ],
)
def test_wrong_several(change, message):
    good = {"logits": torch.zeros(2, 5), "targets": torch.zeros(2, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        token_logprob(**{**good, **change})


# ---- special values -------------------------------------------------------------------------------------------------


def test_ignored_rows_are_exactly_zero(backend):
    """Whatever stands in them."""
    logits = torch.tensor([[1.0, 2.0], [NAN, NAN], [INF, 1.0], [-INF, -INF]], device=backend.device, requires_grad=True)
    targets = torch.tensor([0, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX], device=backend.device)
    logp, entropy = token_logprob(logits, targets, entropy=True)
    (logp + 2 * entropy).sum().backward()
    assert logp[1:].tolist() == entropy[1:].tolist() == [0, 0, 0]
    assert logits.grad[1:].tolist() == [[0, 0]] * 3
    assert logits.grad[0].isfinite().all()


def test_other_ignore_index(backend):
    logits = torch.randn(3, 5, device=backend.device)
    targets = torch.tensor([4, 0, 4], device=backend.device)
    assert token_logprob(logits, targets, ignore_index=4)[[0, 2]].tolist() == [0, 0]
    assert token_logprob(logits, targets, ignore_index=-7).lt(0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocab", [6, 2600])
def test_minus_infinity(backend, dtype, vocab):
    """Impossible tokens have p = 0: finite results, except the log-prob of an impossible target."""
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(0)).to(backend.device, dtype)
    logits[0, : vocab // 2] = -INF  # with vocab 2600: a whole block of the CPU kernel first
    logits[1, 1:] = -INF  # one token is left
    logits[2] = -INF
    logits[3, 3] = -INF
    logits[4, vocab // 2 :] = -INF
    targets = torch.tensor([vocab - 1, 0, 2, 3, 0], device=backend.device)
    inputs = {"logits": logits, "targets": targets, "entropy": True}
    CASE.check(inputs)
    logp, entropy, grad = CASE.run(inputs)
    assert logp[1] == entropy[1] == logp[2] == entropy[2] == 0
    assert (grad[1:3] == 0).all()
    assert logp[3] == -INF
    assert grad.isfinite().all()
    assert entropy.isfinite().all()


@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("position", [0, 1, 2500])
def test_nan_and_infinity_spread_over_their_row_only(backend, value, position):
    logits = torch.randn(3, 2600, generator=torch.Generator().manual_seed(0)).to(backend.device)
    logits[1, position] = value
    targets = torch.tensor([0, 1, 2], device=backend.device)
    logp, entropy, grad = CASE.run({"logits": logits, "targets": targets, "entropy": True})
    assert logp.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().all()
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float32, 1e30), (torch.bfloat16, 1e30)])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_huge(backend, dtype, size, temperature):
    logits = (torch.randn(4, 65, generator=torch.Generator().manual_seed(0)) * size).to(backend.device, dtype)
    logits[2] = size
    logits[3] = -size
    targets = logits.argmax(-1)
    targets[0] = logits[0].argmin()
    inputs = {"logits": logits, "targets": targets, "temperature": temperature, "entropy": True}
    CASE.check(inputs)
    logp, entropy, grad = CASE.run(inputs)
    torch.testing.assert_close(logp[2:], torch.full_like(logp[2:], -math.log(65)))
    torch.testing.assert_close(entropy[2:], torch.full_like(logp[2:], math.log(65)))
    assert grad.isfinite().all()


def test_float16_limits(backend):
    """65504, the largest float16, twice: the sum is no float16."""
    logits = torch.tensor([[65504.0, 65504.0, -65504.0]], dtype=torch.float16, device=backend.device)
    logp = token_logprob(logits, torch.tensor([0], device=backend.device), temperature=0.5)
    torch.testing.assert_close(logp.item(), -math.log(2))


def test_more_near_equal_classes_than_float16_counts(backend):
    """A fresh model with 128,256 tokens: torch's own log_softmax and cross_entropy in float16 are infinite there."""
    logits = torch.zeros(2, 128_256, dtype=torch.float16, device=backend.device, requires_grad=True)
    logp = token_logprob(logits, torch.tensor([0, 7], device=backend.device))
    assert logp.tolist() == pytest.approx([-math.log(128_256)] * 2)
    (grad,) = torch.autograd.grad(logp.sum(), logits)
    assert grad[0, 0].item() == pytest.approx(1 - 1 / 128_256, abs=1e-3)
    torch.testing.assert_close(grad[:, 1:7].float(), torch.full((2, 6), -1 / 128_256), rtol=0.05, atol=0)


def test_target_out_of_range_on_the_gpu(backend):
    """Checking would synchronise there, so the row is NaN and its neighbours are not."""
    if backend.name != "cuda":
        pytest.skip("CPU tensors are checked")
    logits = torch.randn(4, 5, device=backend.device)
    logp, _, _ = CASE.run(
        {"logits": logits, "targets": torch.tensor([0, 5, -1, 4], device=backend.device), "entropy": True}
    )
    assert logp.isnan().tolist() == [False, True, True, False]


# ---- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trl(backend, dtype):
    """TRL's selective_log_softmax and entropy_from_logits, in float32. They differ from ours by convention in two ways:
    for bfloat16 they round the log-probs to bfloat16 (so they are given float32 here), and the entropy of a row with a
    -inf logit is NaN (0 * -inf), where ours takes the limit 0."""
    utils = pytest.importorskip("trl.trainer.utils")
    logits = (2 * torch.randn(6, 300, generator=torch.Generator().manual_seed(0))).to(backend.device, dtype)
    targets = torch.arange(6, device=backend.device) * 50
    logp, entropy = token_logprob(logits, targets, entropy=True)
    torch.testing.assert_close(logp, utils.selective_log_softmax(logits.float(), targets))
    torch.testing.assert_close(entropy, utils.entropy_from_logits(logits.float()))

    logits[:, 7] = -INF
    logp, entropy = token_logprob(logits, targets, entropy=True)
    torch.testing.assert_close(logp, utils.selective_log_softmax(logits.float(), targets))
    assert utils.entropy_from_logits(logits.float()).isnan().all()
    kept = torch.cat([logits[:, :7], logits[:, 8:]], -1)
    torch.testing.assert_close(entropy, utils.entropy_from_logits(kept.float()))


def test_cross_entropy(backend):
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)).to(backend.device)
    targets = torch.tensor([0, 299, IGNORE_INDEX, 5, IGNORE_INDEX, 7], device=backend.device)
    want = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(token_logprob(logits, targets), -want)


def test_reference_is_the_formula():
    """The oracle itself, against numbers worked out by hand: p = (1/2, 1/4, 1/4, 0)."""
    logits = torch.tensor([[4.0, 2.0, 2.0, 0.0]], dtype=torch.float64).log()
    logp, entropy = reference_token_logprob(logits, torch.tensor([1]), entropy=True)
    assert logp.item() == pytest.approx(-2 * math.log(2), abs=1e-15)
    assert entropy.item() == pytest.approx(1.5 * math.log(2), abs=1e-15)
    logp, entropy = reference_token_logprob(logits, torch.tensor([1]), entropy=True, temperature=0.5)  # 16 : 4 : 4
    assert logp.item() == pytest.approx(-math.log(6), abs=1e-15)
