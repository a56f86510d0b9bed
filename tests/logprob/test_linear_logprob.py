"""linear_logprob beyond the contract: slices, frozen and tied weights, layouts, messages; and replay_logprob."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS, gradients_of, leaves, upcast
from warpup import linear_logprob, replay_logprob, token_logprob
from warpup.logprob import linear_logprob as logprob_linear
from warpup.logprob.token_logprob import IGNORE_INDEX, sampled_tokens

CASE = OPS["linear_logprob"]


@st.composite
def problems(draw):
    rows, width = draw(st.sampled_from([0, 1, 3, 17])), draw(st.sampled_from([1, 2, 16, 33]))
    vocab = draw(st.sampled_from([1, 2, 31, 257, 2049]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    targets = torch.randint(vocab, (rows,), generator=generator)
    x = {"hidden": normal(rows, width).to(dtype), "weight": normal(vocab, width).to(dtype)}
    x["bias"] = normal(vocab).to(dtype) * draw(st.sampled_from([0.0, 1.0]))
    if draw(st.booleans()):  # a slice of something larger
        x["hidden"] = torch.cat([x["hidden"], x["hidden"]], 1)[:, width // 2 : width // 2 + width]
        x["weight"] = torch.cat([x["weight"], x["weight"]])[vocab // 2 : vocab // 2 + vocab]
    if draw(st.booleans()):
        targets = torch.where(torch.rand(rows, generator=generator) < 0.4, IGNORE_INDEX, targets)
    if draw(st.booleans()):
        large = 60.0 if dtype != torch.float64 else 2.0  # in float64 the oracle has no digits more than we
        x |= {"delta": draw(st.sampled_from([-large, 1.0, large])), "token_set": [0, vocab - 1], "temperature": 0.6}
    chunk = draw(st.sampled_from([None, 1, 7, 64, 5000]))
    names = draw(st.sets(st.sampled_from(["entropy", "lse", "sum_p2"])))
    return {**x, "targets": targets, "chunk": max(chunk, vocab // 40) if chunk else None, **dict.fromkeys(names, True)}


@given(x=problems())
@settings(max_examples=60)
def test_shapes_slices_and_options(backend, x):
    x = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    # The rule of `agree` with a scale of 1, the inputs', where the result is smaller: some gradients are exactly 0, and
    # the library adds a product up in another order for another shape.
    want = CASE.run(upcast(x), CASE.reference)
    for got, naive, w in zip(CASE.run(x), CASE.run(x, CASE.reference), want, strict=True):
        if w.numel():
            error, plain = ((t.double() - w).abs().max() for t in (got, naive))
            roundings = 4 if got.element_size() == 2 else 64
            assert error <= 2 * plain + roundings * torch.finfo(got.dtype).eps * w.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_leading_dimensions_and_transposed_hidden(backend, dtype):
    x = CASE.make("small", dtype, backend.device, variant="ignored")
    want = CASE.run(x)
    split = {**x, "hidden": x["hidden"].view(5, 1, -1), "targets": x["targets"].view(5, 1)}
    got = CASE.run(split)
    assert torch.equal(got[0].flatten(), want[0])
    transposed = {**x, "hidden": x["hidden"].t().contiguous().t()}
    torch.testing.assert_close(CASE.run(transposed)[1], want[1])


def test_same_as_token_logprob_of_the_logits(backend):
    """In float32, to the rounding of the products, for whatever slices."""
    x = CASE.make("small", device=backend.device)
    logits = x["hidden"] @ x["weight"].t()
    want = token_logprob(logits, x["targets"], entropy=True)
    for chunk in (None, 1, 50, 131, 1000):
        got = linear_logprob(x["hidden"], x["weight"], x["targets"], entropy=True, chunk=chunk)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_a_frozen_operand_costs_nothing(monkeypatch, trained):
    x = CASE.make("small", torch.float64, variant="ignored")
    want = dict(zip(("hidden", "weight", "bias"), CASE.run(x)[1:], strict=True))
    seen = []
    backward = torch.ops.warpup.linear_logprob_backward
    monkeypatch.setattr(torch.ops.warpup, "linear_logprob_backward", lambda *a: seen.append(backward(*a)) or seen[-1])
    logp = linear_logprob(**{**x, trained: x[trained].requires_grad_()})
    (grad,) = torch.autograd.grad(logp, x[trained], gradients_of([logp]))
    torch.testing.assert_close(grad, want[trained], rtol=1e-12, atol=1e-12)
    assert sorted(g.numel() > 0 for g in seen[0]) == [False, False, True]


def test_weight_made_of_others(backend):
    """A tied embedding gets both gradients; a composed weight (LoRA) hands its gradient on."""
    x = CASE.make("small", torch.float64, backend.device)
    base = x["weight"].requires_grad_()
    a, b = (torch.randn(*s, dtype=torch.float64, device=backend.device).requires_grad_() for s in ((131, 2), (2, 19)))
    ids = torch.arange(5, device=backend.device)

    def grads(function):
        loss = function(base[ids] * 2, base + a @ b, x["targets"])
        return torch.autograd.grad(loss.sum(), (base, a, b))

    for got, want in zip(grads(linear_logprob), grads(logprob_linear.reference_linear_logprob), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [(5,), (1, 4), (2, 0, 3), (0, 5), (5, 0)])
def test_packed_sequences(backend, lengths):
    """Each row scores the next id of its own sequence: as every sequence by itself."""
    x = CASE.make("small", torch.float64, backend.device)
    ids, cu = x["targets"], torch.tensor([0, *lengths], device=backend.device).cumsum(0)
    packed = linear_logprob(x["hidden"], x["weight"], ids, cu_seqlens=cu.int())
    want = torch.zeros_like(packed)
    for begin, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        if end - begin > 1:
            rows = slice(begin, end - 1)
            want[rows] = linear_logprob(x["hidden"][rows], x["weight"], ids[begin + 1 : end])
    torch.testing.assert_close(packed, want)
    empty = linear_logprob(x["hidden"][:0], x["weight"], ids[:0], cu_seqlens=cu[:1])
    assert empty.shape == (0,)


def test_no_logits_matrix():
    """The largest tensor that forward and backward make is one slice, whatever V is (but the weight's gradient)."""
    rows, width, vocab, chunk = 64, 8, 5000, 100
    x = CASE.inputs((rows, width, vocab), torch.float32, "cpu", 0, "plain")
    operands, tokens = (x["hidden"], x["weight"], None), sampled_tokens("test", vocab, x["targets"], 1.0, IGNORE_INDEX)
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made = [o.untyped_storage() for o in leaves(out if out is not None else ())]
            sizes.extend(s.nbytes() for s in made if s.data_ptr() != x["weight"].data_ptr())
            return out

    with Largest():
        logp, *_, stats = logprob_linear._forward(*operands, *tokens, chunk, False, False, False)
        logprob_linear._backward(
            *operands, *tokens, chunk, stats, None, None, logp, None, None, None, (True, False, False)
        )
    assert max(sizes) == rows * chunk * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(7, 3)}, r"hidden must be \(..., H\) and weight \(V, H\), got \(2, 4\) and \(7, 3\)"),
        ({"weight": torch.zeros(7)}, r"got \(2, 4\) and \(7,\)"),
        (
            {"weight": torch.zeros(7, 4, dtype=torch.float64)},
            "weight must be torch.float32 on cpu like hidden, got torch",
        ),
        ({"bias": torch.zeros(6)}, r"bias must have shape \(7,\), got \(6,\)"),
        (
            {"targets": torch.zeros(3, dtype=torch.int64)},
            r"targets must be int64 of shape \(2,\), got torch.int64 of shape \(3,\)",
        ),
        ({"targets": torch.tensor([0, 7])}, r"targets\[1\] = 7 is outside \[0, 7\)"),
        ({"cu_seqlens": torch.zeros(2, 2)}, r"with cu_seqlens, \(S \+ 1,\) integers on cpu, targets must be \(N,\)"),
        ({"cu_seqlens": torch.tensor([0, 1])}, r"cu_seqlens must rise from 0 to 2, got \[0, 1\]"),
        ({"cu_seqlens": torch.tensor([-1, 2])}, r"cu_seqlens must rise from 0 to 2, got \[-1, 2\]"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, "targets must be int64 of shape"),
        ({"delta": 1.0, "token_set": torch.tensor([-1])}, r"token_set must hold ids in \[0, 7\), got \[-1\]"),
        ({"delta": 1.0, "token_set": torch.tensor([1.0])}, "token_set must be ids, or a 1-d int64 tensor"),
        ({"temperature": torch.ones(2, 1)}, r"temperature must have shape \(2,\), got \(2, 1\)"),
        ({"kept_mask": torch.ones(7, 2, dtype=torch.bool)}, r"kept_mask must have shape \(2, 7\), got \(7, 2\)"),
        ({"delta": 1.0, "token_set": torch.ones(9, dtype=torch.bool)}, r"token_set must have shape \(7,\), got \(9,\)"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"delta": 1.0}, "delta needs token_set"),
        ({"delta": 1.0, "token_set": [7]}, r"token_set must hold ids in \[0, 7\), got \[7\]"),
    ],
)
def test_wrong_input(change, message):
    good = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(7, 4), "targets": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**good, **change})


