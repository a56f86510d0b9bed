"""The helpers beside policy_loss: weights and masks, padded and packed."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import warpup
from tests.policy.test_policy_loss import packed, problem
from warpup.policy.reference import reference_policy_loss

NAN = math.nan


@pytest.fixture
def x():
    return problem(6, 30, spread=0.1)


def flat(x):
    x = packed(x)
    return {k: x[k] for k in ("logp", "old_logp", "mask")}, x["cu_seqlens"]


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rollout_weights(x, level, mode):
    old, rollout, mask = x["logp"], x["old_logp"].masked_fill(~x["mask"], NAN), x["mask"]
    got = warpup.rollout_weights(old, rollout, mask, level=level, mode=mode, cap=1.2, floor=0.9)
    log_ratio = (old - rollout).masked_fill(~mask, 0)
    ratio = (log_ratio.sum(1) if level == "sequence" else log_ratio).exp()
    assert ((ratio > 1.2).any(), (ratio < 0.9).any()) == (True, True)
    outside = (ratio > 1.2) | (ratio < 0.9)
    want = ratio.clamp(0.9, 1.2) if mode == "truncate" else ratio.masked_fill(outside, 0)
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0)
    y, cu_seqlens = flat(x)
    of_packed = warpup.rollout_weights(
        y["logp"], y["old_logp"], y["mask"], level=level, mode=mode, cap=1.2, floor=0.9, cu_seqlens=cu_seqlens
    )
    torch.testing.assert_close(of_packed, want.flatten(), rtol=1e-13, atol=0)


def test_rollout_weights_of_tokens_without_a_log_prob(x):
    """As TRL: no evidence, so ratio 1."""
    hole = x["old_logp"].clone()
    hole[:, 3] = NAN
    got = warpup.rollout_weights(x["logp"], hole, x["mask"], cap=10.0)
    want = warpup.rollout_weights(x["logp"], x["old_logp"], x["mask"] & (torch.arange(30) != 3), cap=10.0)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("over", ["token", "mean", "sum", "max"])
@pytest.mark.parametrize("measure", ["ratio", "k2", "k3", "binary_kl", "binary_tv"])
def test_rollout_mask(x, measure, over):
    if (measure, over) == ("ratio", "max"):
        pytest.skip("refused")
    old, rollout, mask = x["logp"], x["old_logp"].masked_fill(~x["mask"], NAN), x["mask"]
    rollout[0] = NAN  # the engine knows none of its probabilities: all agree
    mask[1] = False
    log_ratio = (old - rollout).masked_fill(~mask, 0).nan_to_num(nan=0.0)
    p, q = (old - log_ratio).exp().clamp(1e-6, 1 - 1e-6), old.exp().clamp(1e-6, 1 - 1e-6)
    each = {
        "ratio": log_ratio,
        "k2": log_ratio**2 / 2,
        "k3": log_ratio.exp() - 1 - log_ratio,
        "binary_kl": p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log(),
        "binary_tv": (p - q).abs(),
    }[measure] * mask  # fmt: skip
    n = mask.sum(1).clamp_min(1)
    stat = {"token": each, "mean": each.sum(1) / n, "sum": each.sum(1), "max": each.amax(1)}[over]
    middle = stat[stat != 0].abs().median().item()
    bounds = {"cap": math.exp(middle), "floor": math.exp(-middle)} if measure == "ratio" else {"cap": middle}
    want = stat.abs() <= middle + 1e-12
    bounds["cap"] *= 1 + 1e-12  # the median itself is kept
    if measure == "ratio":
        bounds["floor"] *= 1 - 1e-12
    options = {"measure": measure, "over": over, **bounds}
    got = warpup.rollout_mask(old, rollout, mask, **options)
    assert torch.equal(got, want)
    assert 0 < got.sum() < got.numel()
    assert got[:2].all()
    y, cu_seqlens = flat({**x, "old_logp": rollout})
    of_packed = warpup.rollout_mask(y["logp"], y["old_logp"], y["mask"], **options, cu_seqlens=cu_seqlens)
    assert torch.equal(of_packed, want.flatten())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"measure": "k1"}, "measure must be one of"),
        ({"over": "row"}, "over must be"),
        ({"measure": "ratio", "over": "max"}, "no max"),
        ({"floor": 0.5}, "'binary_kl' has no floor"),
        ({"measure": "ratio", "floor": 3.0}, r"floor must be in \(0, cap\]"),
        ({"cap": 0.0}, "cap must be above 0"),
    ],
)
def test_rollout_mask_refuses(x, options, told):
    with pytest.raises(ValueError, match=told):
        warpup.rollout_mask(x["logp"], x["old_logp"], x["mask"], **{"cap": 2.0, **options})


def test_sequence_mask(x):
    x["advantages"] = torch.tensor([1.0, 0.0, -1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    x["old_logp"] = x["logp"] + torch.tensor([9.0, 9.0, 0.1, 0.3, -9.0, NAN])[:, None]
    x["mask"][:, 0] = True
    got = warpup.sequence_mask(x["logp"], x["old_logp"], x["advantages"], x["mask"], delta=0.2)
    assert got.tolist() == [True, True, True, False, True, True]
    y, cu_seqlens = flat(x)
    of_packed = warpup.sequence_mask(
        y["logp"], y["old_logp"], x["advantages"], y["mask"], delta=0.2, cu_seqlens=cu_seqlens
    )
    assert torch.equal(of_packed, got)
    tokens = x["advantages"][:, None].expand(6, 30)
    per_token = warpup.sequence_mask(x["logp"], x["old_logp"], tokens, x["mask"], delta=0.2)
    assert torch.equal(per_token, got[:, None].expand(6, 30))


@pytest.mark.parametrize("quantile", [0.0, 0.37, 0.8, 1.0])
def test_top_entropy_mask(x, quantile):
    entropy = x["old_logp"].square().masked_fill(~x["mask"], NAN)
    got = warpup.top_entropy_mask(entropy, x["mask"], quantile)
    want = entropy >= torch.quantile(entropy[x["mask"]], quantile)
    assert torch.equal(got, want)
    assert not warpup.top_entropy_mask(entropy, x["mask"] & False, quantile).any()
    assert warpup.top_entropy_mask(entropy[:0], x["mask"][:0], quantile).shape == (0, 30)


def test_kl_cov_tokens():
    x = problem(20, 100)
    got = warpup.kl_cov_tokens(x["logp"].masked_fill(~x["mask"], NAN), x["advantages"], x["mask"], share=0.01)
    on, a = x["mask"], x["advantages"][:, None].expand(20, 100)
    covariance = (a - a[on].mean()) * (x["logp"] - x["logp"][on].mean())
    count = int(0.01 * int(on.sum()))
    assert got.sum() == count
    assert (got & ~on).sum() == 0
    assert covariance[got].min() >= covariance[on].topk(count).values.min() - 1e-12


def test_clip_cov_tokens():
    x = problem(50, 200)
    x["advantages"] = 4 * x["advantages"]
    on, a = x["mask"], x["advantages"][:, None].expand(50, 200)
    covariance = (a - a[on].mean()) * (x["logp"] - x["logp"][on].mean())
    ratio = (x["logp"] - x["old_logp"]).exp()
    held = ((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))
    allowed = on & ~held & (covariance > 1) & (covariance < 5)
    arguments = [x[name] for name in ("logp", "old_logp", "advantages", "mask")]
    draws = [
        warpup.clip_cov_tokens(*arguments, share=0.01, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    for draw in draws:
        assert draw.sum() == int(0.01 * int(on.sum()))
        assert not (draw & ~allowed).any()
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    y, cu_seqlens = flat(x)
    generator = torch.Generator().manual_seed(0)
    of_packed = warpup.clip_cov_tokens(
        y["logp"], y["old_logp"], x["advantages"], y["mask"], share=0.01, generator=generator, cu_seqlens=cu_seqlens
    )
    assert of_packed.sum() == draws[0].sum()
    everything = warpup.clip_cov_tokens(*arguments, share=0.9, bounds=(-math.inf, math.inf), clip=(math.inf, math.inf))
    assert everything.sum() == int(0.9 * int(on.sum()))
    none = warpup.clip_cov_tokens(*arguments, bounds=(1e6, 1e7))
    assert not none.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_over_long_sequences(dtype):
    """2,000 tokens that differ by 2^-9 each, which every type holds: the weight is e^(2000 / 512) = 49.71, the drift as
    large, and there are 2,000 tokens; padded and packed. Added in bfloat16 one by one, both stall at 256 of them."""
    old, mask = torch.zeros(2, 2000, dtype=dtype), torch.ones(2, 2000, dtype=torch.bool)
    rollout = old - 2.0**-9
    offsets = torch.tensor([0, 2000, 4000])
    of_packed = [x.flatten() for x in (old, rollout, mask)]
    for arguments, given in (((old, rollout, mask), {}), (of_packed, {"cu_seqlens": offsets})):
        weights = warpup.rollout_weights(*arguments, mode="truncate", cap=100.0, **given)
        assert weights.tolist() == pytest.approx([math.exp(2000 / 512)] * 2, rel=1e-6)
        assert warpup.rollout_weights(*arguments, cap=3.0, **given).tolist() == [0, 0]
        tokens = warpup.rollout_weights(*arguments, level="token", **given)
        assert tokens.unique().tolist() == pytest.approx([math.exp(2.0**-9)], rel=1e-7)
        near = [
            warpup.sequence_mask(arguments[1], arguments[0], -torch.ones(2), arguments[2], delta=delta, **given)
            for delta in (0.00195, 0.00196)
        ]
        assert [n.tolist() for n in near] == [[False, False], [True, True]]
        loss, metrics = reference_policy_loss(
            arguments[0], arguments[1], torch.ones(2), arguments[2], kind="gspo", clip=(1.0, 1.0), **given
        )
        assert metrics["tokens"] == 4000
        assert loss.item() == pytest.approx(-math.exp(2.0**-9), rel=1e-6)


def test_quantiles_and_covariances_in_bfloat16():
    """The types' own steps would round the quantile onto a token, and the means away."""
    entropy, mask = torch.tensor([[1.0, 1 + 2.0**-7]], dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool)
    assert warpup.top_entropy_mask(entropy, mask, 0.1).tolist() == [[False, True]]
    x = {k: v.bfloat16() if v.is_floating_point() else v for k, v in problem(20, 100).items()}
    wide = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    for y in (x, wide):
        y["picked"] = warpup.kl_cov_tokens(y["logp"], y["advantages"], y["mask"], share=0.1)
    assert torch.equal(x["picked"], wide["picked"])


