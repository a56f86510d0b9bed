"""The published estimators (`warpup.advantage`), each against its formula group by group."""

import math

import pytest
import torch

from tests.advantage.inputs import normal
from tests.support.cases import leaves
from tests.support.inputs import moved_to
from warpup import advantage, group_plan

NAN = math.nan
SIZE, GROUPS = 6, 5


@pytest.fixture
def rewards(backend):
    return normal(SIZE * GROUPS, seed=5).to(backend.device)


def per_group(rewards, formula):
    return torch.cat([formula(x) for x in rewards.double().cpu().view(GROUPS, SIZE)])


FORMULAS = {
    "grpo": lambda x: (x - x.mean()) / (x.std() + 1e-4),
    "grpo_verl": lambda x: (x - x.mean()) / (x.std() + 1e-6),
    "dr_grpo": lambda x: x - x.mean(),
    "rloo": lambda x: torch.stack([v - (x.sum() - v) / (SIZE - 1) for v in x]),
    "pass_at_k": lambda x: torch.where(
        x == x.max(), (x.topk(2).values @ x.new_tensor([1, -1])) / (x.std() + 1e-6), 0.0
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(backend, rewards, name):
    want = per_group(rewards, FORMULAS[name])
    ids = torch.arange(SIZE * GROUPS, device=backend.device) // SIZE * -(2**40)
    order = torch.randperm(SIZE * GROUPS).to(backend.device)
    estimator = advantage.ESTIMATORS[name]
    torch.testing.assert_close(estimator(rewards, SIZE).cpu().double(), want, rtol=1e-5, atol=1e-5)
    got = estimator(rewards[order], group_plan(ids[order])).cpu().double()
    torch.testing.assert_close(got, want[order.cpu()], rtol=1e-5, atol=1e-5)


def test_max_rl(backend):
    """A question solved once in four gives 3 and -1, one solved three times 1/3 and -1; one never solved, 0."""
    r = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1], device=backend.device)
    want = [3.0, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert advantage.max_rl(r, 4).tolist() == pytest.approx(want)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).to(backend.device)
    ids = torch.tensor([7, -3, 2**40, 0], device=backend.device).repeat_interleave(4)
    for groups in (ids[order], group_plan(ids[order])):
        assert advantage.max_rl(r[order], groups).tolist() == pytest.approx([want[i] for i in order.tolist()])
    r = torch.tensor([NAN, 2.0, 0.0, -1.0, -3.0, -2.0, 5.0, NAN, NAN], device=backend.device)  # unknown; mean below 0
    assert advantage.max_rl(r, 3).tolist() == [0, 1, -1, 0, 0, 0, 0, 0, 0]


def test_hierarchical_grpo(backend):
    """Two tasks; in each two episodes of one proposer (0) and two solvers (1). Solvers are compared within an episode,
    proposers within a task."""
    rewards = torch.tensor([1.0, 4, 8, 3, 0, 1, 5, 1, 1, 9, 2, 6], device=backend.device)
    roles = torch.tensor([0, 1, 1] * 4, device=backend.device)
    episodes = torch.tensor([0, 0, 0, 1, 1, 1] * 2, device=backend.device)
    options = {"episodes": episodes, "roles": roles}
    got = advantage.hierarchical_grpo(rewards, 6, **options, within=(1,))
    assert got.tolist() == [-1, -2, 2, 1, -0.5, 0.5, -2, 0, 0, 2, -2, 2]
    ids = torch.tensor([5, -1], device=backend.device).repeat_interleave(6)
    order = torch.randperm(12).to(backend.device)
    mixed = {k: v[order] for k, v in options.items()}
    again = advantage.hierarchical_grpo(rewards[order], ids[order], **mixed, within=(1,))
    assert torch.equal(again, got[order])
    whole = advantage.hierarchical_grpo(rewards, 6, **options)  # no role within an episode: all solvers of a task
    assert whole.tolist()[:6] == [-1, 0.75, 4.75, 1, -3.25, -2.25]
    with pytest.raises(ValueError, match="roles must have shape"):
        advantage.hierarchical_grpo(rewards, 6, episodes=episodes, roles=roles[1:])
    with pytest.raises(ValueError, match="episodes must be integers"):
        advantage.hierarchical_grpo(rewards, 6, episodes=rewards, roles=roles)


