"""The planners of sharded experts: pure functions, by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warpup.distributed import calibrate, dispatch, even_shards, heterogeneous_shards, materialize, overlap_budget
from warpup.distributed.placement import without_copies

LOADS = st.integers(0, 50)


@st.composite
def clusters(draw, loads=LOADS):
    """load (E,), owner (E,), nodes (R)."""
    experts, ranks = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    nodes = draw(st.lists(st.integers(0, 2), min_size=ranks, max_size=ranks))
    owner = draw(st.lists(st.integers(0, ranks - 1), min_size=experts, max_size=experts))
    return torch.tensor(draw(st.lists(loads, min_size=experts, max_size=experts))), torch.tensor(owner), nodes


rooms = st.fixed_dictionaries({"slots": st.integers(0, 6), "top": st.integers(0, 14)})


@given(clusters(), rooms)
def test_materialize(cluster, room):
    load, owner, nodes = cluster
    held = materialize(load, owner, nodes, **room).held
    copies = materialize(load, owner, nodes, **room).copied()
    hot = [e for e in sorted(range(len(load)), key=lambda e: (-int(load[e]), e)) if load[e] > 0][: room["top"]]
    assert held[torch.arange(len(owner)), owner].all()  # P0 is in P1
    assert (copies.sum(0) <= room["slots"]).all()
    assert not copies[[e for e in range(len(load)) if e not in hot]].any()
    if len(hot) <= room["slots"]:
        assert held[hot].all()
    elif room["slots"]:  # the first is served before a slot is taken: its share, a copy a rank at most
        share = -(-room["slots"] * len(nodes) * int(load[hot[0]]) // int(load[hot].sum()))
        assert copies[hot[0]].sum() == min(share, len(nodes) - 1)


@given(clusters(), rooms)
def test_materialize_reaches_other_nodes_first(cluster, room):
    load, owner, nodes = cluster
    held = materialize(load, owner, nodes, **room).held
    for e in range(len(load)):
        ranks = held[e].nonzero().flatten().tolist()
        doubled = len(ranks) > len({nodes[r] for r in ranks})
        lacking = set(nodes) - {nodes[r] for r in ranks}
        if doubled and lacking:  # then those nodes were full
            copies = materialize(load, owner, nodes, **room).copied().sum(0)
            assert all(copies[r] == room["slots"] for r in range(len(nodes)) if nodes[r] in lacking)


def test_materialize_is_proportional():
    owner, nodes = even_shards(4, 8), [0] * 8
    amounts = materialize(torch.tensor([40, 20, 10, 10]), owner, nodes, slots=1, top=4).copied().sum(1)
    assert amounts.tolist() == [4, 2, 1, 1]
    amounts = materialize(torch.tensor([97, 1, 1, 1]), owner, nodes, slots=1, top=4).copied().sum(1)
    assert amounts.tolist() == [7, 1, 0, 0]  # no more than one copy a rank; the rest goes on


@given(clusters(), rooms, st.randoms(use_true_random=False))
def test_names_of_experts_do_not_matter(cluster, room, random):
    """With different loads: the plan of renamed experts is the renamed plan."""
    load, owner, nodes = cluster
    load = load * len(load) + torch.arange(len(load)) + 1
    order = list(range(len(load)))
    random.shuffle(order)
    plain = materialize(load, owner, nodes, **room)
    assert torch.equal(materialize(load[order], owner[order], nodes, **room).held, plain.held[order])
    shards = heterogeneous_shards(load.unsqueeze(0), nodes, top=room["top"])
    assert torch.equal(heterogeneous_shards(load[order].unsqueeze(0), nodes, top=room["top"]), shards[:, order])
    counts = load.repeat(len(nodes), 1)
    assert torch.equal(
        dispatch(counts[:, order], plain._replace(owner=owner[order], held=plain.held[order]), nodes).sum((1, 2)),
        dispatch(counts, plain, nodes).sum((1, 2)),
    )


@given(clusters(st.just(3)), rooms)
def test_ties_go_to_the_lower_expert(cluster, room):
    load, owner, nodes = cluster
    copies = materialize(load, owner, nodes, **room).copied()
    if room["top"] < len(load):
        assert not copies[room["top"] :].any()
    if room["top"] and room["slots"] and len(nodes) > 1:
        assert copies[0].any()
    assert torch.equal(copies, materialize(load.clone(), owner.clone(), list(nodes), **room).copied())


@given(clusters(), rooms, st.integers(0, 2**31))
def test_dispatch(cluster, room, seed):
    load, owner, nodes = cluster
    placement, ranks = materialize(load, owner, nodes, **room), len(nodes)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 20, (ranks, len(load)), generator=generator)
    split = dispatch(counts, placement, nodes)
    assert torch.equal(split.sum(2), counts)  # every token once
    assert (split >= 0).all()
    for r in range(ranks):
        for e in range(len(load)):
            holders = set(placement.held[e].nonzero().flatten().tolist())
            near = {d for d in holders if nodes[d] == nodes[r]}
            able = {r} if r in holders else near or holders
            got = split[r, e].tolist()
            assert all(got[d] == 0 for d in range(ranks) if d not in able)
            assert max(got[d] for d in able) - min(got[d] for d in able) <= 1


def test_odd_tokens_go_round():
    """One token of each of 4 experts from each rank, two holders elsewhere: neither gets all."""
    placement = without_copies(torch.zeros(4, dtype=torch.int64), 4)
    placement.held[:, 1] = True
    split = dispatch(torch.tensor([[0] * 4] * 2 + [[1] * 4] * 2), placement, [0] * 4)
    assert split.sum((0, 1)).tolist() == [4, 4, 0, 0]


@given(clusters(), rooms, st.integers(0, 2**31), st.floats(0, 10), st.floats(0, 10))
def test_calibrate(cluster, room, seed, row, expert):
    load, owner, nodes = cluster
    planned, ranks = materialize(load, owner, nodes, **room), len(nodes)
    counts = torch.randint(0, 20, (ranks, len(load)), generator=torch.Generator().manual_seed(seed))
    found = calibrate(planned, counts, nodes, **room, seconds_per_row=row, seconds_per_expert=expert)
    real = materialize(counts.sum(0), owner, nodes, **room)
    busiest = [int(dispatch(counts, p, nodes).sum((0, 1)).max()) for p in (planned, real)]
    missing = real.held & ~planned.held
    exposed = max(
        [int(missing[:, r].sum()) for r in range(ranks)] + [int(missing[owner == r].sum()) for r in range(ranks)]
    )
    pays = (busiest[0] - busiest[1]) * row > exposed * expert
    assert torch.equal(found.held, (real if pays else planned).held)
    assert pays or found is planned


def test_calibrate_takes_what_pays():
    owner, nodes, room = even_shards(4, 4), [0] * 4, {"slots": 1, "top": 1}
    planned = materialize(torch.tensor([9, 0, 0, 0]), owner, nodes, **room)
    counts = torch.tensor([[0, 100, 0, 0]] * 4)  # the load has moved to expert 1: 400 rows on its owner, or 100 on all
    for price, takes in ((299 / 3, True), (300 / 3, False)):
        found = calibrate(planned, counts, nodes, **room, seconds_per_row=1.0, seconds_per_expert=price)
        assert (found is not planned) == takes, price
        assert found.held[1].all() == takes


@st.composite
def histories(draw):
    """loads (layers, E), nodes (R)."""
    layers, experts, ranks = draw(st.integers(1, 4)), draw(st.integers(1, 10)), draw(st.integers(1, 6))
    nodes = draw(st.lists(st.integers(0, 2), min_size=ranks, max_size=ranks))
    loads = draw(st.lists(st.integers(0, 50), min_size=layers * experts, max_size=layers * experts))
    return torch.tensor(loads).view(layers, experts), nodes


@given(histories(), st.integers(0, 12))
def test_heterogeneous_shards(history, top):
    loads, nodes = history
    owner, ranks = heterogeneous_shards(loads, nodes, top=top), len(nodes)
    assert owner.shape == loads.shape  # every expert owned once
    assert ((owner >= 0) & (owner < ranks)).all()
    assert torch.bincount(owner.flatten(), minlength=ranks).max() <= -(-loads.numel() // ranks)
    assert torch.equal(owner, heterogeneous_shards(loads.double() / 4, nodes, top=top))  # the mean or the sum


@given(histories())
def test_heterogeneous_shards_balance_the_first_layer(history):
    """Greedy, highest load first, on one node with room enough: no rank exceeds the mean by more than one expert."""
    loads, nodes = history
    loads, ranks = loads[:1].repeat(len(nodes), 1), len(nodes)
    owner = heterogeneous_shards(loads, [0] * ranks, top=0)
    first = torch.zeros(ranks, dtype=torch.int64).index_add_(0, owner[0], loads[0])
    assert first.max() <= loads[0].sum() / ranks + loads[0].max()


def test_heterogeneous_shards_use_the_freedom_between_layers():
    """A layer with one loaded expert leaves its other ranks' slots to it: the hot rank takes fewer elsewhere."""
    loads = torch.tensor([[90, 10, 10, 10], [5, 5, 5, 5]])
    owner = heterogeneous_shards(loads, [0, 0], top=0)
    assert owner[0].tolist() == [0, 1, 1, 1]
    assert torch.bincount(owner.flatten()).tolist() == [4, 4]
    assert owner[1].tolist().count(0) == 3


