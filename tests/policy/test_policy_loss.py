"""policy_loss beyond the contract: masks, kinds, KL estimators, normalizers, metrics, accumulation, messages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS
from tests.support.inputs import moved_to
from warpup import policy_loss
from warpup.policy.kinds import KL_ESTIMATORS, METRICS, NORMALIZERS, POLICY_KINDS

CASE = OPS["policy_loss"]
NAN, INF = math.nan, math.inf


def problem(batch, length, *, dtype=torch.float64, seed=0, spread=0.3, device="cpu"):
    """Log-probs whose ratios fall on both sides of the clip range."""
    generator = torch.Generator().manual_seed(seed)
    logp = -2 * torch.rand(batch, length, generator=generator, dtype=torch.float64)
    old_logp = logp + spread * torch.randn(batch, length, generator=generator, dtype=torch.float64)
    advantages = torch.randn(batch, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < 0.7
    tensors = {"logp": logp.to(dtype), "old_logp": old_logp.to(dtype), "advantages": advantages.to(dtype), "mask": mask}
    return {k: v.to(device) for k, v in tensors.items()}


def loss_and_gradient(x, **options):
    logp = x["logp"].detach().requires_grad_()
    loss, metrics = policy_loss(**{**x, "logp": logp}, **options)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.detach(), gradient, metrics


@st.composite
def problems(draw):
    batch, length = draw(st.integers(0, 5)), draw(st.sampled_from([0, 1, 2, 3, 31, 32, 33, 130]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = problem(
        batch, length, dtype=dtype, seed=draw(st.integers(0, 2**31)), spread=draw(st.sampled_from([0.0, 0.3, 3.0]))
    )
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x["mask"] = torch.rand(batch, length, generator=generator) < share
    if batch and draw(st.booleans()):
        x["mask"][draw(st.integers(0, batch - 1))] = False
    if draw(st.booleans()):
        x["advantages"] = torch.randn(batch, length, generator=generator).to(dtype)
    if draw(st.booleans()):  # rows with gaps, from an odd start
        for name in ("logp", "old_logp", "mask"):
            wide = torch.zeros(batch, length + 3, dtype=x[name].dtype)
            wide[:, 1 : length + 1] = x[name]
            x[name] = wide[:, 1 : length + 1]
    # Equal terms of a row, or one after the other (packed): the float64 reference adds up no better than we do.
    of_rows = dtype == torch.float32
    kinds = [name for name, kind in POLICY_KINDS.items() if of_rows or kind.level == "token"]
    x |= options_of(draw(st.sampled_from(kinds)), x)
    x["normalizer"] = draw(st.sampled_from([None, *NORMALIZERS, 3.5, ("sequence", 8.0)]))
    if POLICY_KINDS[x["kind"]].level != "token":  # a row is rounded as one: of rows that cancel no digits are left
        x["advantages"] = x["advantages"].abs() * draw(st.sampled_from([-1, 1]))
    if POLICY_KINDS[x["kind"]].formula == "clip" and draw(st.booleans()):
        x |= {"delta": draw(st.sampled_from([None, 1.5, 4.0])), "dual_clip": draw(st.sampled_from([None, 1.1, 3.0]))}
    if draw(st.booleans()):
        x["weights"] = torch.rand((batch, length) if draw(st.booleans()) else (batch,), generator=generator).to(dtype)
    if draw(st.booleans()):
        x |= {"entropy": torch.rand(batch, length, generator=generator).to(dtype), "entropy_coef": 0.01}
    if draw(st.booleans()):
        x |= {"kl_coef": 0.05, "kl": draw(st.sampled_from(list(KL_ESTIMATORS))), "kl_corrected": draw(st.booleans())}
        x["ref_kl" if x["kl"] == "full" else "ref_logp"] = x["old_logp"] - 0.1
    return packed(x) if of_rows and draw(st.booleans()) else x


def options_of(kind, x):
    """What `kind` needs so that its clip holds some tokens of `problem` and not all."""
    options = {"kind": kind}
    if kind in ("gspo", "gspo_token", "luspo"):
        options["clip"] = (0.1, 0.15)
    if kind in ("clip_cov", "kl_cov"):
        options["selected"] = x["old_logp"] - x["old_logp"].floor() < 0.2
    if kind == "ipo":  # its log^2 ratio, which is no stopped gradient: test_the_proximal_term
        options["constants"] = (1.5, 0.0)
    return options


def packed(x):
    """The rows of a padded problem one after the other, cut where the rows ended."""
    batch, length = x["logp"].shape
    flat = {k: v.reshape(-1).contiguous() if isinstance(v, torch.Tensor) and v.dim() == 2 else v for k, v in x.items()}
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=x["logp"].device) * length
    if flat.get("normalizer") in ("constant", None):
        flat["normalizer"] = ("token", 9.0)
    return {**flat, "cu_seqlens": cu_seqlens}


@given(x=problems())
@settings(max_examples=60)
def test_masks_and_options(backend, x):
    CASE.check(moved_to(backend.device, x))


@pytest.mark.parametrize("length", [8191, 8192, 8193, 20000])
def test_more_than_one_piece_of_a_row(backend, length):
    x = problem(2, length, dtype=torch.float32, device=backend.device)
    CASE.check({**x, "normalizer": "sequence"})


TRUST_REGION = ("dppo_tv", "dppo_kl", "ipo")
STOPPED = ("cispo", "cispo_verl", "vespo", "a_lol", "a_lol_seq", *TRUST_REGION)  # sg(ratio) A logp
MULTIPLE = ("k1+", "k3+")  # straight-through: the gradient of another function than the value


@pytest.mark.parametrize("kind", sorted(POLICY_KINDS))
@pytest.mark.parametrize("kl", [None, *(kl for kl in KL_ESTIMATORS if kl not in MULTIPLE)])
@pytest.mark.parametrize(
    ("form", "normalizer"), [("padded", "sequence"), ("per token", ("sequence_sum", 5.0)), ("packed", "token")]
)
def test_gradcheck(backend, kind, kl, normalizer, form):
    """Of a loss that stops gradients the ratio is held: old_logp moves along with logp."""
    if backend.name != "cpu" and (form == "padded" or kl in ("k1", "k2", "k3_verl")):
        pytest.skip("the other combinations are enough there")
    if kind == "gspo_token":
        pytest.skip("the ratio's value and gradient are of different tokens: test_gspo_token")
    x = problem(2, 4, device=backend.device)
    if form == "per token":
        x["advantages"] = x["old_logp"] + 0.5
    x |= {"normalizer": normalizer, "weights": x["advantages"].abs() + 0.5, **options_of(kind, x)}
    x |= {"entropy": x["logp"].square(), "entropy_coef": 0.2}
    if kl:
        x |= {"kl": kl, "kl_coef": 0.3, "kl_corrected": kind not in STOPPED}
        x |= {"ref_kl": x["old_logp"].square()} if kl == "full" else {"ref_logp": x["old_logp"] - 0.2}
    x = packed(x) if form == "packed" else x
    log_ratio = x["logp"] - x["old_logp"]
    varied = [x.pop(name).requires_grad_() for name in ("logp", "entropy", "ref_kl") if name in x]

    def loss(logp, entropy, ref_kl=None):
        old_logp = logp.detach() - log_ratio if kind in STOPPED else x["old_logp"]
        return policy_loss(logp, **{**x, "old_logp": old_logp}, entropy=entropy, ref_kl=ref_kl)[0]

    assert torch.autograd.gradcheck(loss, varied)


def test_gspo_token(backend):
    """With one advantage a row its gradient is GSPO's (section 4.3); beyond 10 the log ratio is held."""
    x = problem(4, 30, device=backend.device)
    want = loss_and_gradient({**x, "kind": "gspo", "clip": (0.1, 0.15)})
    got = loss_and_gradient({**x, "kind": "gspo_token", "clip": (0.1, 0.15)})
    torch.testing.assert_close(got[:2], want[:2])
    assert (want[1] != 0).any()
    x["old_logp"][0] -= 12
    x["advantages"] = -x["advantages"].abs()
    loss, gradient, metrics = loss_and_gradient({**x, "kind": "gspo_token"})
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(10))
    assert (gradient[0] == 0).all()
    assert loss.isfinite()