def test_optimal_token_baseline_by_hand(backend):
    """Two rows of three and two tokens, and one alone. With p = 1/2 and sum p^2 = 1/2 each token adds 1/2 to W."""
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], device=backend.device) > 0
    half = torch.full(mask.shape, 0.5, device=backend.device)
    logp = half.log().masked_fill(~mask, NAN)
    rewards = torch.tensor([1.0, 0.0, 7.0, NAN], device=backend.device)
    groups = torch.tensor([4, 4, 9, 4], device=backend.device)
    x = {"mask": mask, "logp": logp, "sum_p2": half.masked_fill(~mask, NAN)}
    got = advantage.optimal_token_baseline(rewards, groups, **x)
    want = [
        [0.5, 0, 0.5, 1],
        [-0.5, -0.5, 0, 0],
        [7, 7, 0, 0],
        [0, 0, 0, 0],
    ]  # the third place is the first row's alone
    torch.testing.assert_close(got.cpu(), torch.tensor(want))
    weights = torch.ones_like(half)
    weights[0] = 3**0.5  # its W three times the other's: the mean is 3/4
    got = advantage.optimal_token_baseline(rewards, groups, **x, weights=weights)
    torch.testing.assert_close(got[0].cpu(), torch.tensor([0.25, 0, 0.25, 1]))
    with pytest.raises(ValueError, match="sum_p2 must have shape"):
        advantage.optimal_token_baseline(rewards, groups, **x | {"sum_p2": half[1:]})
    with pytest.raises(ValueError, match="rewards must have shape"):
        advantage.optimal_token_baseline(rewards[1:], groups, **x)


def test_singletons(backend):
    one = torch.tensor([3.0], device=backend.device)
    mask = torch.ones(1, 2, device=backend.device)
    for name in ("grpo", "dr_grpo", "rloo", "pass_at_k", "max_rl"):
        assert advantage.ESTIMATORS[name](one, 1).tolist() == [0.0]
    assert advantage.grpo_verl(one, 1).tolist() == [3.0]
    assert advantage.rloo(one, 1, singleton="raw").tolist() == [3.0]
    assert advantage.opo(one, 1, lengths=one).tolist() == [3.0]
    assert advantage.reinforce_pp_baseline(one, 1, mask=mask).tolist() == [[0.0, 0.0]]  # raw, then whitened with itself


def test_grpo_scales(backend, rewards):
    x = rewards.double().cpu()
    centered = per_group(rewards, FORMULAS["dr_grpo"])
    got = advantage.grpo(rewards, SIZE, scale="batch_std").cpu().double()
    torch.testing.assert_close(got, centered / (x.std() + 1e-4), rtol=1e-5, atol=1e-5)
    got = advantage.grpo(rewards, SIZE, scale="none").cpu().double()
    torch.testing.assert_close(got, centered, rtol=1e-5, atol=1e-5)


def test_opo(backend, rewards):
    lengths = torch.randint(1, 900, (SIZE * GROUPS,))
    x, w = rewards.double().cpu().view(GROUPS, SIZE), lengths.double().view(GROUPS, SIZE)
    want = (x - ((w * x).sum(1) / w.sum(1)).unsqueeze(1)).view(-1)
    got = advantage.opo(rewards, SIZE, lengths=lengths.to(backend.device))
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


def test_gdpo(backend):
    columns = normal(GROUPS * SIZE, 3, seed=8)
    columns[3, 1], columns[7] = NAN, NAN
    weights = torch.tensor([1.0, 0.5, 2.0])
    total = torch.zeros(GROUPS * SIZE, dtype=torch.float64)
    for c in range(3):
        for rows in torch.arange(GROUPS * SIZE).view(GROUPS, SIZE):
            rows = rows[~columns[rows, c].isnan()]
            x = columns[rows, c].double()
            total[rows] += weights[c] * (x - x.mean()) / (x.std() + 1e-4)
    kept = torch.arange(GROUPS * SIZE) != 7
    want = torch.where(kept, (total - total[kept].mean()) / (total[kept].std() + 1e-4), 0.0)
    ids = torch.arange(GROUPS * SIZE) // SIZE
    for groups in (SIZE, ids.to(backend.device)):
        got = advantage.gdpo(columns.to(backend.device), groups, weights=weights.to(backend.device))
        torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


def whitened(x, mask):
    kept = x[mask]
    return torch.where(mask, (x - kept.mean()) * torch.rsqrt(kept.var() + 1e-8), 0.0)


