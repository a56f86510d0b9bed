"""linear_policy_loss beyond the contract: every kind, chunks, normalizers, accumulation, what it refuses."""

import pytest
import torch

from tests.support.cases import OPS
from warpup import linear_logprob, linear_policy_loss, policy_loss
from warpup.logprob import linear_logprob as linear_logprob_module
from warpup.policy import linear_policy_gradients as linear_policy_gradients_module
from warpup.policy.kinds import NORMALIZERS, POLICY_KINDS

CASE = OPS["linear_policy_loss"]


def loss_and_gradients(x, **options):
    operands = {k: x[k].detach().requires_grad_() for k in CASE.differentiable}
    loss, metrics = linear_policy_loss(**{**x, **operands, **options})
    return loss.detach(), torch.autograd.grad(loss, list(operands.values())), metrics


@pytest.mark.parametrize("kind", sorted(POLICY_KINDS))
@pytest.mark.parametrize("options", ["plain", "full"])
def test_every_kind(backend, kind, options):
    x = CASE.make("small", torch.float64, backend.device, variant=options) | {"kind": kind}
    if kind in ("clip_cov", "kl_cov"):
        x["selected"] = torch.arange(15, device=backend.device).view(3, 5) % 3 == 0
    x["mask"][1] = False
    CASE.check(x)


@pytest.mark.parametrize("normalizer", [*NORMALIZERS, 3.5, ("sequence", 8.0)])
@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_normalizers_and_chunks(backend, normalizer, chunk):
    CASE.check(CASE.make("small", torch.float64, backend.device) | {"normalizer": normalizer, "chunk": chunk})


@pytest.mark.parametrize("kind", ["grpo", "gmpo", "dr_grpo"])
def test_a_loss_for_each_token(backend, kind):
    CASE.check(CASE.make("small", torch.float64, backend.device) | {"kind": kind, "reduction": "none"})


@pytest.mark.parametrize("kind", ["grpo", "gspo"])
def test_chunk_bounds_the_logits_alive(kind, monkeypatch):
    """15 rows of 131: a chunk of 4 rows holds 524 logits at most. (gspo makes them twice, the first time in C++.)"""
    x = CASE.make("small", torch.float64) | {"kind": kind}
    sizes = []
    for module in (linear_logprob_module, linear_policy_gradients_module):
        made = module.slice_logits

        def slice_logits(*arguments, made=made):
            z = made(*arguments)
            sizes.append(z.numel())
            return z

        monkeypatch.setattr(module, "slice_logits", slice_logits)
    loss_and_gradients({**x, "chunk": 4})
    assert max(sizes) <= 4 * 131
    assert sum(sizes) == 15 * 131


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_gradient_is_added_up_in_float32(backend, dtype):
    """Rows in eight chunks: as near to float64 as in one."""
    x = CASE.inputs((4, 16, 19, 131), dtype, backend.device, 0, "plain")
    CASE.check({**x, "chunk": 8})


def test_same_as_its_two_parts(backend):
    x = CASE.make("small", torch.float64, backend.device, variant="full")
    operands = {k: x.pop(k).requires_grad_() for k in CASE.differentiable}
    temperature, chunk, coef = (x.pop(k) for k in ("temperature", "chunk", "entropy_coef"))
    form = {k: x.pop(k) for k in ("scale", "softcap")}
    targets = x.pop("targets").masked_fill(~x["mask"], -100)
    logp, entropy = linear_logprob(**operands, **form, targets=targets, temperature=temperature, entropy=True)
    want, metrics = policy_loss(logp, entropy=entropy, entropy_coef=coef, **x)
    grads = torch.autograd.grad(want, list(operands.values()))
    got = loss_and_gradients(
        {**x, **operands, **form, "targets": targets, "temperature": temperature, "chunk": chunk, "entropy_coef": coef}
    )
    for g, w in zip((got[0], *got[1], *got[2].values()), (want, *grads, *metrics.values()), strict=True):
        torch.testing.assert_close(g, w.detach(), rtol=1e-10, atol=1e-12)


def test_micro_batches_add_up(backend):
    x = CASE.make("small", torch.float64, backend.device)
    denominator = ("token", float(x["mask"].sum()))
    want = loss_and_gradients(x)
    rows = ("hidden", "targets", "old_logp", "advantages", "mask")
    parts = [
        loss_and_gradients({k: v[i : i + 1] if k in rows else v for k, v in x.items()}, normalizer=denominator)
        for i in range(3)
    ]
    torch.testing.assert_close(sum(p[0] for p in parts), want[0])
    torch.testing.assert_close(torch.cat([p[1][0] for p in parts]), want[1][0])
    torch.testing.assert_close(sum(p[1][1] for p in parts), want[1][1])


@pytest.mark.parametrize("normalizer", ["token", "sequence", "sequence_sum", ("constant", 15.0)])
@pytest.mark.parametrize("kind", ["grpo", "gspo"])
@pytest.mark.parametrize("each", ["sequence", "token"])
def test_packed_is_padded(backend, kind, normalizer, each):
    """Rows without their padding, under a schedule: the same loss, gradients and metrics."""
    x = CASE.make("small", torch.float64, backend.device) | {"kind": kind, "normalizer": normalizer}
    lengths = torch.tensor([5, 2, 4], device=backend.device)
    on = torch.arange(5, device=backend.device) < lengths[:, None]
    if each == "token":
        x["advantages"] = x["advantages"].unsqueeze(-1) * torch.arange(1.0, 6.0, device=backend.device)
    x |= {
        "mask": on,
        "logit_delta": torch.linspace(-1, 1, 15, device=backend.device).view(3, 5),
        "token_set": [3, 5, 7],
    }
    x |= {"ref_logp": x["old_logp"] - 0.3, "kl_coef": 0.1, "entropy_coef": 0.01}
    want = loss_and_gradients(x)
    flat = {k: v[on] for k, v in x.items() if isinstance(v, torch.Tensor) and v.shape[:2] == (3, 5) and k != "mask"}
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    got = loss_and_gradients(x | flat | {"mask": on[on], "cu_seqlens": cu_seqlens})
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1][0], want[1][0][on])
    torch.testing.assert_close(got[1][1:], want[1][1:])
    torch.testing.assert_close(got[2], want[2])