# ---- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["logp", "old_logp", "ref_logp", "advantages", "weights", "entropy"])
@pytest.mark.parametrize("kind", sorted(POLICY_KINDS))
def test_what_stands_under_the_mask_changes_nothing(backend, name, value, kind):
    x = problem(4, 40, dtype=torch.float32, device=backend.device)
    x |= {"advantages": x["advantages"].unsqueeze(1).expand(4, 40).clone(), "ref_logp": x["old_logp"] - 0.1}
    x |= {"weights": x["advantages"].abs(), "entropy": x["old_logp"] + 1, **options_of(kind, x)}
    if kind not in ("grpo", "vespo", "gmpo") and (value == INF or backend.name != "cpu"):
        pytest.skip("the other combinations are enough")
    options = {"kl_coef": 0.1, "kl_corrected": True, "entropy_coef": 0.1}
    want = loss_and_gradient(x, **options)
    dirty = {**x, name: x[name].masked_fill(~x["mask"], value)}
    got = loss_and_gradient(dirty, **options)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert all(torch.equal(got[2][k], want[2][k]) for k in METRICS)
    assert (got[1][~x["mask"]] == 0).all()


@pytest.mark.parametrize("normalizer", [*NORMALIZERS, 4.0])
@pytest.mark.parametrize("shape", [(3, 7), (0, 7), (3, 0)])
@pytest.mark.parametrize("form", [dict, packed])
def test_nothing_counts(backend, normalizer, shape, form):
    if form is packed and normalizer == "constant":
        pytest.skip("needs a number there")
    x = problem(*shape, device=backend.device)
    for kind in POLICY_KINDS:
        y = form({**x, "mask": torch.zeros_like(x["mask"]), "normalizer": normalizer, **options_of(kind, x)})
        loss, gradient, metrics = loss_and_gradient(y)
        assert loss == 0
        assert gradient.shape == y["logp"].shape
        assert (gradient == 0).all()
        assert all(value == 0 for value in metrics.values())