# ---- replay_logprob -------------------------------------------------------------------------------------------------


def sampled(seed=0, rows=64, vocab=300):
    """Logits, a schedule (a delta and a temperature a row, on five tokens), and what a sampler under it drew."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocab, generator=generator)
    delta = 5 * torch.sin(torch.arange(rows) / 9.0)
    temperature = 0.5 + torch.rand(rows, generator=generator)
    token_set = torch.tensor([3, 50, 51, 200, 299])
    moved = logits.clone()
    moved[:, token_set] += delta.unsqueeze(1)
    probs = torch.softmax(moved.double() / temperature.unsqueeze(1), -1)
    targets = torch.multinomial(probs, 1, generator=generator).squeeze(1)
    logp = probs.gather(1, targets.unsqueeze(1)).squeeze(1).log().float()
    return logits, targets, logp, {"delta": delta, "temperature": temperature, "token_set": token_set}


def test_ratio_of_fresh_samples_is_one(backend):
    """With the replay to rounding; without it, it is not: the log-ratio's deviation is of the order of the schedule."""
    logits, targets, sampler_logp, schedule = sampled()
    logits, targets, sampler_logp = (t.to(backend.device) for t in (logits, targets, sampler_logp))
    schedule = {k: v.to(backend.device) for k, v in schedule.items()}
    ratio = (replay_logprob(logits, targets, **schedule) - sampler_logp).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-6)
    plain = (token_logprob(logits, targets, temperature=schedule["temperature"]) - sampler_logp).abs()
    assert plain.max() > 1


