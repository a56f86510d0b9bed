"""policy_loss, what its kinds promise together: accumulation, packed sequences, what goes in beside the log-probs."""

import math

import pytest
import torch

from tests.policy.test_policy_loss import loss_and_gradient, options_of, packed, problem
from warpup import policy_loss
from warpup.policy.kinds import POLICY_KINDS

each_kind = pytest.mark.parametrize("kind", sorted(POLICY_KINDS))


def everything(x, kind):
    """Each option that all kinds share."""
    x = {**x, "weights": x["old_logp"].abs() + 0.3, "entropy": x["old_logp"].square(), "entropy_coef": 0.1}
    return x | {"ref_logp": x["old_logp"] - 0.1, "kl_coef": 0.2, "kl_corrected": True, **options_of(kind, x)}


# ---- accumulation ---------------------------------------------------------------------------------------------------


def denominator_of(name, mask):
    return {
        "token": mask.sum(),
        "sequence": mask.any(1).sum(),
        "sequence_sum": mask.any(1).sum(),
        "constant": torch.tensor(mask.numel()),
    }[name]


@each_kind
@pytest.mark.parametrize("name", ["token", "sequence", "sequence_sum", "constant"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_with_an_explicit_denominator_equal_the_big_batch(backend, kind, name, as_tensor):
    """Ranks and micro-batches of unequal numbers of tokens, one of them empty."""
    x = everything(problem(6, 20, device=backend.device), kind)
    x["mask"][4] = False
    want_loss, want, _ = loss_and_gradient({**x, "normalizer": name})
    denominator = denominator_of(name, x["mask"])
    denominator = (name, denominator if as_tensor else denominator.item())

    def part(rows, **options):
        rows = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in x.items()}
        return loss_and_gradient({**rows, **options})

    slices = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)]
    parts = [part(rows, normalizer=denominator) for rows in slices]
    # A denominator on the device is a float32.
    tolerance = {"rtol": 1e-6, "atol": 1e-8} if as_tensor else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(sum(loss for loss, _, _ in parts), want_loss, **tolerance)
    torch.testing.assert_close(torch.cat([gradient for _, gradient, _ in parts]), want, **tolerance)
    if name in ("token", "sequence"):
        plain = [part(rows, normalizer=name)[0] for rows in slices]
        assert (sum(plain) / len(slices) - want_loss).abs() > 1e-4, "the test would not notice a mean of means"