def test_reinforce_pp(backend):
    """verl's loop over tokens, on responses of different lengths, an observation inside one of them."""
    rewards, gamma = normal(4, seed=3), 0.9
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5]).unsqueeze(1)
    mask[0, 3] = False
    tokens = torch.zeros(4, 7, dtype=torch.float64)
    for row, last in enumerate([6, 2, 0, 4]):
        tokens[row, last] = rewards[row]
    for carry in (False, True):
        running, returns = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64)
        for t in reversed(range(7)):
            live = mask[:, t]
            running = torch.where(live, tokens[:, t] + gamma * running, running if carry else 0.0)
            returns[:, t] = running
        want = whitened(returns, mask)
        for given_rewards in (rewards, tokens.float()):
            options = {"rewards": given_rewards, "mask": mask, "gamma": gamma, "carry": carry}
            got = advantage.reinforce_pp(**moved_to(backend.device, options))
            torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)


def test_reinforce_pp_baseline(backend):
    rewards = normal(6, seed=4)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 5, 2, 4]).unsqueeze(1)
    groups = torch.tensor([2, 2, 9, 9, 9, -1])
    centered = rewards.double().clone()
    for uid in (2, 9):  # -1 has one row: raw
        centered[groups == uid] -= centered[groups == uid].mean()
    want = whitened(centered.unsqueeze(1).expand(6, 5), mask)
    options = {"rewards": rewards, "groups": groups, "mask": mask}
    got = advantage.reinforce_pp_baseline(**moved_to(backend.device, options))
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-5)
    rewards[5] = NAN  # no reward: the same as without the row
    got = advantage.reinforce_pp_baseline(**moved_to(backend.device, options))
    without = {"rewards": rewards[:5], "groups": groups[:5], "mask": mask[:5]}
    want = advantage.reinforce_pp_baseline(**moved_to(backend.device, without))
    assert (got[5] == 0).all()
    torch.testing.assert_close(got[:5], want)


# ---- promises of every estimator -------------------------------------------------------------------------------------


def test_no_gradient(backend):
    rewards = normal(12).to(backend.device).requires_grad_()
    outputs = [
        advantage.grpo(rewards, 4),
        advantage.opo(rewards, 4, lengths=rewards),
        advantage.gdpo(rewards.view(6, 2), 3, weights=torch.ones(2, device=backend.device, requires_grad=True)),
        advantage.reinforce_pp(rewards, mask=torch.ones(12, 3, device=backend.device)),
        advantage.reinforce_pp_baseline(rewards, 4, mask=torch.ones(12, 3, device=backend.device)),
    ]
    assert not any(o.requires_grad for o in outputs)


def test_empty(backend):
    none = torch.zeros(0, device=backend.device)
    for name, estimator in advantage.ESTIMATORS.items():
        extra = {"mask": torch.zeros(0, 3, device=backend.device)} if "reinforce" in name else {}
        extra |= {"lengths": none} if name == "opo" else {}
        groups = None if name == "reinforce_pp" else 4
        assert estimator(none.view(0, 2) if name == "gdpo" else none, groups, **extra).shape[0] == 0


COMPILED = {
    "opo": lambda r, ids, m: advantage.opo(r, ids, lengths=m.sum(1)),
    "gdpo": lambda r, ids, m: advantage.gdpo(torch.stack([r, r * r], 1), ids),
    "reinforce_pp": lambda r, ids, m: advantage.reinforce_pp(r, mask=m),
    "reinforce_pp_baseline": lambda r, ids, m: advantage.reinforce_pp_baseline(r, ids, mask=m),
} | {name: lambda r, ids, m, f=advantage.ESTIMATORS[name]: f(r, ids) for name in FORMULAS}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(device, name):
    torch.compiler.reset()
    compiled = torch.compile(COMPILED[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (12, 20):
        inputs = [x.to(device) for x in (normal(n), torch.arange(n) * 7 % 5, normal(n, 6) > 0)]
        for got, want in zip(leaves(compiled(*inputs)), leaves(COMPILED[name](*inputs)), strict=True):
            assert torch.equal(got, want)


R12, IDS12 = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
ERRORS = [
    (lambda: advantage.opo(R12, 4, lengths=R12[:3]), r"lengths must have shape \(12,\), got \(3,\)"),
    (lambda: advantage.gdpo(R12, 4), r"rewards must have shape \(N, C\), got \(12,\)"),
    (lambda: advantage.gdpo(R12.view(6, 2), 3, weights=R12), r"weights must have shape \(2,\), got \(12,\)"),
    (lambda: advantage.reinforce_pp(R12, mask=R12), r"mask must have shape \(12, T\), got \(12,\)"),
    (lambda: advantage.reinforce_pp(R12, 4, mask=R12), r"groups have no part in it, .* leave them out"),
    (lambda: advantage.grpo(R12, 4, scale="none", eps=1e-4), r"eps is added to the scale, .* leave eps out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
