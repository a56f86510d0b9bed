"""Credit by tree (SPO-tree, arXiv 2505.23564): completions of a prompt share beginnings, and branch.

From the prompt `branches` beginnings are sampled, from each of them as many continuations, and so on; what is sampled
from one place is an edge. A place is worth the mean of the places behind it, a completion its reward, and an edge is
credited with the difference between its two ends. Siblings share what stands before them, so they differ in themselves
alone, and each token is sampled, and learned, once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from warpup.advantage.tree_advantage import tree_advantage

from ..model.tokens import Tokens
from ..rewards.calls import completions_of
from ..rewards.reward_set import RewardSet
from ..run import StageRun
from ..settings import depth_of
from .groups import Sampled
from .prompts import Prompts
from .rollouts import Rollouts, rollout

if TYPE_CHECKING:
    from ..stages.rlvr_settings import RLVRSettings


@dataclass(frozen=True)
class Place:
    """A node: of which prompt, what was said up to it at which log-probs, and the edges on the way: each the node that
    it leads to, and from which token to which."""

    prompt: int
    tokens: Tokens
    logp: list[float]
    edges: list[tuple[int, int, int]]
    finished: bool = False
    copies: int = 1


def grow(settings: RLVRSettings, run: StageRun, prompts: Prompts, picked: Sequence[int], rewards: RewardSet) -> Sampled:
    """A tree for each of the prompts `picked`, as rows of its completions, scored. A token stands in each row that it
    is part of, and is learned in the first. A completion that ended early stands for all that might have branched off
    it, so that the mean of a tree's rows is what its prompt is worth."""
    began = time.perf_counter()
    depth = depth_of(settings.samples, settings.branches)
    edge = settings.edge_tokens or max(1, settings.max_new_tokens // depth)
    parents = [-1] * len(picked)
    open_ends = [Place(prompt, [], [], [(prompt, 0, 0)]) for prompt in range(len(picked))]
    leaves: list[Place] = []
    for level in range(depth):
        last = level + 1 == depth
        with run.computing():
            rolls = rollout(
                run.model, [prompts.ids[picked[place.prompt]] + place.tokens for place in open_ends],
                eos=prompts.ends, pad=run.tokenizer.pad_token_id, copies=settings.branches,
                max_new_tokens=settings.max_new_tokens - level * edge if last else edge,
                temperature=settings.temperature, rows=settings.rows, generator=run.generator,
            )  # fmt: skip
        grown = []
        for row, finished in enumerate(rolls.finished.tolist()):
            place, ids = open_ends[row // settings.branches], rolls.completion(row)
            begin, node = len(place.tokens), len(parents)
            parents.append(place.edges[-1][0])
            end = Place(
                place.prompt, place.tokens + ids, place.logp + rolls.logp[row, : len(ids)].tolist(),
                [*place.edges, (node, begin, begin + len(ids))], finished, settings.branches ** (depth - level - 1),
            )  # fmt: skip
            (leaves if finished or last else grown).append(end)
        open_ends = grown
        if not open_ends:
            break
    seconds = time.perf_counter() - began

    # Rows: each prompt's completions side by side. The first row that has an edge learns it.
    ends = [leaf for leaf in sorted(leaves, key=lambda leaf: leaf.prompt) for _ in range(leaf.copies)]
    rolls, owned = rows_of(ends, run.tokenizer.pad_token_id, run.model.device)
    asked = [prompts.examples[picked[end.prompt]] for end in ends]
    completions = completions_of(run.tokenizer, rolls)
    scores = rewards.score(completions, asked, group=settings.samples)

    # An advantage for each edge, and so for each of its tokens.
    at_leaves = torch.full((len(parents),), torch.nan)
    for end, reward in zip(ends, scores.rewards, strict=True):
        at_leaves[end.edges[-1][0]] = reward
    each = tree_advantage(at_leaves, torch.tensor(parents), scale=settings.scale).advantages.tolist()
    advantages = torch.zeros_like(rolls.logp)
    for row, end in enumerate(ends):
        for node, begin, behind in end.edges:
            advantages[row, begin:behind] = each[node]
    pairs = [(prompts.ids[picked[end.prompt]], end.tokens, own) for end, own in zip(ends, owned, strict=True)]
    shown = {"prompt": asked[0]["prompt"], "completion": completions[0].text, "reward": scores.rewards[0]}
    sampled = Sampled(pairs, rolls, scores, advantages * rolls.learned(), shown, seconds)
    return replace(sampled, drawn=int(rolls.learned().sum()))


def rows_of(ends: Sequence[Place], pad: int, device) -> tuple[Rollouts, list[list[bool]]]:
    """N completions as `Rollouts`, and which of their tokens each learns: those of edges that no row before it has."""
    width, seen = max(len(end.tokens) for end in ends), set()
    owned = []
    for end in ends:
        own = [False] * len(end.tokens)
        for node, begin, behind in end.edges:
            if node not in seen:
                own[begin:behind] = [True] * (behind - begin)
            seen.add(node)
        owned.append(own)

    def padded(rows: Sequence[Sequence], fill) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

    rolls = Rollouts(
        padded([end.tokens for end in ends], pad),
        torch.tensor([len(end.tokens) for end in ends], device=device),
        padded([end.logp for end in ends], 0.0),
        torch.tensor([end.finished for end in ends], device=device),
        sampled=padded(owned, False),
    )
    return rolls, owned