# ---- packed sequences -----------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("normalizer", ["token", "sequence", "sequence_sum", ("constant", 50.0)])
def test_packed_equals_padded(backend, kind, per_token, normalizer):
    x = everything(problem(5, 33, device=backend.device), kind) | {"normalizer": normalizer}
    x["mask"][2] = False
    if per_token:
        x["advantages"] = x["old_logp"] + 0.7
    want, got = loss_and_gradient(x), loss_and_gradient(packed(x))
    torch.testing.assert_close(got[0], want[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(got[1], want[1].flatten(), rtol=1e-13, atol=1e-14)
    for name in want[2]:
        torch.testing.assert_close(got[2][name], want[2][name], rtol=1e-13, atol=1e-13)


@each_kind
def test_packed_of_any_lengths(backend, kind):
    """Empty sequences, sequences within a piece, over a border of pieces, and of more than one piece."""
    lengths = [0, 5, 8190, 0, 1, 20000, 3] if backend.name != "hostcuda" else [0, 5, 8190, 0, 9000]
    total = sum(lengths)
    x = everything(problem(1, total, device=backend.device), kind)
    x = {k: v[0] if isinstance(v, torch.Tensor) and v.dim() == 2 else v for k, v in x.items()}
    x["advantages"] = torch.linspace(-1, 1.5, len(lengths), dtype=torch.float64, device=backend.device)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    x["cu_seqlens"] = torch.tensor([0, *ends], device=backend.device)
    got = loss_and_gradient({**x, "normalizer": ("sequence", 1.0)})
    loss, gradients = 0, []
    for n, end, advantage in zip(lengths, ends, x["advantages"], strict=True):
        row = {k: v[None, end - n : end] for k, v in x.items() if isinstance(v, torch.Tensor) and v.shape == (total,)}
        options = {k: v for k, v in x.items() if not isinstance(v, torch.Tensor)}
        one = loss_and_gradient({**options, **row, "advantages": advantage[None], "normalizer": ("sequence", 1.0)})
        loss, gradients = loss + one[0], [*gradients, one[1][0]]
    torch.testing.assert_close(got[0], loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], torch.cat(gradients), rtol=1e-12, atol=1e-14)


def test_padded_rows_of_more_than_one_piece(backend):
    """The sums of a row come from a pass of their own."""
    x = problem(2, 8300, device=backend.device, spread=0.01)
    for kind in ("gspo", "gmpo", "vespo", "a_lol", "gspo_token"):
        y = everything(x, kind) | {"normalizer": ("sequence", 1.0)}
        want, got = loss_and_gradient(y), loss_and_gradient(packed(y))
        short = {k: v[:, :100] if isinstance(v, torch.Tensor) and v.dim() == 2 else v for k, v in y.items()}
        cut = {**y, "mask": y["mask"] & (torch.arange(8300, device=backend.device) < 100)}
        torch.testing.assert_close(got[1], want[1].flatten(), rtol=1e-11, atol=1e-16)
        torch.testing.assert_close(loss_and_gradient(cut)[0], loss_and_gradient(short)[0], rtol=1e-12, atol=0)


# ---- weights, entropy, KL -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(POLICY_KINDS.keys() - {"vespo"}))
def test_weights_multiply_the_policy_term_alone(backend, kind):
    """On a token the loss is linear in them; the KL and the entropy stay."""
    x = everything(problem(3, 20, device=backend.device), kind)
    w, nothing = x["weights"], torch.zeros_like(x["weights"])
    one, other, none, both = (
        loss_and_gradient({**x, "weights": weights})[:2] for weights in (w, 2 - w, nothing, nothing + 2)
    )
    for a, b, zero, sum_ in zip(one, other, none, both, strict=True):
        torch.testing.assert_close(a + b, sum_ + zero, rtol=1e-11, atol=1e-13)
    assert none[0] != 0
    of_rows = loss_and_gradient({**x, "weights": w[:, 0]})
    torch.testing.assert_close(of_rows[:2], loss_and_gradient({**x, "weights": w[:, :1].expand_as(w).contiguous()})[:2])


@pytest.mark.parametrize("per_row", [False, True])
def test_vespo_takes_weights_into_its_ratio(backend, per_row):
    x = problem(3, 4, device=backend.device)
    w = (x["old_logp"][:, 0] if per_row else x["old_logp"]).abs() + 0.3
    _, gradient, metrics = loss_and_gradient({**x, "kind": "vespo", "weights": w})
    m = x["mask"].double()
    log_w = ((x["logp"] - x["old_logp"]) * m).sum(1) + (w.log() if per_row else (w.log() * m).sum(1))
    k, lam = torch.where(x["advantages"] >= 0, 2.0, 3.0), torch.where(x["advantages"] >= 0, 3.0, 2.0)
    phi = (lam + k * log_w - lam * log_w.exp()).exp()
    torch.testing.assert_close(gradient, -(phi * x["advantages"])[:, None] * m / m.sum())
    assert metrics["ratio_max"].item() == pytest.approx(phi[m.any(1)].max().item())


def test_entropy_and_a_given_kl_get_gradients(backend):
    x = problem(3, 10, device=backend.device)
    entropy, ref_kl = (x["old_logp"].square().requires_grad_(), x["old_logp"].exp().requires_grad_())
    loss, metrics = policy_loss(**x, entropy=entropy, entropy_coef=0.1, ref_kl=ref_kl, kl="full", kl_coef=0.3)
    plain, _ = policy_loss(**x)
    share = x["mask"].double() / x["mask"].sum()
    torch.testing.assert_close(loss, plain + ((0.3 * ref_kl - 0.1 * entropy) * share).sum())
    torch.testing.assert_close(metrics["ref_kl"], (ref_kl * share).sum().detach())
    torch.testing.assert_close(metrics["entropy"], (entropy * share).sum().detach())
    got = torch.autograd.grad(loss, (entropy, ref_kl))
    torch.testing.assert_close(got, (-0.1 * share, 0.3 * share))


def test_an_entropy_without_weight_is_measured_and_changes_nothing(backend):
    x = problem(3, 10, device=backend.device)
    entropy = x["old_logp"].square()
    entropy[~x["mask"]] = torch.nan
    want, got = loss_and_gradient(x), loss_and_gradient(x, entropy=entropy)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2].pop("entropy"), entropy[x["mask"]].mean())
    assert got[2] == want[2]
    entropy[0, x["mask"][0].nonzero()[0]] = math.inf
    got = loss_and_gradient(x, entropy=entropy)
    assert torch.equal(got[0], want[0])
    assert got[2]["entropy"].isinf()


@pytest.mark.parametrize(("kl", "value", "slope"), [("k1+", -0.5, -0.5), ("k3+", math.exp(0.5) - 1.5, -0.5)])
def test_straight_through_estimators(backend, kl, value, slope):
    """d = 1/2, advantage 0: the named value, the gradient -d of k2."""
    zero = torch.zeros(1, 1, dtype=torch.float64, device=backend.device)
    x = {"logp": zero, "old_logp": zero, "advantages": zero, "mask": zero == 0, "ref_logp": zero + 0.5}
    loss, gradient, _ = loss_and_gradient(x, kl=kl, kl_coef=2.0)
    assert (loss.item(), gradient.item()) == pytest.approx((2 * value, 2 * slope))


