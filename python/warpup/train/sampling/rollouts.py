"""Sampling completions in batches: a prompt runs once for all its copies, and finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from warpup import KeptTokens
from warpup._evaluating import evaluating

from .. import ranks
from ..errors import TrainError
from ..model.cache import CachedModel
from ..model.fsdp import whole
from .decoding import DecodingState, DecodingStrategy
from .filters import Filters
from .penalties import Penalties
from .stopping import StopStrings


@dataclass(frozen=True)
class Rollouts:
    """N completions, row i of prompt i // copies.

    tokens (N, L) int64, padded on the right; lengths (N,) int64, the end token counted; logp (N, L) float32, log-probs
    of the tokens in the distributions that they were drawn from: at the temperature, under the schedule, over what
    the filters left; 0 in the padding; finished (N,) bool, False where the length limit cut a row off.
    penalties: those of the sampler, its logit bias among them, or None. experts: of an engine that tells them, for each
    row the experts (T, L, k) that a mixture took, T the tokens of its prompt and itself but the last.
    delta (N, L) float32, what the schedule added to the logits of its tokens, token_set (V,) bool; both None without
    one. kept: the tokens that the filters left, a set for each of the N * L places, empty in the padding, and
    kept_mass (N, L), the share of the probability that they have; both None where no filter is on or it was not asked
    for. sampled (N, L) bool: False at tokens that carry no loss, because the environment said them, a thinking budget
    wrote them (their logp is 0), they were certain, or another row learns them; turn (N, L) int64: that of an episode's
    tokens, -1 where the environment spoke; or None.
    """

    tokens: Tensor
    lengths: Tensor
    logp: Tensor
    finished: Tensor
    delta: Tensor | None = None
    token_set: Tensor | None = None
    sampled: Tensor | None = None
    turn: Tensor | None = None
    kept: KeptTokens | None = None
    kept_mass: Tensor | None = None
    penalties: Penalties | None = None
    experts: Sequence[Tensor] | None = None

    def learned(self) -> Tensor:
        """(N, L) bool: the tokens that the model has drawn, and that carry loss."""
        inside = torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]
        return inside if self.sampled is None else inside & self.sampled

    def to(self, device) -> Rollouts:
        """The same on another device."""
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        kept = self.kept and KeptTokens(*(t.to(device) for t in self.kept))
        return replace(self, kept=kept, **moved)

    def completion(self, row: int) -> list[int]:
        """Token ids of one completion, with its end token."""
        return self.tokens[row, : self.lengths[row]].tolist()


@torch.no_grad()
def rollout(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int | Sequence[int],
    pad: int,
    max_new_tokens: int,
    copies: int = 1,
    temperature: float = 1.0,
    logit_bias: Mapping[int, float] | None = None,
    decoding: DecodingStrategy | None = None,
    rows: int | None = None,
    generator: torch.Generator | None = None,
    stop: StopStrings | None = None,
    record: bool = False,
    **filters: Any,
) -> Rollouts:
    """Sample `copies` completions of each prompt (token ids); temperature 0 takes the likeliest token.

    eos: the ids that end a completion (`warpup.train.model.tokens.end_tokens` finds a model's).
    logit_bias: what is added to the logits of these token ids; -inf: they are never drawn.
    decoding: what stands between logits and tokens, such as a reflection schedule or a thinking budget.
    rows: completions sampled at once, all if None: a bound for the cache's memory. Each completion draws from a stream
        of its own, so what is drawn does not depend on it.
    stop: texts that end a completion as well (`warpup.train.sampling.stopping.StopStrings`).
    record: with a filter, record which tokens it left (`kept`), which a loss needs to replay it: 4 bytes each.
    filters: top_p, top_k, min_p, top_h, typical_p, epsilon_cutoff, eta_cutoff, repetition, presence, frequency, as in
        `warpup.reflection.sampling.sampling_row`; those that are left out change nothing.

    The model is in `eval()` meanwhile. Raises TrainError if the model's logits are NaN, on all
    ranks if they are on one.
    """
    drawn_by = Filters(temperature, **filters)
    count = len(prompts) * copies
    seeds = torch.randint(2**53 - 1, (count,), generator=generator, device=model.device)
    ends = torch.tensor([eos] if isinstance(eos, int) else list(eos), device=model.device)
    rows = count if rows is None else rows
    mine = ranks.share(range(count))

    def sampled() -> list[Rollouts]:
        """This rank's."""
        parts = []
        for begin in range(mine.start, mine.stop, rows):
            end = min(mine.stop, begin + rows)
            first, last = begin // copies, (end - 1) // copies  # the prompts of these rows
            owner = torch.arange(begin, end, device=model.device) // copies - first
            some = prompts[first : last + 1]
            asked = [some[k] for k in owner.tolist()]
            state = DecodingState(decoding or DecodingStrategy(), asked, seeds[begin:end], drawn_by, record, logit_bias)
            parts.append(_rollout(model, some, owner, state, ends, stop, pad, max_new_tokens))
        return parts

    with evaluating(model), whole(model):
        if ranks.size() == 1:
            parts = sampled()
        else:
            found = ranks.from_each(lambda: [part.to("cpu") for part in sampled()])
            parts = [part.to(model.device) for own in found for part in own]
    return parts[0] if len(parts) == 1 else joined(parts, pad)


def _rollout(
    model, prompts: Sequence[Sequence[int]], owner: Tensor, state: DecodingState, ends: Tensor,
    stop: StopStrings | None, pad: int, limit: int,
) -> Rollouts:  # fmt: skip
    """One completion of prompts[owner[i]] for each i."""
    device, count = model.device, len(owner)

    # Prompts: once through the model, padded on the left so that all completions begin in the same column. Positions
    # count real tokens only.
    width = max(map(len, prompts))
    closing = torch.tensor(state.closing, dtype=torch.int64, device=device)  # what probes read; empty without
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cached = CachedModel(model, width + limit + len(closing))
    logits = cached(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))

    # Copies: the group of a prompt shares the work on it, then each copy has a row and a place in the cache.
    if count > len(prompts):
        cached.select(owner)
        logits, mask = logits[owner], mask[owner]

    # Results for all rows, and the state of those that are still in the batch.
    tokens = torch.full((count, limit), pad, device=device)
    logp = torch.zeros(count, limit, device=device)
    deltas = torch.zeros(count, limit, device=device) if state.scheduled else None
    sets = KeptSets(count, limit, device) if state.record else None
    sampled = torch.ones(count, limit, dtype=torch.bool, device=device) if state.budget else None
    lengths = torch.full((count,), limit, device=device)
    alive = torch.arange(count, device=device)  # the result row of each row that is still in the batch
    done = torch.zeros(count, dtype=torch.bool, device=device)
    position = mask.sum(1)
    # The mask grows by a column of ones a token. A row without padding needs no mask at all, but all rows share one.
    open_mask = torch.cat([mask, mask.new_ones(count, limit + len(closing))], 1)

    for t in range(limit):
        # How sure would the model be of its answer, were the thinking closed here? What it reads for that is forgotten.
        if len(closing) and state.budget is not None and (due := state.budget.due(alive) & ~done).any():
            seen, places = open_mask[:, : width + t + len(closing)], torch.arange(len(closing), device=device)
            answer = cached.peek(closing.expand(len(alive), -1), seen, position[:, None] + places)
            entropy = torch.special.entr(answer.float().softmax(-1)).sum(-1)
            state.budget.observe(entropy, due, alive)

        # Choose the next token of every row, and keep it with the log-prob it was drawn at: the old log-prob of the
        # loss. Rows that are done stay in the batch for a while; what they draw is left out.
        step = state.sample(logits, alive)
        if step.logp.isnan().any():
            raise TrainError(
                f"the model's logits are NaN at generated token {t}: its weights or its precision are broken"
            )
        tokens[alive, t] = torch.where(done, pad, step.token)
        logp[alive, t] = torch.where(done, 0.0, step.logp)
        unread = done if step.forced is None else done | step.forced
        if sampled is not None:
            sampled[alive, t] = ~unread
        if deltas is not None:
            deltas[alive, t] = torch.where(unread, 0.0, step.delta)
        if sets is not None and step.left is not None:
            sets.add(t, alive, step.left & ~unread[:, None], torch.where(unread, 0.0, step.kept))
        ended = ~done & torch.isin(step.token, ends)
        if stop is not None:
            ended |= stop.completed(tokens[alive, : t + 1], ~done & ~ended)
        lengths[alive[ended]] = t + 1
        done |= ended

        # Completions end at very different lengths, and a finished row would cost as much as a live one: they are
        # dropped from the batch and its cache, a tenth of the rows at a time, since dropping copies the cache.
        left, token = len(done) - int(done.sum()), step.token
        if left == 0 or t + 1 == limit:
            break
        if left < 0.9 * len(done):
            keep = (~done).nonzero().squeeze(1)
            cached.select(keep)
            alive, done, token, position, open_mask = (x[keep] for x in (alive, done, token, position, open_mask))

        # One token a row through the model; all before it is in the cache.
        logits = cached(token[:, None], open_mask[:, : width + t + 1], position[:, None])
        position = position + 1

    finished = torch.ones(count, dtype=torch.bool, device=device)
    finished[alive[~done]] = False
    longest = int(lengths.max())
    replay: dict[str, Any] = {"penalties": state.penalties}
    if deltas is not None:
        replay |= {"delta": deltas[:, :longest], "token_set": state.token_set(logits.shape[1])}
    if sampled is not None:
        replay["sampled"] = sampled[:, :longest]
    if sets is not None:
        replay |= {"kept": sets.by_row(longest), "kept_mass": sets.mass[:, :longest]}
    return Rollouts(tokens[:, :longest], lengths, logp[:, :longest], finished, **replay)


