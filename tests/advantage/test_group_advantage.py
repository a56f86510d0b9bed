"""`group_advantage`, against a loop over groups. The estimators made of it: test_estimators.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.advantage.inputs import FLOATS, normal
from tests.support.cases import agree, leaves, nudged, upcast
from tests.support.inputs import moved_to
from warpup import GroupPlan, GroupStats, advantage, group_advantage, group_plan
from warpup import arrays as core
from warpup.advantage.group_advantage import reference_group_advantage

NAN, INF = math.nan, math.inf
BASELINES = ["mean", "leave_one_out", "length_weighted", "runner_up", "none"]
SCALES = ["std", "batch_std", "leave_one_out_std", "none"]
INT64 = st.integers(-(2**63), 2**63 - 1)


def check(rewards, backend, **options):
    """Advantages and statistics agree with the float64 loop, by the rule for low precision."""
    options = {"stats": True} | options
    got = leaves(group_advantage(rewards.to(backend.device), **moved_to(backend.device, options)))
    want = leaves(reference_group_advantage(**upcast({"rewards": rewards, **options})))
    inputs = {"rewards": rewards, **options}
    naive = [leaves(reference_group_advantage(**i)) for i in (inputs, *(nudged(inputs, seed) for seed in range(4)))]
    assert got[0].dtype == (torch.float64 if rewards.dtype == torch.float64 else torch.float32)
    groups = len(want[1]) if len(want) > 1 else 0  # a plan's padding is not in question here
    floating = [0, 3, 4] if groups else [0]
    got = [got[0], *(x[:groups] for x in got[1:])]
    agree([got[i].cpu() for i in floating], [want[i] for i in floating], [[n[i] for i in floating] for n in naive])
    if groups:
        assert torch.equal(got[1].cpu(), want[1])
        assert torch.equal(got[5].cpu(), want[5])
        # What a mean near 0 may lose is set by the size of the rewards, not by its own.
        largest = rewards.nan_to_num(0).abs().max().item()
        torch.testing.assert_close(got[2].cpu().double(), want[2], rtol=0, atol=largest * torch.finfo(got[2].dtype).eps)


GROUPINGS = {
    "fixed": {"groups": 6},
    "ids": {"groups": torch.tensor([7, -(2**63), 2**63 - 1, 7, 7, 0, 0, -(2**63), 0, 7, 7, 5])},
    "offsets": {"offsets": torch.tensor([0, 0, 1, 3, 3, 10, 12])},
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("singleton", ["zero", "raw"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_choice(backend, baseline, scale, singleton, grouping):
    rewards = normal(12)
    rewards[[1, 4]] = NAN
    lengths = torch.arange(12) % 5
    for dtype in FLOATS:
        for correction in (0, 1):
            options = {"baseline": baseline, "scale": scale, "singleton": singleton, "correction": correction}
            options |= {"lengths": lengths} if baseline == "length_weighted" else {}
            check(rewards.to(dtype), backend, **GROUPINGS[grouping], **options)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 33, 128, 129, 300])
def test_group_sizes(backend, size):
    """Around the teams of the CUDA backend: fewer rows than lanes, more, a block's."""
    rewards = normal(3 * size, seed=size)
    check(rewards, backend, groups=size)
    check(rewards, backend, groups=size, scale="leave_one_out_std", baseline="leave_one_out")
    check(rewards, backend, groups=size, baseline="runner_up", scale="none")


def test_ragged_with_one_large_group(backend):
    """The CUDA backend takes small groups by lanes; the large one among them goes to a block."""
    offsets = torch.tensor([0, 3, 3, 400, 401, *range(405, 606, 4), 606])
    for scale in SCALES:
        check(normal(606), backend, offsets=offsets, scale=scale)


@st.composite
def problems(draw):
    n = draw(st.integers(0, 40))
    rewards = draw(st.lists(st.sampled_from([NAN, 0.0, 1.0, 1.0, 0.7, -3.5, 1e3, 1.25]), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["fixed", "ids", "offsets"]))
    if kind == "fixed":
        divisors = [d for d in range(1, n + 1) if n % d == 0] or [1]
        grouping = {"groups": draw(st.sampled_from(divisors))}
    elif kind == "ids":
        pool = draw(st.lists(INT64, min_size=1, max_size=6))
        ids = draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n))
        grouping = {"groups": torch.tensor(ids, dtype=torch.int64)}
    else:
        inner = sorted(draw(st.lists(st.integers(0, n), max_size=6)))
        grouping = {"offsets": torch.tensor([0, *inner, n])}
    options = {
        "baseline": draw(st.sampled_from(BASELINES)),
        "scale": draw(st.sampled_from(SCALES)),
        "singleton": draw(st.sampled_from(["zero", "raw"])),
    }
    if options["baseline"] == "length_weighted":
        lengths = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
        options["lengths"] = torch.tensor(lengths, dtype=torch.int64)
    return torch.tensor(rewards, dtype=draw(st.sampled_from([torch.float32, torch.float64]))), grouping, options


