"""`tree_advantage`, against a recursion over the tree."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.advantage.inputs import normal
from warpup import tree_advantage
from warpup.advantage.tree_advantage import reference_tree_advantage

NAN = math.nan


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
def test_tree(backend, forest, scale):
    rewards, parents = forest
    got = tree_advantage(rewards.to(backend.device), parents.to(backend.device), scale=scale)
    want = reference_tree_advantage(rewards.double(), parents, scale=scale)
    torch.testing.assert_close(got.values.cpu().double(), want.values, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.advantages.cpu().double(), want.advantages, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.zero, got.advantages == 0)


def test_deep_and_wide_trees(backend):
    for n, parents in (
        (3000, torch.arange(3000) - 1),
        (3000, torch.arange(3000).sub(1).div(1500, rounding_mode="floor")),
    ):
        rewards = normal(n)
        got = tree_advantage(rewards.to(backend.device), parents.to(backend.device))
        if parents[2] == 1:  # a chain: all have the leaf's reward
            assert (got.values == rewards[-1].item()).all()
            assert got.zero.all()
        else:
            first, second = rewards[1501:].double().mean(), rewards[2:1501].double()
            torch.testing.assert_close(got.values[1].cpu().double(), first, rtol=1e-4, atol=1e-6)
            root = (second.sum() + first) / 1500
            torch.testing.assert_close(got.values[0].cpu().double(), root, rtol=1e-4, atol=1e-6)


def test_equal_siblings_and_cycles(backend):
    rewards = torch.tensor([0.0, 0.7, 0.7, 0.7, 9.0, 9.0, 9.0], device=backend.device)
    parents = torch.tensor([-1, 0, 0, 0, 5, 4, 4], device=backend.device)  # 4 and 5 are each other's parents
    for scale in ("none", "std"):
        got = tree_advantage(rewards, parents, scale=scale)
        assert got.zero.all()
        torch.testing.assert_close(got.values[:4].cpu(), torch.full((4,), 0.7))
        assert got.values[[4, 5]].isnan().all()


def test_no_gradient(backend):
    rewards = normal(4).to(backend.device).requires_grad_()
    outputs = tree_advantage(rewards, torch.tensor([-1, 0, 0, 1], device=backend.device))
    assert not any(o.requires_grad for o in outputs)


def test_empty(backend):
    none = torch.zeros(0, device=backend.device)
    assert all(o.shape == (0,) for o in tree_advantage(none, none.long()))


X, V = torch.zeros(3, 4), torch.zeros(3)
ERRORS = [
    (lambda: tree_advantage(X, X), r"rewards must have shape \(M,\), got \(3, 4\)"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0, 3])), r"parents must be below the number of nodes, 3, got 3"),
    (lambda: tree_advantage(V, V), r"parents must be int64, got torch.float32"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0])), r"parents must have shape \(3,\), got \(2,\)"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0, 0]), scale="mad"), r"scale must be one of none, std; got 'mad'"),
    (lambda: tree_advantage(V, torch.tensor([-1, 0, 0]), eps=1e-6), r"eps is added to the scale, .* leave eps out"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("order", ["parents first", "children first", "shuffled"])
def test_a_long_chain_in_any_order(order):
    """A node is looked at once, whatever the order: in sweeps this would be 10^10 steps, some minutes."""
    nodes = 200_000
    place = {
        "parents first": torch.arange(nodes),
        "children first": torch.arange(nodes).flip(0),
        "shuffled": torch.randperm(nodes, generator=torch.Generator().manual_seed(0)),
    }[order]  # of the i-th node from the root
    parents = torch.empty(nodes, dtype=torch.int64)
    parents[place] = torch.cat([torch.tensor([-1]), place[:-1]])
    rewards = torch.zeros(nodes)
    rewards[place[-1]] = 3.0
    found = tree_advantage(rewards, parents)
    assert (found.values == 3).all()
    assert (found.advantages == 0).all()


def test_cycles_beside_trees():
    """Nodes on a cycle and above one have no value; those below it and other trees have."""
    #         0 <-> 1, 2 above nothing but child of 1; 3 -> 4 a tree; 5 its own parent, 6 its child
    parents = torch.tensor([1, 0, 1, -1, 3, 5, 5])
    rewards = torch.tensor([9.0, 9, 2, 9, 4, 9, 6])
    values = tree_advantage(rewards, parents).values
    assert values.isnan().tolist() == [True, True, False, False, False, True, False]
    assert values[[2, 3, 4, 6]].tolist() == [2, 4, 4, 6]
