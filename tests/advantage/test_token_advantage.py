"""The advantage family over tokens and trees: GAE, reward-to-go, masked whitening, segments, trees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import agree, leaves, nudged, upcast
from warpup import gae, masked_whiten, reward_to_go, segment_advantage, segment_ids, tree_advantage
from warpup.advantage.token_advantage import (
    reference_gae,
    reference_masked_whiten,
    reference_reward_to_go,
    reference_tree_advantage,
)

NAN = math.nan
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def coin(*shape, seed=0, p=0.7):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


def moved(options, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def check(function, reference, twin, **options):
    got = leaves(function(**moved(options, twin.device)))
    naive = [leaves(reference(**nudged(options, seed))) for seed in range(4)]
    agree([g.cpu() for g in got], leaves(reference(**upcast(options))), naive)
    return got


# ---- gae, reward_to_go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 3, 4, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gae(twin, length, dtype):
    inputs = {"rewards": normal(5, length, dtype=dtype), "values": normal(5, length, seed=1, dtype=dtype)}
    for mask in (coin(5, length), coin(5, length, p=0.05), torch.ones(5, length, dtype=torch.int64)):
        check(gae, reference_gae, twin, **inputs, mask=mask, gamma=0.99, lam=0.95)
    bootstrap = normal(5, seed=2, dtype=dtype)
    got = check(gae, reference_gae, twin, **inputs, mask=coin(5, length), gamma=1.0, lam=1.0, bootstrap=bootstrap)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_gae_equals_the_loop_of_verl(twin):
    """Products with the mask where ours selects; the same wherever the mask is set."""
    rewards, values, mask, gamma, lam = normal(4, 40), normal(4, 40, seed=1), coin(4, 40).float(), 0.9, 0.8
    next_value, running, reversed_advantages = 0, 0, []
    for t in reversed(range(40)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        fresh = delta + gamma * lam * running
        next_value = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        running = fresh * mask[:, t] + (1 - mask[:, t]) * running
        reversed_advantages.append(running)
    want = torch.stack(reversed_advantages[::-1], 1)
    options = {"rewards": rewards, "values": values, "mask": mask, "gamma": gamma, "lam": lam}
    advantages, returns = (x.cpu() for x in gae(**moved(options, twin.device)))
    torch.testing.assert_close(advantages, want * mask, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, (want + values) * mask, rtol=1e-5, atol=1e-5)


def test_observation_tokens_are_as_if_not_there(twin):
    """With holes in the mask: the result of the same tokens without the holes; what stands in a hole is never read."""
    mask = coin(1, 300, seed=3, p=0.3)
    rewards, values = normal(1, 300), normal(1, 300, seed=1)
    for x in (rewards, values):
        x[~mask] = NAN
    packed = [x[mask].unsqueeze(0).to(twin.device) for x in (rewards, values, mask)]
    for got, want in zip(
        (*gae(*(x.to(twin.device) for x in (rewards, values, mask)), gamma=0.9, lam=0.9),
         reward_to_go(rewards.to(twin.device), mask.to(twin.device), 0.9)),
        (*gae(*packed, gamma=0.9, lam=0.9), reward_to_go(packed[0], packed[2], 0.9)),
        strict=True,
    ):  # fmt: skip
        assert (got.cpu()[~mask] == 0).all()
        torch.testing.assert_close(got.cpu()[mask].unsqueeze(0), want.cpu())


@pytest.mark.parametrize("length", [1, 129, 260])
@pytest.mark.parametrize("carry", [True, False])
def test_reward_to_go(twin, length, carry):
    for p in (0.98, 0.5):
        options = {"rewards": normal(3, length), "mask": coin(3, length, p=p), "gamma": 0.97, "carry": carry}
        check(reward_to_go, reference_reward_to_go, twin, **options)


def test_strided_rows(twin):
    """Slices of a longer batch, transposed and expanded inputs."""
    rewards, values, mask = normal(4, 20), normal(4, 20, seed=1), coin(4, 20)
    whole = [x.to(twin.device) for x in (rewards, values, mask)]
    got = gae(*(x[:, 3:17] for x in whole), gamma=0.9, lam=0.8)
    want = gae(*(x[:, 3:17].clone() for x in whole), gamma=0.9, lam=0.8)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    got = reward_to_go(whole[0].t(), whole[2][:, :1].t().expand(20, 4), 0.5)
    assert torch.equal(got, reward_to_go(whole[0].t().clone(), whole[2][:, :1].t().expand(20, 4).clone(), 0.5))


# ---- masked_whiten --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (2, 3), (7, 600), (4096,), (2, 4099)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_whiten(twin, shape, dtype):
    for correction in (0, 1):
        for shift_mean in (True, False):
            options = {"x": 3 + normal(*shape, dtype=dtype), "correction": correction, "shift_mean": shift_mean}
            check(masked_whiten, reference_masked_whiten, twin, **options, mask=coin(*shape))


def test_masked_whiten_reads_nothing_outside_the_mask(twin):
    x, mask = normal(5000), coin(5000)
    want = masked_whiten(x.to(twin.device), mask.to(twin.device))
    x[~mask] = NAN
    assert torch.equal(masked_whiten(x.to(twin.device), mask.to(twin.device)), want)


def test_masked_whiten_without_variance(twin):
    """Equal values, one value, none: nothing is divided by rounding noise."""
    x = torch.full((6000,), 0.7, device=twin.device)
    for mask in (torch.ones_like(x), torch.arange(6000, device=twin.device) == 4500, torch.zeros_like(x)):
        for eps in (1e-8, 0.0):
            assert (masked_whiten(x, mask, eps=eps) == 0).all()
            assert torch.equal(masked_whiten(x, mask, shift_mean=False, eps=eps), torch.where(mask != 0, x, 0.0))
    spread = 1e4 + torch.arange(6000, device=twin.device) % 4 * 0.25
    got = masked_whiten(spread, x).double().cpu()
    assert abs(got.var().item() - 1) < 1e-6
    assert abs(got.mean().item()) < 1e-6


# ---- segment_advantage ----------------------------------------------------------------------------------------------


def segments_of(probs, mask, threshold, every):
    """Token by token, as the paper tells it."""
    cuts, out = 0, []
    for p, live in zip(probs, mask, strict=True):
        cuts += live and p < threshold
        out.append((cuts - 1) // every if live and cuts else -1)
    return out


@given(
    probs=st.lists(st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]), max_size=25), data=st.data(), every=st.integers(1, 4)
)
@settings(max_examples=60)
def test_segments(twin, probs, data, every):
    n = len(probs)
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    row = {"probs": torch.tensor([probs]), "mask": torch.tensor([mask], dtype=torch.bool)}
    got = segment_ids(**moved(row, twin.device), every=every)
    want = segments_of(probs, mask, 0.9, every)
    assert got.tolist() == [want]
    count = max(want, default=-1) + 1
    values, reward = normal(1, count + 1), 0.75  # a column more than is used
    values[0, count] = NAN
    options = {"rewards": torch.tensor([reward]), "values": values, **row}
    advantages, loss_mask, segments = segment_advantage(**moved(options, twin.device), every=every)
    assert segments.tolist() == [want]
    ends = [*values[0, 1:count].tolist(), reward]
    expected = [0.0 if k < 0 else ends[k] - values[0, k].item() for k in want]
    torch.testing.assert_close(advantages.cpu(), torch.tensor([expected]).view(1, n))
    assert loss_mask.tolist() == [[m and p <= torch.tensor(0.9) for m, p in zip(mask, probs, strict=True)]]


def test_segments_by_hand(twin):
    """Unsure throughout, a cut before every fifth token: V goes .25, .75 and ends in a reward of -2."""
    row = {"rewards": torch.tensor([-2.0]), "values": torch.tensor([[0.25, 0.75]])}
    options = moved(row | {"probs": torch.full((1, 7), 0.5), "mask": torch.ones(1, 7)}, twin.device)
    got = segment_advantage(**options)
    assert got.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert got.advantages.tolist() == [[0.5] * 5 + [-2.75] * 2]
    sure = segment_advantage(**{**options, "probs": torch.ones(1, 7, device=twin.device)})
    assert (sure.advantages == 0).all()
    assert not sure.loss_mask.any()
    one = segment_advantage(**{**options, "values": options["values"][:, :1]})  # the last column takes all that follow
    assert one.advantages.tolist() == [[-2.25] * 7]


# ---- tree_advantage -------------------------------------------------------------------------------------------------


@st.composite
def forests(draw):
    n = draw(st.integers(1, 40))
    parents = torch.tensor([-1] + [draw(st.integers(-1, i - 1)) for i in range(1, n)])
    shuffle = torch.tensor(draw(st.permutations(range(n))))  # node i becomes node shuffle[i]
    out = torch.empty_like(parents)
    out[shuffle] = torch.where(parents >= 0, shuffle[parents.clamp(min=0)], parents)
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0, 0.25, NAN]), min_size=n, max_size=n))
    return torch.tensor(rewards), out


@given(forest=forests(), scale=st.sampled_from(["none", "std"]))
@settings(max_examples=60)
def test_tree(twin, forest, scale):
    rewards, parents = forest
    got = tree_advantage(rewards.to(twin.device), parents.to(twin.device), scale=scale)
    want = reference_tree_advantage(rewards.double(), parents, scale=scale)
    torch.testing.assert_close(got.values.cpu().double(), want.values, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.advantages.cpu().double(), want.advantages, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.zero, got.advantages == 0)


def test_deep_and_wide_trees(twin):
    for n, parents in (
        (3000, torch.arange(3000) - 1),
        (3000, torch.arange(3000).sub(1).div(1500, rounding_mode="floor")),
    ):
        rewards = normal(n)
        got = tree_advantage(rewards.to(twin.device), parents.to(twin.device))
        if parents[2] == 1:  # a chain: all have the leaf's reward
            assert (got.values == rewards[-1].item()).all()
            assert got.zero.all()
        else:
            first, second = rewards[1501:].double().mean(), rewards[2:1501].double()
            torch.testing.assert_close(got.values[1].cpu().double(), first, rtol=1e-4, atol=1e-6)
            root = (second.sum() + first) / 1500
            torch.testing.assert_close(got.values[0].cpu().double(), root, rtol=1e-4, atol=1e-6)


def test_equal_siblings_and_cycles(twin):
    rewards = torch.tensor([0.0, 0.7, 0.7, 0.7, 9.0, 9.0, 9.0], device=twin.device)
    parents = torch.tensor([-1, 0, 0, 0, 5, 4, 4], device=twin.device)  # 4 and 5 are each other's parents
    for scale in ("none", "std"):
        got = tree_advantage(rewards, parents, scale=scale)
        assert got.zero.all()
        torch.testing.assert_close(got.values[:4].cpu(), torch.full((4,), 0.7))
        assert got.values[[4, 5]].isnan().all()


# ---- promises of every function -------------------------------------------------------------------------------------


def test_segments_compiled(device):
    def call(x, y, m):
        return tuple(segment_advantage(x[:, 0], y[:, :3], x.sigmoid(), m, every=2))

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((6, 11), (9, 14)):
        inputs = [x.to(device) for x in (normal(*shape), normal(*shape, seed=1), coin(*shape))]
        for got, want in zip(compiled(*inputs), call(*inputs), strict=True):
            assert torch.equal(got, want)


def test_no_gradient(twin):
    x = normal(4, 6).to(twin.device).requires_grad_()
    mask = torch.ones(4, 6, device=twin.device)
    outputs = [
        *gae(x, x, mask, gamma=0.9, lam=0.9, bootstrap=x[:, 0]),
        reward_to_go(x, mask),
        masked_whiten(x, mask),
        *segment_advantage(x[:, 0], x, x.sigmoid(), mask),
        *tree_advantage(x[:, 0], torch.tensor([-1, 0, 0, 1], device=twin.device)),
    ]
    assert not any(o.requires_grad for o in outputs)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(twin, shape):
    x, mask = torch.zeros(shape, device=twin.device), torch.zeros(shape, dtype=torch.bool, device=twin.device)
    outputs = [*gae(x, x, mask, gamma=0.9, lam=0.9), reward_to_go(x, mask), masked_whiten(x, mask)]
    outputs += segment_advantage(x.new_zeros(shape[0]), x.new_zeros(shape[0], 2), x, mask)
    assert all(o.shape == shape for o in outputs)
    tree = tree_advantage(x.new_zeros(0), x.new_zeros(0, dtype=torch.int64))
    assert all(o.shape == (0,) for o in tree)


X, M, V = torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3)
ERRORS = [
    (lambda: gae(V, V, V, gamma=1.0, lam=1.0), r"gae: rewards must have shape \(B, T\), got \(3,\)"),
    (lambda: gae(X, X[:2], M, gamma=1.0, lam=1.0), r"values must have shape \(3, 4\), got \(2, 4\)"),
    (lambda: gae(X, X, M[:2], gamma=1.0, lam=1.0), r"mask must have shape \(3, 4\), got \(2, 4\)"),
    (lambda: gae(X.long(), X, M, gamma=1.0, lam=1.0), r"rewards must be a floating tensor, got torch.int64"),
    (lambda: gae(X, X, M, gamma=1.0, lam=1.0, bootstrap=V[:2]), r"bootstrap must have shape \(3,\), got \(2,\)"),
    (lambda: reward_to_go(V, V), r"reward_to_go: rewards must have shape \(B, T\)"),
    (lambda: masked_whiten(X, M[0]), r"masked_whiten: mask must have shape \(3, 4\), got \(4,\)"),
    (lambda: masked_whiten(X, M, correction=3), r"correction must be 0 or 1, got 3"),
    (lambda: masked_whiten(X, M, eps=-1.0), r"eps must be at least 0"),
    (lambda: segment_ids(V, V), r"probs must have shape \(B, T\), got \(3,\)"),
    (lambda: segment_ids(X, M, every=0), r"every must be at least 1, got 0"),
    (lambda: segment_advantage(V[:2], X, X, M), r"rewards must have shape \(3,\), got \(2,\)"),
    (lambda: segment_advantage(V, X[:, :0], X, M), r"values must have shape \(3, S\) with S >= 1, got \(3, 0\)"),
    (lambda: tree_advantage(X, X), r"rewards must have shape \(M,\), got \(3, 4\)"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0, 3])), r"parents must be below the number of nodes, 3, got 3"),
    (lambda: tree_advantage(V, V), r"parents must be int64, got torch.float32"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0])), r"parents must have shape \(3,\), got \(2,\)"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0, 0]), scale="mad"), r"scale must be one of none, std; got 'mad'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