@pytest.mark.parametrize(
    ("cu_seqlens", "options", "message"),
    [
        ([0, 14], {}, r"cu_seqlens must rise from 0 to 15, got \[0, 14\]"),
        ([0, 9, 4, 15], {}, "cu_seqlens must rise from 0 to 15"),
        ([0, 15], {"normalizer": "constant"}, r"'constant' needs a number beside cu_seqlens"),
    ],
)
def test_wrong_packing_is_told_before_any_product(monkeypatch, cu_seqlens, options, message):
    monkeypatch.setattr(linear_policy_gradients_module, "slice_logits", lambda *a: pytest.fail("logits were made"))
    x = CASE.make("small")
    flat = {k: v.flatten(0, 1) for k, v in x.items() if isinstance(v, torch.Tensor) and v.shape[:2] == (3, 5)}
    flat["advantages"] = torch.ones(len(cu_seqlens) - 1)
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(**x | flat | {"cu_seqlens": torch.tensor(cu_seqlens)} | options)


def test_scaled_loss_and_nothing_in_the_mask(backend):
    x = CASE.make("small", torch.float64, backend.device)
    hidden = x["hidden"].requires_grad_()
    (want,) = torch.autograd.grad(linear_policy_loss(**x)[0], hidden)
    (got,) = torch.autograd.grad(3 * linear_policy_loss(**x)[0], hidden)
    torch.testing.assert_close(got, 3 * want)
    loss, grads, _ = loss_and_gradients({**x, "mask": torch.zeros_like(x["mask"])})
    assert loss == 0
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@pytest.mark.parametrize("kind", ["grpo", "gspo"])
def test_no_tokens(backend, shape, kind):
    x = CASE.inputs((*shape, 4, 7), torch.float32, backend.device, 0, "plain")
    loss, grads, _ = loss_and_gradients({**x, "kind": kind})
    assert loss == 0
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("kind", ["grpo", "gspo"])
def test_sampled_log_probs_in_16_bits(backend, kind):
    x = CASE.make("small", torch.bfloat16, backend.device) | {"kind": kind}
    low = {k: x[k].to(torch.bfloat16) for k in ("old_logp", "advantages")}
    got, want = linear_policy_loss(**x | low)[0], linear_policy_loss(**x | {k: v.float() for k, v in low.items()})[0]
    assert torch.equal(got, want)


def test_float16_takes_the_loss_scale(backend):
    """Gradients far below float16's least number come through, scaled, as a GradScaler needs them."""
    x = CASE.make("small", torch.float16, backend.device)
    hidden = x["hidden"].requires_grad_()
    (got,) = torch.autograd.grad(linear_policy_loss(**x, normalizer=1e8)[0] * 2.0**16, hidden)
    (want,) = torch.autograd.grad(linear_policy_loss(**x, normalizer=1e8 / 2**16)[0], hidden)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-6)
    assert got.abs().max() > 1e-5


def test_one_backward_only():
    x = CASE.make("small", torch.float64)
    loss, _ = linear_policy_loss(**{**x, "hidden": x["hidden"].requires_grad_()})
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward needs a second forward"):
        loss.backward()


def test_vmap_over_the_backward_alone():
    """As jacrev has it: a batch of upstream gradients for gradients without one."""
    x = CASE.make("small", torch.float64)

    def loss(hidden):
        return linear_policy_loss(**{**x, "hidden": hidden})[0]

    torch.testing.assert_close(torch.func.jacrev(loss)(x["hidden"]), torch.func.grad(loss)(x["hidden"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(15, 19)}, r"targets must be int64 of shape \(15,\)"),
        ({"cu_seqlens": torch.tensor([0, 15])}, r"\(N, H\) with cu_seqlens, got \(3, 5, 19\)"),
        ({"chunk": -5}, "chunk must be at least 1, got -5"),
        ({"hidden": torch.zeros(3, 5, 18)}, r"hidden must be \(..., H\) and weight \(V, H\)"),
        ({"mask": torch.zeros(3, 4)}, r"mask must have shape \(3, 5\), got \(3, 4\)"),
        ({"old_logp": torch.zeros(3)}, r"old_logp must have shape \(3, 5\), got \(3,\)"),
        ({"kind": "best"}, "kind must be one of"),
        ({"entropy": torch.zeros(3, 5)}, "makes the entropy itself"),
        ({"kl_coef": 1.0}, "needs ref_logp"),
        ({"kl_corrected": True}, "kl_corrected needs a KL to correct"),
        ({"generator": torch.Generator()}, "generator draws for 'clip_cov'"),
        ({"kind": "cispo", "clip": (0.2, 5.0)}, "holds the ratio from above only"),
        ({"advantages": torch.zeros(4)}, r"advantages must have shape"),
    ],
)
def test_wrong_input(change, message):
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(**{**CASE.make("small"), **change})