@given(problem=problems())
@settings(max_examples=150)
def test_any_grouping(backend, problem):
    rewards, grouping, options = problem
    got = group_advantage(rewards.to(backend.device), **moved_to(backend.device, {**grouping, **options})).cpu()
    want = reference_group_advantage(rewards.double(), **grouping, **options)
    # One offset of 1000 among ones costs the float32 backend's deviations up to 1e-4 of the others' spread.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_strided_rewards(backend):
    columns = normal(12, 3).to(backend.device)
    for c in range(3):
        want = group_advantage(columns[:, c].clone(), 4)
        assert torch.equal(group_advantage(columns[:, c], 4), want)
        lengths = torch.rand(12, 2, device=backend.device)
        got = group_advantage(columns[:, c], 4, baseline="length_weighted", lengths=lengths[:, 1])
        want = group_advantage(columns[:, c], 4, baseline="length_weighted", lengths=lengths[:, 1].clone())
        assert torch.equal(got, want)


# ---- what goes wrong in practice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-4, 1e-6, 1e-8, 1e-9, 0.0])
@pytest.mark.parametrize("value", [0.7, 0.1, -1e-30, 1e30, 16777217.0])
def test_identical_rewards_give_exactly_zero(backend, value, eps):
    rewards = torch.full((24,), value, device=backend.device)
    for baseline in BASELINES[:-1]:
        for scale in SCALES:
            for grouping in ({"groups": 8}, {"groups": torch.arange(24, device=backend.device) % 3}):
                options = {"baseline": baseline, "scale": scale} | ({"eps": eps} if scale != "none" else {})
                options |= {"lengths": rewards.abs()} if baseline == "length_weighted" else {}
                got, stats = group_advantage(rewards, **grouping, **options, stats=True)
                assert (got == 0).all()
                assert stats.zero_variance[:3].all()
                assert stats.zero_variance_share == 1
    assert torch.equal(group_advantage(rewards, 8, baseline="none", scale="none"), rewards)
    for scale in ("std", "batch_std"):  # not the reward over eps
        assert (group_advantage(rewards, 8, baseline="none", scale=scale, eps=eps) == 0).all()


def test_variance_at_an_offset(backend):
    """One-pass variance gives -0.083 here (true: 0.0167)."""
    rewards = torch.tensor([1000.0, 1000.1, 1000.2, 1000.3])
    _, stats = group_advantage(rewards.to(backend.device), 4, stats=True)
    want = rewards.double().std()
    assert abs(stats.std.item() - want) < 1e-6 * want
    check(rewards, backend, groups=4)
    check(1e4 + normal(48), backend, groups=16, scale="leave_one_out_std", baseline="leave_one_out")


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_leave_one_out_std_of_an_outlier(backend, dtype, step):
    """Without the outlier the others are nearly equal: M2 - d^2 n / (n - 1) alone has no digit left in the type of the
    sums, float32 on CUDA, float64 on either."""
    rewards = torch.tensor([0.7, 0.7 + step, 0.7 + 2 * step, 0.7 + 3 * step, 5.0], dtype=dtype)
    others = rewards[:4].double() - 0.7
    got = group_advantage(rewards.to(backend.device), 5, baseline="leave_one_out", scale="leave_one_out_std", eps=0.0)
    want = (5.0 - 0.7 - others.mean()) / others.std()
    assert abs(got[4].item() / want.item() - 1) < 1e-4
    constant = torch.tensor([0.7, 0.7, 0.7, 0.7, 5.0], device=backend.device)
    got = group_advantage(constant, 5, baseline="leave_one_out", scale="leave_one_out_std", eps=1e-6)
    assert abs(got[4].item() - 4.3) < 1e-6  # undivided, not 4.3e6
    got = group_advantage(constant[3:], 2, baseline="leave_one_out", scale="leave_one_out_std")
    torch.testing.assert_close(got.cpu(), torch.tensor([-4.3, 4.3]))