class KeptSets:
    """The tokens that filters left, as they come: of some rows of `count` at each of `limit` steps."""

    def __init__(self, count: int, limit: int, device: torch.device):
        self.ids: list[Tensor] = []
        self.counts = torch.zeros(limit, count, dtype=torch.int64, device=device)
        self.mass = torch.zeros(count, limit, device=device)

    def add(self, t: int, rows: Tensor, left: Tensor, mass: Tensor) -> None:
        """What is left (R, V) of these rows (R,), which rise, at step t, and its share of the probability (R,)."""
        sets = KeptTokens.from_mask(left)
        self.ids.append(sets.token_ids)
        self.counts[t, rows] = sets.counts()
        self.mass[rows, t] = mass.to(self.mass.dtype)

    def by_row(self, length: int) -> KeptTokens:
        """The sets of count * length places, one row after the other."""
        steps, count = self.counts.shape
        place = torch.arange(steps * count, device=self.counts.device).view(steps, count)
        return KeptTokens.from_counts(torch.cat(self.ids), self.counts).select(place[:length].T.flatten())


def joined(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """All rows of several rollouts."""
    longest = max(part.tokens.shape[1] for part in parts)

    def wide(x: Tensor, fill: float = 0) -> Tensor:
        return torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=fill)

    def all_of(name: str, fill: float) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat([wide(x, fill) for x in values])

    kept = [part.kept for part in parts if part.kept is not None]
    counts = [wide(k.counts().view(p.tokens.shape)) for k, p in zip(kept, parts, strict=False)]
    return Rollouts(
        torch.cat([wide(p.tokens, pad) for p in parts]),
        torch.cat([p.lengths for p in parts]),
        torch.cat([wide(p.logp) for p in parts]),
        torch.cat([p.finished for p in parts]),
        all_of("delta", 0),
        parts[0].token_set,
        all_of("sampled", False),
        all_of("turn", -1),
        KeptTokens.from_counts(torch.cat([k.token_ids for k in kept]), torch.cat(counts)) if kept else None,
        all_of("kept_mass", 0),
        parts[0].penalties,
        None if parts[0].experts is None else [row for part in parts for row in part.experts or ()],
    )