def test_masks_of_other_types(backend):
    x = problem(3, 9, device=backend.device)
    want = loss_and_gradient(x)
    for dtype in (torch.int64, torch.float32, torch.uint8):
        got = loss_and_gradient({**x, "mask": x["mask"].to(dtype)})
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_by_hand(backend):
    """Clip (.2, .3): unclipped, clipped above (A > 0), clipped below (A < 0), and the two sides where no clip holds."""
    ratio = torch.tensor([[1.1, 2.0, 0.5, 0.5, 2.0]], dtype=torch.float64, device=backend.device)
    advantages = torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0]], dtype=torch.float64, device=backend.device)
    zeros = torch.zeros_like(ratio)
    x = {"logp": ratio.log(), "old_logp": zeros, "advantages": advantages, "mask": zeros == 0}
    loss, gradient, metrics = loss_and_gradient(x, clip=(0.2, 0.3), normalizer=1.0)
    assert loss.item() == pytest.approx(-1.1 - 1.3 + 0.8 - 0.5 + 2.0)
    assert gradient[0].tolist() == pytest.approx([-1.1, 0, 0, -0.5, 2.0])
    assert metrics["tokens"] == 5
    assert metrics["clip_fraction_low"].item() == metrics["clip_fraction_high"].item() == pytest.approx(0.2)
    assert metrics["ratio_mean"].item() == pytest.approx(6.1 / 5)
    assert metrics["ratio_max"].item() == pytest.approx(2.0)
    assert metrics["clip_fraction_dual"] == 0
    assert metrics["approx_kl"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratio[0].tolist()) / 5)
    assert metrics["ref_kl"] == 0