def test_equals_a_loop_over_uids(backend):
    """verl's way: a dictionary of lists, then a group at a time."""
    rewards, ids = normal(60), torch.randint(-3, 4, (60,), generator=torch.Generator().manual_seed(1)) * 2**60
    members: dict[int, list[int]] = {}
    for row, uid in enumerate(ids.tolist()):
        members.setdefault(uid, []).append(row)
    want = torch.empty(60)
    for rows in members.values():
        want[rows] = (rewards[rows] - rewards[rows].mean()) / (rewards[rows].std() + 1e-4)
    got = group_advantage(rewards.to(backend.device), ids.to(backend.device)).cpu()
    torch.testing.assert_close(got, want)


def test_infinite_reward_stays_in_its_group(backend):
    rewards = torch.tensor([1.0, INF, 2.0, 3.0, 5.0, 4.0], device=backend.device)
    got = group_advantage(rewards, 3).cpu()
    assert not got[1].isfinite()
    torch.testing.assert_close(got[3:], group_advantage(rewards[3:], 3).cpu())
    assert (group_advantage(torch.full((4,), INF, device=backend.device), 4) == 0).all()


def test_singletons_and_missing_rewards(backend):
    rewards = torch.tensor([5.0, NAN, NAN, NAN, 2.0, NAN], device=backend.device)
    for singleton, want in (("zero", [0, 0, 0, 0, 0, 0]), ("raw", [5, 0, 0, 0, 2, 0])):
        for scale in SCALES:
            got, stats = group_advantage(rewards, 2, scale=scale, singleton=singleton, stats=True)
            assert got.tolist() == want
            assert stats.count.tolist() == [1, 0, 1]
            assert stats.mean.tolist() == [5, 0, 2]
            assert stats.std.tolist() == [0, 0, 0]
            assert stats.mean_abs.tolist() == [want[0], 0, want[4]]
            assert stats.zero_variance.tolist() == [True, False, True]


def test_ties_of_the_best_row_go_by_order(backend):
    rewards = torch.tensor([0.0, 3.0, 3.0, 1.0, 1.0, 2.0, 0.0, 0.0], device=backend.device)
    got = group_advantage(rewards, 4, baseline="runner_up", scale="none")
    assert got.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert advantage.pass_at_k(rewards, torch.tensor([0, 1, 1, 0, 0, 0, 1, 1], device=backend.device))[5] > 0


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_shuffles(backend, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(50, generator=generator)
    ids, shuffle = torch.randint(9, (50,), generator=generator), torch.randperm(50, generator=generator)
    for scale in SCALES:
        got = group_advantage(rewards[shuffle].to(backend.device), ids[shuffle].to(backend.device), scale=scale)
        want = group_advantage(rewards.to(backend.device), ids.to(backend.device), scale=scale)
        torch.testing.assert_close(got.cpu(), want.cpu()[shuffle], rtol=1e-5, atol=1e-5)
    in_order = torch.argsort(ids, stable=True)  # the same rows in the same order: the same bits
    offsets = torch.tensor([0, *torch.bincount(ids, minlength=9).cumsum(0).tolist()])
    got = group_advantage(rewards.to(backend.device), ids.to(backend.device)).cpu()[in_order]
    want = group_advantage(rewards[in_order].to(backend.device), offsets=offsets.to(backend.device)).cpu()
    assert torch.equal(got, want)


def test_a_plan_is_the_ids(backend):
    rewards, ids = normal(30).to(backend.device), (torch.arange(30) % 4).to(backend.device)
    plan = group_plan(ids)
    assert isinstance(plan, GroupPlan)
    assert torch.equal(group_advantage(rewards, plan), group_advantage(rewards, ids))


# ---- promises of the function -------------------------------------------------------------------------------------


def test_no_gradient(backend):
    rewards = normal(12).to(backend.device).requires_grad_()
    assert not any(o.requires_grad for o in leaves(group_advantage(rewards, 4, stats=True)))


def test_empty(backend):
    none = torch.zeros(0, device=backend.device)
    no_ids = torch.zeros(0, dtype=torch.int64, device=backend.device)
    start = torch.zeros(1, dtype=torch.int64, device=backend.device)
    for scale in SCALES:
        for grouping in ({"groups": 4}, {"groups": no_ids}, {"offsets": start}, {"offsets": start.expand(4)}):
            got, stats = group_advantage(none, **grouping, scale=scale, stats=True)
            assert got.shape == (0,)
            assert (stats.count == 0).all()
            assert stats.zero_variance_share == 0
    assert stats.count.shape == (3,)
    assert group_plan(no_ids).offsets.tolist() == [0]


def test_core_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"group_advantage: advantages must have shape \(20\), got \(3\)"):
        core.group_advantage(normal(20).numpy(), group_size=4, advantages=np.empty(3, np.float32))


