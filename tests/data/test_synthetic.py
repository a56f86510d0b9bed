"""Made-up worlds, keywords, windows, clusters; docs/methods/data.py has values by hand."""

import math

import numpy as np
import pytest

from warpup.data import (
    dp_means,
    keyword_degrees,
    keywords,
    maze,
    trace_labels,
    two_hop_facts,
    uniform_rate_mask,
    windows,
)


def test_two_hop_facts_keep_what_is_apart_apart():
    world = two_hop_facts(30, 8, degree=4, ratio=1.0, ood=0.3, seed=3)
    assert world == two_hop_facts(30, 8, degree=4, ratio=1.0, ood=0.3, seed=3)
    assert world != two_hop_facts(30, 8, degree=4, ratio=1.0, ood=0.3, seed=4)
    used = {name: {half for e in rows if e["hops"] == 2 for half in halves(e)} for name, rows in world.items()}
    assert used["ood"]
    assert not used["ood"] & (used["train"] | used["id"])
    prompts = {e["prompt"] for e in world["train"]}
    assert not prompts & {e["prompt"] for e in world["id"] + world["ood"]}
    short = two_hop_facts(30, 8, degree=4, ratio=1.0, cot=False)["train"]
    assert all(e["completion"] == e["answer"] for e in short)


def halves(example):
    """The two facts that a two-hop example is made of."""
    head, first, second = example["prompt"].split()
    return (head, first), (example["completion"].split()[0], second)


def test_a_way_through_a_maze_visits_no_cell_twice():
    for seed in range(20):
        example = maze(5, seed=seed)
        way = example["completion"].split()
        assert len(way) == len(set(way)) == example["cells"] > 1
    assert maze(5, seed=1) == maze(5, seed=1) != maze(5, seed=2)


def test_windows_end_with_the_last_target():
    seen, following = windows(np.arange(10), np.arange(10) * 10, width=4, ahead=2)
    assert seen[-1].tolist() == [4, 5, 6, 7]
    assert following[-1] == 90
    assert len(seen) == len(following) == 5


def test_keywords_end_at_a_dash_and_are_found_over_any_space():
    assert keywords("well - known -- it's\tfine") == ["it's fine", "well", "known"]
    for text in ("big   dogs chase the red\tcats", "Red cats \r of big  dogs"):
        texts = [each for each, _ in keyword_degrees(text, 3)]
        assert len(set(texts)) == 3


def test_degrees_take_out_more_and_more():
    texts = keyword_degrees("Red foxes jump over lazy dogs; the red foxes sleep.", 4)
    assert [degree for _, degree in texts] == [0, 1, 2, 3]
    assert texts[0][0] == "Red foxes jump over lazy dogs; the red foxes sleep."
    assert sorted({len(text) for text, _ in texts}, reverse=True) == [len(text) for text, _ in texts]


def test_clusters_settle_wherever_the_first_point_is():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(center, 0.1, (20, 2)) for center in (0, 5, 10)])
    assert dp_means(x, limit=4.0) == [0] * 20 + [1] * 20 + [2] * 20
    assert dp_means(x[::-1], limit=4.0) == [0] * 20 + [1] * 20 + [2] * 20
    assert set(dp_means(x, limit=1e4)) == {0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_hop_facts(10, 4, degree=5), "degree from 1 to relations"),
        (lambda: two_hop_facts(10, 4, degree=2, ratio=50), "a ratio of 50 wants 1000 two-hop facts, there are"),
        (lambda: maze(1), "maze: expected a size of at least 2, got 1"),
        (lambda: maze(2.5), "maze: expected a size"),
        (lambda: two_hop_facts(ratio=math.inf), "ratio of at least 0, got"),
        (lambda: keyword_degrees("a", 1), "at least 2 degrees"),
        (lambda: keyword_degrees("Red foxes jump.", 3), "3 degrees need 2 keywords, there are"),
        (lambda: windows([1, 2], [1], 1), "two series of one length"),
        (lambda: windows([1, 2], [1, 2], 2), "at least width \\+ ahead = 3 steps"),
        (lambda: trace_labels([[1, 2], [1]]), r"traces of one length, got \[2, 1\]"),
        (lambda: trace_labels([]), "traces of one length"),
        (lambda: uniform_rate_mask([True], np.random.default_rng(0)), r"shape \(B, T\), got \(1,\)"),
        (lambda: dp_means([[1.0]], 0), "a limit above 0"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()