@pytest.mark.parametrize(
    ("kl", "value", "slope"), [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", math.exp(0.5) - 1.5, 1 - math.exp(0.5))]
)
def test_kl_by_hand(backend, kl, value, slope):
    """d = ref - logp = 1/2, advantage 0."""
    zero = torch.zeros(1, 1, dtype=torch.float64, device=backend.device)
    x = {"logp": zero, "old_logp": zero, "advantages": zero, "mask": zero == 0, "ref_logp": zero + 0.5}
    loss, gradient, metrics = loss_and_gradient(x, kl=kl, kl_coef=2.0)
    assert loss.item() == pytest.approx(2 * value)
    assert metrics["ref_kl"].item() == pytest.approx(value)
    assert gradient.item() == pytest.approx(2 * slope)


@pytest.mark.parametrize("form", ["ref_logp", "ref_kl"])
@pytest.mark.parametrize("kind", ["grpo", "gspo", "gspo_token", "gpg", "gmpo"])
def test_the_gradient_of_a_corrected_kl(backend, kind, form):
    """q k3 has the slope q (1 - e^d) + q (e^d - d - 1) = -q d, closed before any digit is lost: float32 has 8, e^18 is
    7e7. The caller's own KL is multiplied by the ratio all the same; where the row's mean is held, that has no slope.
    """
    q = torch.tensor([[0.5], [2.0], [1.0]], device=backend.device)
    for d in (-3.0, 1e-3, 4.0, 18.0, 40.0):
        logp = 0 * q
        x = {"logp": logp, "old_logp": logp - q.log(), "advantages": 0 * logp, "mask": torch.ones_like(q) != 0}
        given = {"ref_logp": logp + d} if form == "ref_logp" else {"ref_kl": 0 * logp + d, "kl": "full"}
        got = loss_and_gradient(x, kind=kind, kl_coef=1.0, kl_corrected=True, normalizer=1.0, **given)[1]
        if kind == "gspo" and form == "ref_logp":  # the row's slope is a mean over its tokens, here of one
            continue
        torch.testing.assert_close(got, -q * d if form == "ref_logp" else q * d, rtol=2e-6, atol=3e-7)
    held = {"logp": logp, "old_logp": logp - 11.0, "advantages": 0 * logp, "mask": torch.ones_like(q) != 0}
    if kind == "gspo_token":
        want = math.exp(10) * (1 - math.e)
        got = loss_and_gradient(held, kind=kind, kl_coef=1.0, kl_corrected=True, normalizer=1.0, ref_logp=logp + 1)[1]
        assert got[0, 0].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", ["grpo", "gspo", "gmpo"])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("kl", ["k3", "full"])
def test_a_kl_without_weight_is_measured_and_changes_nothing(backend, kind, corrected, kl):
    """Infinite ones included: a weight of 0 leaves them out, it does not multiply them."""
    x = problem(3, 30, device=backend.device)
    given = {"ref_kl": x["old_logp"].square()} if kl == "full" else {"ref_logp": x["old_logp"] - 0.3}
    options = {"kind": kind, "kl": kl, "kl_corrected": corrected, **given}
    plain, measured = loss_and_gradient(x, kind=kind), loss_and_gradient(x, **options)
    assert torch.equal(measured[0], plain[0])
    assert torch.equal(measured[1], plain[1])
    _, _, weighted = loss_and_gradient(x, **options, kl_coef=0.5)
    assert torch.equal(measured[2]["ref_kl"], weighted["ref_kl"])
    assert measured[2]["ref_kl"] > 0
    assert plain[2]["ref_kl"] == 0
    for value in given.values():
        value[0, x["mask"][0].nonzero()[0]] = -INF
    infinite = loss_and_gradient(x, **options)
    assert torch.equal(infinite[0], plain[0])
    assert torch.equal(infinite[1], plain[1])
    assert not infinite[2]["ref_kl"].isfinite()


def test_on_policy_gradient_is_reinforce(backend):
    x = problem(4, 10, device=backend.device)
    x["old_logp"] = x["logp"]
    _, gradient, metrics = loss_and_gradient(x)
    want = -x["advantages"].unsqueeze(1) * x["mask"] / x["mask"].sum()
    torch.testing.assert_close(gradient, want)
    assert metrics["ratio_max"] == 1


def test_defaults_of_the_kinds(backend):
    x = problem(4, 30, device=backend.device)
    same = {
        "ppo": {"clip": (0.2, 0.2), "normalizer": "token"},
        "dapo": {"clip": (0.2, 0.28), "normalizer": float(x["mask"].sum())},
        "dr_grpo": {"clip": (0.2, 0.2), "normalizer": 120.0},
    }
    for kind, options in same.items():
        torch.testing.assert_close(
            loss_and_gradient(x, kind=kind)[:2], loss_and_gradient(x, kind="grpo", **options)[:2]
        )
    assert loss_and_gradient(x, kind="dapo")[0] != loss_and_gradient(x, kind="ppo")[0]


def test_extreme_ratios_are_finite(backend):
    """exp(200) is no float32: the ratio is held, the loss is finite and the clip takes the gradient of A > 0."""
    logp = torch.tensor([[0.0, -300.0, 0.0]], device=backend.device)
    old_logp = torch.tensor([[-200.0, 0.0, 0.0]], device=backend.device)
    x = {"logp": logp, "old_logp": old_logp, "advantages": logp.new_ones(1), "mask": logp <= 0}
    loss, gradient, metrics = loss_and_gradient(x)
    assert loss.item() == pytest.approx(-(1.2 + 0 + 1) / 3)
    assert gradient[0].tolist() == pytest.approx([0, 0, -1 / 3])
    assert all(value.isfinite() for value in metrics.values())


def with_all_parts(x, kind):
    """Entropies, a reference, weights, and what a kind selects, beside the tokens of `problem`."""
    x = x | options_of(kind, x)
    generator = torch.Generator().manual_seed(5)

    def uniform():
        return torch.rand(x["logp"].shape, generator=generator, dtype=torch.float64).to(x["logp"])

    return x | {
        "ref_logp": x["logp"] - 0.5 * uniform(), "kl_coef": 0.2, "entropy": uniform(), "entropy_coef": 0.1,
        "weights": uniform() + 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(POLICY_KINDS))
@pytest.mark.parametrize("form", [dict, packed])
def test_a_loss_for_each_token(backend, kind, form):
    """Under any upstream gradient it has the derivatives of the reference, and its sum is what "mean" divides. Random
    gradients tell the tokens of a row that share a slope from each other."""
    x = form(with_all_parts(problem(4, 9, device=backend.device), kind))
    x.pop("normalizer", None)
    upstream = torch.randn(x["logp"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    upstream = upstream.to(backend.device)

    def run(function, upstream):
        given = {k: x[k].detach().requires_grad_() for k in ("logp", "entropy")}
        losses, metrics = function(**x | given, reduction="none")
        gradients = torch.autograd.grad(losses, list(given.values()), upstream)
        return losses.detach(), gradients, metrics

    losses, gradients, metrics = run(policy_loss, upstream.masked_fill(~x["mask"], NAN))  # not read there
    want, exact, numbers = run(CASE.reference, upstream)
    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(gradients, exact)
    torch.testing.assert_close(metrics, numbers)
    assert (losses[~x["mask"]] == 0).all()
    total, _ = policy_loss(**x, normalizer=7.0)
    torch.testing.assert_close(losses.sum() / 7, total)


def test_a_loss_for_each_token_of_rows_in_pieces(backend):
    """A row longer than a piece shares one slope under any upstream gradient."""
    x = problem(2, 20000, device=backend.device) | {"kind": "gspo", "clip": (0.1, 0.1)}
    logp = x.pop("logp").requires_grad_()
    upstream = torch.linspace(-1, 2, 20000, dtype=torch.float64, device=backend.device).expand(2, -1)
    got, want = (
        torch.autograd.grad(function(logp, **x, reduction="none")[0], logp, upstream)[0]
        for function in (policy_loss, CASE.reference)
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_limits_of_the_kl(backend, kl):
    """By torch's clamp, of what goes in and of what comes out."""
    logp = torch.linspace(-6, -0.1, 40, dtype=torch.float64, device=backend.device).view(1, -1).requires_grad_()
    ref = torch.full_like(logp, -3.0)
    d = (ref - logp).clamp(-2.0, 2.0)
    value = {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[kl].clamp(-1.5, 1.5)
    options = {"ref_logp": ref, "kl": kl, "kl_coef": 1.0, "reduction": "none"}
    zero = torch.zeros(1, dtype=torch.float64, device=backend.device)
    held, _ = policy_loss(logp, logp.detach(), zero, torch.ones_like(ref), kl_clamp=(2.0, 1.5), **options)
    torch.testing.assert_close(held, value)
    got, want = (torch.autograd.grad(x.sum(), logp)[0] for x in (held, value))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reduction": "sum"}, "reduction must be 'mean' or 'none', got 'sum'"),
        ({"reduction": "none", "normalizer": "token"}, "takes no normalizer"),
        ({"kl": "k3+", "kl_clamp": (1, 1)}, "kl_clamp belongs to kl 'k1', 'k2' and 'k3', not to 'k3\\+'"),
        ({"kl_clamp": (0, 1)}, "kl_clamp must be two numbers above 0"),
        ({"kl_clamp": (1, NAN)}, "kl_clamp must be two numbers above 0"),
        ({"kl_clamp": (1,)}, "kl_clamp must be two numbers above 0"),
    ],
)
def test_reductions_and_limits_that_cannot_be(options, told):
    with pytest.raises(ValueError, match=told):
        policy_loss(**problem(2, 3), **options)


def test_ratio_max_of_nan(backend):
    """An alarm set on it hears of a NaN, whichever token has it; outside the mask it is nothing."""
    logp = torch.zeros(4, 33, device=backend.device)
    mask = torch.ones(4, 33, dtype=torch.bool, device=backend.device)
    for row, token in ((0, 0), (2, 17), (3, 32)):
        new = logp.clone()
        new[row, token] = torch.nan
        old_and_advantages = (logp, torch.ones(4, device=backend.device))
        assert policy_loss(new, *old_and_advantages, mask)[1]["ratio_max"].isnan()
        kept = mask.clone()
        kept[row, token] = False
        assert policy_loss(new, *old_and_advantages, kept)[1]["ratio_max"] == 1