@pytest.mark.parametrize(
    ("d", "value", "slope"),
    [(-30.0, 10.0, 0.0), (-8.0, math.exp(-8) + 7, 1 - math.exp(-8)), (3.0, 10.0, 0.0), (30.0, 10.0, 0.0)],
)
def test_the_clamps_of_verl(backend, d, value, slope):
    zero = torch.zeros(1, 1, dtype=torch.float64, device=backend.device)
    x = {"logp": zero, "old_logp": zero, "advantages": zero, "mask": zero == 0, "ref_logp": zero + d}
    loss, gradient, _ = loss_and_gradient(x, kl="k3_verl", kl_coef=0.5)
    assert (loss.item(), gradient.item()) == pytest.approx((0.5 * value, 0.5 * slope))


# ---- the clips ------------------------------------------------------------------------------------------------------


def test_two_sided_and_dual_clip_by_hand(backend):
    """A = -1, clip (.2, .2): a ratio of 5 costs 5, with delta 3 it costs 3, with dual clip 2 it costs 2, flat there."""
    ratio = torch.tensor([[5.0, 1.1, 0.5]], dtype=torch.float64, device=backend.device)
    x = {"logp": ratio.log(), "old_logp": ratio * 0, "advantages": ratio[:, 0] * 0 - 1, "mask": ratio > 0}
    for options, held in (
        ({}, None),
        ({"delta": 3.0}, 3.0),
        ({"dual_clip": 2.0}, 2.0),
        ({"delta": 3.0, "dual_clip": 4.0}, 3.0),
    ):
        loss, gradient, metrics = loss_and_gradient(x, normalizer=1.0, **options)
        assert loss.item() == pytest.approx((held or 5) + 1.1 + 0.8)
        assert gradient[0].tolist() == pytest.approx([0 if held else 5, 1.1, 0])
        assert metrics["clip_fraction_dual"].item() == pytest.approx(1 / 3 if held else 0)
    x["advantages"] = -x["advantages"]  # A > 0: dual clip does nothing, delta below the clip holds earlier
    assert loss_and_gradient(x, normalizer=1.0, dual_clip=1.05)[0].item() == pytest.approx(-1.2 - 1.1 - 0.5)
    assert loss_and_gradient(x, normalizer=1.0, delta=1.05)[0].item() == pytest.approx(-1.05 - 1.05 - 0.5)


def test_trust_regions_by_hand(backend):
    """A token's probability from .5 to .9 (+.4, KL .51) and to .2 (-.3, KL .22), a rare one's from 1e-4 to 1e-2."""
    now = torch.tensor([[0.9, 0.2, 0.01]], dtype=torch.float64, device=backend.device)
    old = torch.tensor([[0.5, 0.5, 1e-4]], dtype=torch.float64, device=backend.device)
    x = {"logp": now.log(), "old_logp": old.log(), "advantages": now[:, 0] * 0 + 1, "mask": now > 0}
    ratio = (now / old)[0].tolist()
    for kind, clip, a, open_ in (
        ("dppo_tv", (0.2, 0.2), 1, [0, 1, 1]),
        ("dppo_tv", (0.2, 0.2), -1, [1, 0, 1]),
        ("dppo_tv", (0.35, 0.45), 1, [1, 1, 1]),
        ("dppo_kl", (0.2, 0.2), 1, [0, 1, 1]),
        ("dppo_kl", (0.2, 0.2), -1, [1, 0, 1]),
        ("dppo_kl", (0.25, 0.25), -1, [1, 1, 1]),
        ("dppo_kl", (0.25, 0.55), 1, [1, 1, 1]),
        ("ipo", (0.2, 0.2), 1, [0, 0, 1]),
        ("ipo", (0.2, 0.5), -1, [1, 0, 1]),
    ):
        x["advantages"] = torch.full_like(x["advantages"], a)
        cap = 20.0
        loss, gradient, metrics = loss_and_gradient(x, kind=kind, clip=clip, constants=(cap, 0.0), normalizer=1.0)
        want = [-a * min(r, cap) * o for r, o in zip(ratio, open_, strict=True)]
        assert gradient[0].tolist() == pytest.approx(want)
        assert loss.item() == pytest.approx(sum(w * math.log(p) for w, p in zip(want, now[0].tolist(), strict=True)))
        closed = (1 - open_[0]) / 3, (1 - open_[1]) / 3
        assert (metrics["clip_fraction_high"].item(), metrics["clip_fraction_low"].item()) == pytest.approx(closed)