def test_nothing_waits_for_the_device(x):
    """A tensor without data refuses whatever the host would have to know."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for y in (x, packed(x)):
            y = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in y.items()}
            cu_seqlens = {"cu_seqlens": y["cu_seqlens"]} if "cu_seqlens" in y else {}
            logp, old, advantages, mask = (y[k] for k in ("logp", "old_logp", "advantages", "mask"))
            for level in ("token", "sequence"):
                warpup.rollout_weights(logp, old, mask, level=level, **cu_seqlens)
            warpup.sequence_mask(logp, old, advantages, mask, delta=0.1, **cu_seqlens)
            warpup.top_entropy_mask(old, mask, 0.8)
            for kind in ("clip_cov", "kl_cov", "gspo"):
                warpup.policy_loss(logp, old, advantages, mask, kind=kind, **cu_seqlens)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            mask.sum().item()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: warpup.rollout_weights(t, t, t, level="word"), "level must be 'token' or 'sequence', got 'word'"),
        (lambda t: warpup.rollout_weights(t, t, t, mode="clip"), "mode must be 'truncate' or 'mask', got 'clip'"),
        (lambda t: warpup.rollout_weights(t, t, t, cap=0.0), "cap must be above 0, got 0.0"),
        (lambda t: warpup.rollout_weights(t, t, t, cap=2.0, floor=3.0), "floor must be in .*got floor 3.0 and cap 2.0"),
        (lambda t: warpup.rollout_weights(t, t, t, floor=NAN), "floor must be in .*got floor nan"),
        (lambda t: warpup.sequence_mask(t, t, t, t, delta=-0.1), "delta must be at least 0, got -0.1"),
        (lambda t: warpup.clip_cov_tokens(t, t, t, t, bounds=(5.0, 1.0)), r"bounds must be .*, got \(5.0, 1.0\)"),
        (lambda t: warpup.clip_cov_tokens(t, t, t, t, share=0.0), "share must be above 0 and at most 1, got 0.0"),
        (lambda t: warpup.kl_cov_tokens(t, t, t, share=2), "share must be above 0 and at most 1, got 2"),
        (lambda t: warpup.top_entropy_mask(t, t, 1.5), r"quantile must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3))
