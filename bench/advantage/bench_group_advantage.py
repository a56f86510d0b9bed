"""`group_advantage`: rewards in any order and grouping, against plain torch and a loop over ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache, partial

import torch

import warpup
from bench.harness.measure import Comparison, Work, compiled
from bench.harness.timing import Candidate

SIZE, EPS = 8, 1e-4  # rows a group
ROWS = {"cpu": 65536, "cuda": 65536, "quick": 64}
GOALS = {"loop over uids": 100, "contiguous view": 0.5}  # the view has its groups in place already: half is good


def cases(device: str, size: str) -> Iterator[Comparison]:
    n = ROWS[size]
    yield Comparison(f"group_advantage fixed {n} rows by {SIZE}", partial(fixed, device, n))
    yield Comparison(f"group_advantage offsets {n} rows by {SIZE}", partial(by_offsets, device, n))
    goals = GOALS if size == "cpu" else {}
    yield Comparison(f"group_advantage shuffled ids {n} rows by {SIZE}", partial(by_ids, device, n), goals)


def test_group_advantage(case, measure):
    measure(case)


# ---- group_advantage ------------------------------------------------------------------------------------------------


@lru_cache(1)  # three groupings of the same rows, so one reference
def grouped(device, n):
    rewards = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(device)
    return rewards, view_arithmetic(rewards.double())


def view_arithmetic(rewards):
    r = rewards.view(-1, SIZE)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + EPS)).view(-1)


def scattered(rewards, group, groups):
    """Any grouping in plain torch, two passes; `group` numbers each row's group."""
    count = torch.zeros(groups, device=rewards.device).index_add_(0, group, torch.ones_like(rewards))
    centered = rewards - (torch.zeros_like(count).index_add_(0, group, rewards) / count)[group]
    variance = torch.zeros_like(count).index_add_(0, group, centered * centered) / (count - 1)
    return centered / (variance.sqrt()[group] + EPS)


def loop_over_uids(rewards, uids):
    """As trainers do it: a dict of 0-d tensors, a mean and a deviation a uid, then a pass over the rows."""
    members, mean, std = defaultdict(list), {}, {}
    for i, uid in enumerate(uids):
        members[uid].append(rewards[i])
    for uid, values in members.items():
        stacked = torch.stack(values)
        mean[uid], std[uid] = stacked.mean(), stacked.std()
    advantages = rewards.clone()
    for i, uid in enumerate(uids):
        advantages[i] = (rewards[i] - mean[uid]) / (std[uid] + EPS)
    return advantages


def fixed(device, n) -> Work:
    rewards, reference = grouped(device, n)
    functions = {
        "warpup": partial(warpup.group_advantage, rewards, SIZE),
        "eager": partial(view_arithmetic, rewards),
        "torch.compile": partial(compiled(view_arithmetic), rewards),
    }
    return Work({k: Candidate(f) for k, f in functions.items()}, 2 * rewards.nbytes, lambda: [reference])


def by_offsets(device, n) -> Work:
    rewards, reference = grouped(device, n)
    offsets = torch.arange(0, n + 1, SIZE, device=device)

    def eager():
        group = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=device), offsets.diff(), output_size=n)
        return scattered(rewards, group, len(offsets) - 1)

    ours = partial(warpup.group_advantage, rewards, offsets=offsets)
    return Work(
        {"warpup": Candidate(ours), "eager": Candidate(eager)}, 2 * rewards.nbytes + offsets.nbytes, lambda: [reference]
    )


def by_ids(device, n) -> Work:
    rewards, reference = grouped(device, n)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(1)).to(device)
    ids = (torch.randint(-(2**62), 2**62, (n // SIZE,)).repeat_interleave(SIZE)).to(device)[shuffle]
    shuffled, plan = rewards[shuffle], warpup.group_plan(ids)

    def eager():
        unique, group = ids.unique(return_inverse=True)
        return scattered(shuffled, group, len(unique))

    candidates = {
        "warpup": Candidate(partial(warpup.group_advantage, shuffled, ids)),
        "warpup, plan made before": Candidate(partial(warpup.group_advantage, shuffled, plan)),
        "contiguous view": Candidate(partial(view_arithmetic, rewards), result=lambda out: (out[shuffle],)),
        "eager": Candidate(eager),
    }
    if device == "cpu":
        candidates["loop over uids"] = Candidate(partial(loop_over_uids, shuffled, [str(i) for i in ids.tolist()]))
    return Work(candidates, 2 * rewards.nbytes + ids.nbytes, lambda: [reference[shuffle]])