@pytest.mark.parametrize("kind", ["dppo_tv", "ipo"])
def test_the_losses_of_prime_rl(backend, kind):
    """As its authors write them, -keep A r + tau x^2 over a number of tokens, from code that was read: it is in no
    package index. Its gradient; its value is -r A where ours is -sg(r) A logp."""
    x = problem(5, 30, device=backend.device, spread=0.6)
    logp = x["logp"].detach().requires_grad_()
    log_ratio, a = logp - x["old_logp"], x["advantages"][:, None]
    moved = (logp.exp() - x["old_logp"].exp()).detach()
    gone = moved.abs() > 0.1 if kind == "ipo" else torch.where(a > 0, moved > 0.1, moved < -0.1)
    assert 0 < gone.sum() < gone.numel()
    theirs = ((-(~gone).double() * a * log_ratio.exp() + 1e-3 * log_ratio**2) * x["mask"]).sum() / 100
    [want] = torch.autograd.grad(theirs, logp)
    loss, gradient, _ = loss_and_gradient(x, kind=kind, clip=(0.1, 0.1), constants=(math.inf, 2e-3), normalizer=100.0)
    torch.testing.assert_close(gradient, want)
    value = (-(~gone).double() * a * log_ratio.exp() * logp + 1e-3 * log_ratio**2) * x["mask"]
    torch.testing.assert_close(loss, value.sum().detach() / 100)


@pytest.mark.parametrize("kind", ["dro", "ipo"])
def test_the_proximal_term(backend, kind):
    """c / 2 x^2, weighed like the policy term, with the gradient c x."""
    x = problem(3, 20, device=backend.device)
    x["weights"] = x["old_logp"].abs()
    share = x["mask"] * x["weights"] / x["mask"].sum()
    constants = [(math.inf, c) if kind == "ipo" else (c,) for c in (0.0, 0.7)]
    without, with_ = (loss_and_gradient(x, kind=kind, constants=c) for c in constants)
    log_ratio = x["logp"] - x["old_logp"]
    torch.testing.assert_close(with_[0] - without[0], (0.35 * log_ratio.square() * share).sum())
    torch.testing.assert_close(with_[1] - without[1], 0.7 * log_ratio * share)


@pytest.mark.parametrize(
    ("constants", "told"), [((0.0, 0.1), "cap must be above 0"), ((2.0, -0.1), "proximal must be at least 0")]
)
def test_constants_of_a_trust_region(backend, constants, told):
    with pytest.raises(ValueError, match=told):
        policy_loss(**problem(2, 3, device=backend.device), kind="dppo_tv", constants=constants)


def test_log_probs_that_rounding_has_put_above_0(backend):
    """1 - p is then below 0, and its logarithm no number."""
    old = torch.tensor([[-0.1, 2e-7, 1e-7]], device=backend.device)
    x = {"logp": torch.full_like(old, 1e-7), "old_logp": old, "advantages": old[:, 0] * 0 + 1, "mask": old < 1}
    _, gradient, metrics = loss_and_gradient(x, kind="dppo_kl", normalizer=1.0)
    assert gradient.isfinite().all()
    assert gradient[0].tolist() == pytest.approx([0, -1, -1])  # from .905 to 1: KL 1.4
    assert metrics["clip_fraction_high"].item() == pytest.approx(1 / 3)


def test_cov_kinds_by_formula(backend):
    x = problem(3, 20, device=backend.device)
    selected = x["old_logp"] < -1
    _, want, _ = loss_and_gradient(x, kind="ppo")
    _, got, _ = loss_and_gradient(x, kind="clip_cov", selected=selected)
    assert torch.equal(got, want.masked_fill(selected, 0))
    m, log_ratio = x["mask"] / x["mask"].sum(), x["logp"] - x["old_logp"]
    loss, gradient, _ = loss_and_gradient(x, kind="kl_cov", selected=selected, constants=(0.5,))
    token = -log_ratio.exp() * x["advantages"][:, None]
    torch.testing.assert_close(loss, ((token + 0.5 * selected * log_ratio.abs()) * m).sum())
    torch.testing.assert_close(gradient, (token + 0.5 * selected * log_ratio.sign()) * m)


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov"])
def test_cov_kinds_select_by_themselves(backend, kind):
    x = problem(40, 200, device=backend.device, spread=0.05)
    x["advantages"] = x["advantages"] * 3
    draws = [{}] * 3  # kl_cov draws nothing
    if kind == "clip_cov":
        draws = [{"generator": torch.Generator(backend.device).manual_seed(s)} for s in (1, 1, 2)]
    first, again, other = (loss_and_gradient(x, kind=kind, **draw)[1] for draw in draws)
    plain = loss_and_gradient(x, kind="ppo", clip=(math.inf, math.inf) if kind == "kl_cov" else None)[1]
    assert torch.equal(first, again)
    assert (first != plain).sum() == 1, "2e-4 of these tokens is one"
    assert torch.equal(first, other) == (kind == "kl_cov")