def test_stats_are_named(backend):
    """Each statistic under its name: of a group of four, of one without a reward, of equal ones."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, NAN, NAN, NAN, NAN, 2.0, 2.0, 2.0, NAN], device=backend.device)
    advantages, stats = group_advantage(rewards, 4, eps=0.5, stats=True)
    assert isinstance(stats, GroupStats)
    deviation = 3**-0.5
    assert stats.count.tolist() == [4, 0, 3]
    assert stats.mean.tolist() == [0.5, 0, 2]
    assert stats.std.tolist() == pytest.approx([deviation, 0, 0])
    assert stats.mean_abs.tolist() == pytest.approx([0.5 / (deviation + 0.5), 0, 0])
    assert stats.zero_variance.tolist() == [False, False, True]
    assert stats.zero_variance_share == 0.5
    torch.testing.assert_close(advantages[:4].abs().mean(), stats.mean_abs[0])


R12, IDS12 = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
ERRORS = [
    (lambda: group_advantage(R12), r"either groups or offsets, got neither"),
    (lambda: group_advantage(R12, 4, offsets=IDS12), r"either groups or offsets, got both"),
    (lambda: group_advantage(R12, 5), r"groups must .* divide the number of rewards, got 5 for 12"),
    (lambda: group_advantage(R12, 0), r"groups must be at least 1 .* got 0"),
    (lambda: group_advantage(R12, True), r"groups must be an int, an id tensor or a GroupPlan, got bool"),
    (lambda: group_advantage(R12, "a"), r"groups must be .* got str"),
    (lambda: group_advantage(R12, IDS12[:5]), r"groups must be \(12,\) int64 or int32 ids, got \(5,\) torch.int64"),
    (lambda: group_advantage(R12, R12), r"groups must be .* torch.float32"),
    (lambda: group_advantage(R12.view(3, 4), 4), r"rewards must have shape \(N,\), got \(3, 4\)"),
    (lambda: group_advantage(IDS12, 4), r"rewards must be a floating tensor, got torch.int64"),
    (lambda: group_advantage(R12, offsets=torch.tensor([0, 7, 5, 12])), r"offsets must not descend.*offsets\[1\] = 7"),
    (lambda: group_advantage(R12, offsets=torch.tensor([0, 7])), r"offsets must begin with 0 and end with .* 12"),
    (lambda: group_advantage(R12, offsets=torch.tensor([1, 12])), r"offsets must begin with 0"),
    (lambda: group_advantage(R12, offsets=IDS12[:1]), r"offsets must have groups \+ 1 entries"),
    (lambda: group_advantage(R12, offsets=R12), r"offsets must be a \(G \+ 1,\) int64 tensor, got \(12,\) torch.f"),
    (lambda: group_advantage(R12, offsets=[0, 12]), r"offsets must be .* got list"),
    (lambda: group_advantage(R12, 4, baseline="median"), r"baseline must be one of mean, leave_one_out,.*'median'"),
    (lambda: group_advantage(R12, 4, scale="mad"), r"scale must be one of std, batch_std,.*'mad'"),
    (lambda: group_advantage(R12, 4, singleton="nan"), r"singleton must be one of zero, raw; got 'nan'"),
    (lambda: group_advantage(R12, 4, correction=2), r"correction must be 0 or 1, got 2"),
    (lambda: group_advantage(R12, 4, eps=-1.0), r"eps must be at least 0, got -1"),
    (lambda: group_advantage(R12, 4, baseline="length_weighted"), r"lengths \(N,\) are needed"),
    (lambda: group_advantage(R12, GroupPlan(IDS12 + 12, torch.tensor([0, 12]))), r"order\[0\] = 12 is outside \[0, 12"),
    (lambda: group_advantage(R12, 4, lengths=R12[:3]), r"lengths must have shape \(12,\), got \(3,\)"),
    (lambda: group_advantage(R12, 4, lengths=R12), r"lengths belong to baseline='length_weighted', not to 'm"),
    (lambda: group_advantage(R12, 4, scale="none", eps=1e-6), r"eps is added to the scale, .* leave eps out, got"),
    (lambda: group_advantage(R12, 4, scale="none", correction=0), r"correction is of a deviation, .* leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