def test_even_shards():
    for experts in range(1, 20):
        for ranks in range(1, 20):
            sizes = torch.bincount(even_shards(experts, ranks), minlength=ranks)
            assert sizes.sum() == experts
            assert sizes.max() - sizes.min() <= 1


def test_overlap_budget():
    assert overlap_budget(2e-3, 1e9, 300_000) == 6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"slots": -1}, "slots and top must be at least 0, got -1 and 2"),
        ({"owner": torch.tensor([0, 2])}, r"owner must name ranks in \[0, 2\), got \[0, 2\]"),
        ({"load": torch.ones(3)}, "load and owner must both be"),
        ({"load": torch.tensor([1, -1])}, "load must be at least 0"),
        ({"load": torch.tensor([1, float("nan")])}, "load must be at least 0"),
    ],
)
def test_bad_arguments_of_materialize(change, text):
    arguments = {"load": torch.ones(2), "owner": torch.tensor([0, 1]), "nodes": [0, 0], "slots": 1, "top": 2} | change
    with pytest.raises(ValueError, match=text):
        materialize(**arguments)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"loads must be \(layers, E\)"):
        heterogeneous_shards(torch.ones(3), [0], top=0)
    with pytest.raises(ValueError, match="nodes not empty"):
        heterogeneous_shards(torch.ones(1, 3), [], top=0)
    with pytest.raises(ValueError, match=r"counts must be \(R, E\) = \(2, 3\)"):
        dispatch(torch.ones(3, 2, dtype=torch.int64), without_copies(torch.zeros(3, dtype=torch.int64), 2), [0, 0])