@pytest.mark.parametrize("delta", [0.0, -1e4, 1e4, 80.0])
def test_replay_equals_moved_logits(backend, delta):
    """However large delta / T is: all mass in the set, or none."""
    logits, targets, _, schedule = sampled(rows=8)
    schedule |= {"delta": delta, "entropy": True}
    CASE_TOKEN.check(
        {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in
         {"logits": logits, "targets": targets, **schedule}.items()}
    )  # fmt: skip


def test_replay_without_a_schedule_changes_no_bit(backend):
    logits, targets, _, schedule = sampled()
    logits, targets = logits.to(backend.device), targets.to(backend.device)
    want = token_logprob(logits, targets, temperature=0.7, entropy=True)
    got = replay_logprob(
        logits, targets, temperature=0.7, entropy=True, delta=0.0, token_set=schedule["token_set"].to(backend.device)
    )
    if backend.name == "cpu":
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    else:  # the replaying kernel takes another number of threads, so it adds up in another order
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


def test_kept_mask_is_top_k(backend):
    """A sampler that draws from the 20 likeliest: the log-prob is that of the renormalised rest, gradients included."""
    logits, _, _, _ = sampled(rows=6)
    top = logits.topk(20, -1)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top.indices, True).to(backend.device)
    logits, targets = logits.to(backend.device).requires_grad_(), top.indices[:, 3].to(backend.device)
    logp = replay_logprob(logits, targets, kept_mask=kept)
    want = torch.log_softmax(logits.masked_fill(~kept, -math.inf), -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logp, want)
    got, expected = (torch.autograd.grad(v.sum(), logits)[0] for v in (logp, want))
    torch.testing.assert_close(got, expected)
    assert (got[~kept] == 0).all()
    outside = (~kept).float().argmax(-1)
    assert (replay_logprob(logits, outside, kept_mask=kept) == -math.inf).all()


CASE_TOKEN = OPS["token_logprob"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_offsets_beyond_32_bits(backend, dtype):
    """Rows that lie 2^30 elements apart, in memory of which only they are touched: the last one starts past 2^31."""
    vocab, gap = 72, 2**30 + 8
    storage = torch.empty(2 * gap + vocab, dtype=dtype, device=backend.device)
    logits = storage.as_strided((3, vocab), (gap, 1))
    logits.copy_(torch.randn(3, vocab, generator=torch.Generator().manual_seed(0)))
    targets = torch.tensor([0, 69, 33], device=backend.device)
    kept = logits.clone()
    want = CASE_TOKEN.run({"logits": kept, "targets": targets, "entropy": True})
    got = token_logprob(logits.requires_grad_(), targets, entropy=True, inplace_backward=False)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    (grad,) = torch.autograd.grad(got, logits, gradients_of(got))
    assert torch.equal(grad, want[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_masked_with_the_least_float(backend, dtype):
    """As trainers mask where they fear infinities: nothing of it is left, and no 0 * inf either."""
    logits = torch.full((2, 4096), torch.finfo(dtype).min, dtype=dtype, device=backend.device)
    logits[:, 7], logits[:, 9] = 10, 9
    for temperature in (1.0, 0.5):
        x = {"logits": logits, "targets": torch.tensor([7, 9], device=backend.device), "temperature": temperature}
        CASE_TOKEN.check({**x, "entropy": True, "lse": True, "sum_p2": True})


def test_a_target_outside_the_mask_has_no_gradient(backend):
    logits = torch.randn(1, 6, dtype=torch.float64, device=backend.device)
    kept = torch.tensor([[True, True, False, True, True, True]], device=backend.device)
    x = {"logits": logits, "targets": torch.tensor([2], device=backend.device), "kept_mask": kept}
    (grad,) = CASE_TOKEN.run({**x, "delta": 0.0, "token_set": [0]})[1:]
    assert grad[0, 2] == 0
    assert grad[0, 0] != 0


def test_expanded_logits_have_no_room_for_gradients(backend):
    logits = torch.randn(1, 6, device=backend.device, requires_grad=True)
    targets = torch.arange(4, device=backend.device)
    with pytest.raises(ValueError, match="leave inplace_backward off"):
        token_logprob(logits.expand(4, 6), targets, inplace_backward=True)
    (got,) = torch.autograd.grad(token_logprob(logits.expand(4, 6), targets).sum(), logits)
    (want,) = torch.autograd.grad(token_logprob(logits.repeat(4, 1), targets).sum(), logits)
    torch.testing.assert_close(got, want)


def test_autocast():
    """A float32 head beside 16-bit hidden states, as mixed precision has it."""
    x = CASE.make("small")
    operands = {k: x[k].requires_grad_() for k in ("hidden", "weight")}
    with torch.autocast("cpu", torch.bfloat16):
        logp = linear_logprob(**operands, targets=x["targets"])
        want = token_logprob(torch.nn.functional.linear(*operands.values()), x["targets"])
    torch.testing.assert_close(logp, want)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(logp.sum(), list(operands.values())))
