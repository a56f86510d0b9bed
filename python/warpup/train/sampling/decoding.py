"""What stands between a model's logits and the tokens that are drawn: a reflection schedule, s1's budget forcing, a
thinking budget.

`DecodingStrategy.parse` reads how the command line names them:
    plain                             the model's own softmax
    cyclic:amplitude=5,period=1200    CyclicReflex; also shift, and anchor (generation, think, reflection)
    tip:alpha=3,beta=600              TIP, the thought-switch penalty
    nowait                            the tokens are never drawn
    s1:times=1                        the first ends of thinking become the first of the words
    FILE.json                         a schedule as `ReflectionSchedule.to_json` writes it
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warpup import token_logprob
from warpup.reflection import (
    BudgetForcing,
    BudgetState,
    ReflectionBatch,
    ReflectionSchedule,
    ReflectionTokens,
    ThinkingBudget,
    cyclic_reflex,
    no_wait,
    thought_switch_penalty,
)
from warpup.reflection.sample_step import GENERATED, IN_PROMPT, SampledStep, mark_seen
from warpup.reflection.sampling import SAMPLING

from ..checks import check_budget
from ..errors import TrainError
from .filters import Filters
from .penalties import Penalties

PRESETS = {"cyclic": cyclic_reflex, "tip": thought_switch_penalty, "nowait": no_wait}
MORE = {"cyclic": {"shift", "anchor", "phase"}, "tip": {"phase"}, "nowait": set()}  # fields that a preset leaves open


@dataclass(frozen=True)
class DecodingStrategy:
    """schedule: on the logits, or none. times: ends of thinking that `wait` (a token id) replaces; `tokens` has the
    markers. budget: of thinking, or none."""

    name: str = "plain"
    schedule: ReflectionSchedule | None = None
    tokens: ReflectionTokens | None = None
    wait: int = -1
    times: int = 0
    budget: ThinkingBudget | None = None

    @classmethod
    def parse(cls, text: str, tokenizer, words: Sequence[str]) -> DecodingStrategy:
        """DecodingStrategy of a name; `words` are the reflection words. Raises TrainError on what it does not know."""
        kind, _, rest = text.partition(":")
        try:
            if kind.endswith(".json"):
                return cls(text, ReflectionSchedule.from_json(Path(text).read_text()))
            options = dict(item.split("=", 1) for item in rest.split(",") if item)
            if kind == "plain" and not options:
                return cls()
            if kind not in PRESETS and kind != "s1":
                raise ValueError(f"expected plain, {', '.join(PRESETS)}, s1 or a .json file")
            tokens = ReflectionTokens.from_tokenizer(tokenizer, words)
            if kind == "s1":
                times = int(options.pop("times", 1))
                if options or times < 1:
                    raise ValueError(f"s1 has no {', '.join(options)}" if options else "times: expected at least 1")
                wait = ReflectionTokens.from_tokenizer(tokenizer, words[:1]).ids
                exact = tokenizer.get_vocab().get(words[0])
                return cls(text, None, tokens, wait[0] if exact is None else exact, times)
            known = inspect.signature(PRESETS[kind]).parameters.keys() | MORE[kind]
            unknown = options.keys() - (known - {"tokens", "options"})
            if unknown:
                raise ValueError(f"{kind} has no {', '.join(sorted(unknown))}")
            return cls(text, PRESETS[kind](tokens, **{k: _number(v) for k, v in options.items()}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainError(f"schedule {text!r}: {error}") from error

    def under(self, budget: int | Mapping | None, tokenizer, max_new_tokens: int, setting: str) -> DecodingStrategy:
        """The same under a thinking budget, as the setting of that name gives it: tokens, or the arguments of
        `ThinkingBudget.from_tokenizer`. Raises TrainError on what cannot be."""
        if budget is None:
            return self
        check_budget(budget, setting)
        options: Mapping[str, Any] = {"tokens": budget} if isinstance(budget, int) else budget
        try:
            made = ThinkingBudget.from_tokenizer(tokenizer, **options)
        except ValueError as error:
            raise TrainError(f"{setting}: {error}") from error
        spent = made.tokens + len(made.closing)
        if spent >= max_new_tokens:
            raise TrainError(
                f"{setting}: {made.tokens} tokens of thinking and {len(made.closing)} that close it leave none of "
                f"max_new_tokens, {max_new_tokens}, for an answer"
            )
        tokens = self.tokens or (self.schedule and ReflectionTokens.of(self.schedule.tokens))
        if tokens and tokens.markers[:2] != made.markers.markers[:2]:
            raise TrainError(f"{setting}: schedule {self.name!r} has other markers of thinking, {tokens.markers[:2]}")
        return replace(self, tokens=tokens or made.markers, budget=made)


def split_words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def bias_of(tokenizer, biases: Mapping[str, float]) -> dict[int, float]:
    """What is added to the logits of token ids, from that of texts of one token each, such as " wait" or "</think>"."""
    found: dict[int, float] = {}
    for text, bias in biases.items():
        exact = tokenizer.get_vocab().get(text)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if exact is None else [exact]
        if len(ids) != 1 or ids[0] in found:
            why = "is the same token as another text" if len(ids) == 1 else f"is {len(ids)} tokens"
            raise TrainError(f"logit_bias: {text!r} {why}; give each token once, as a text that is one token")
        found[ids[0]] = bias
    return found


class Step(NamedTuple):
    """Of each row: the token, its log-prob in the distribution that it was drawn from, what the schedule added, the
    probability that the filters left, and, if it is recorded, which tokens they left; under a budget, whether the token
    was written for the model: then its log-prob is 0."""

    token: Tensor  # int64
    logp: Tensor  # float32
    delta: Tensor  # float32
    kept: Tensor  # float32
    left: Tensor | None  # (R, V) bool
    forced: Tensor | None = None  # bool


class DecodingState:
    """A decoding at work on the rows of one rollout, which are the slots of its tables. seeds: (rows,) int64; record:
    whether a step tells which tokens the filters left; logit_bias: what is added to the logits of these tokens."""

    def __init__(
        self, decoding: DecodingStrategy, prompts: Sequence[Sequence[int]], seeds: Tensor, filters: Filters,
        record: bool = False, logit_bias: Mapping[int, float] | None = None,
    ):  # fmt: skip
        self.filters, self.prompts, self.record = filters, prompts, record and filters.cut
        bias = tuple((logit_bias or {}).items())
        penalties = Penalties(filters.repetition, filters.presence, filters.frequency, bias)
        self.penalties = None if penalties == Penalties() else penalties
        # What `sample_step` reads of each row, (rows, V); made when V is known.
        self.seen: Tensor | None = None  # uint8, which tokens it has seen
        self.counts: Tensor | None = None  # int32, how often each was generated
        self.bias: Tensor | None = None  # float32
        batch = ReflectionBatch(len(prompts), decoding.schedule, tokens=decoding.tokens, ring=2, device=seeds.device)
        batch.begin(range(len(prompts)), prompts)
        batch.set_sampling(range(len(prompts)), **asdict(filters))
        batch.tables.sampling[:, SAMPLING.index("seed")] = seeds.double()
        self.batch = batch
        self.scheduled = decoding.schedule is not None
        self.forcing = BudgetForcing(batch, decoding.wait, decoding.times) if decoding.times else None
        self.budget = BudgetState(batch, decoding.budget) if decoding.budget else None
        self.closing = decoding.budget.closing if decoding.budget and decoding.budget.probe_every else ()

    def sample(self, logits: Tensor, rows: Tensor) -> Step:
        """Draws the next token of these rows from their logits (R, V), which stay as they are."""
        if self.penalties and self.seen is None:
            self._follow(self.penalties, logits)
        drawn = self.batch.sample(logits, rows, seen=self.seen, counts=self.counts, bias=self.bias)
        greedy = self.filters.temperature == 0
        left = self._left(logits, drawn, rows) if self.record else None
        # A greedy token is certain, so what is kept of it is its log-prob among the others.
        token, logp = drawn.token, drawn.logp_raw if greedy else drawn.logp
        if self.forcing:
            token = self.forcing(token, rows)
            replaced = token != drawn.token
            if replaced.any():
                own = token_logprob(logits, token, temperature=self.filters.temperature or 1)
                logp = torch.where(replaced, own, logp)
        forced = None
        if self.budget:
            written = self.budget.forced(rows)
            forced = written >= 0
            token, logp = torch.where(forced, written, token), torch.where(forced, 0.0, logp)
        self.batch.update(token, rows)
        if self.seen is not None:
            mark_seen(self.seen, rows, token)
        if self.counts is not None:
            self.counts[rows, token] += 1
        return Step(token, logp, drawn.delta, drawn.kept, left, forced)

    def _follow(self, penalties: Penalties, logits: Tensor) -> None:
        """Begin to keep what these penalties read."""
        shape, device = (len(self.prompts), logits.shape[1]), logits.device
        self.seen = torch.zeros(shape, dtype=torch.uint8, device=device)
        for row, prompt in enumerate(self.prompts):
            self.seen[row, torch.tensor(prompt, device=device)] = IN_PROMPT
        if penalties.frequency:
            self.counts = torch.zeros(shape, dtype=torch.int32, device=device)
        if penalties.logit_bias:
            self.bias = penalties.bias(shape[1], device).expand(shape).contiguous()

    def _left(self, logits: Tensor, drawn: SampledStep, rows: Tensor) -> Tensor:
        """(R, V) bool: the tokens that the filters left, by the comparison that `sample_step` made."""
        least, most, penalties = drawn.least.unsqueeze(1), drawn.most.unsqueeze(1), self.penalties
        if self.scheduled:
            ids = torch.tensor(ReflectionTokens.of(self.batch.default.tokens).ids, device=logits.device)
            logits = logits.to(least.dtype, copy=True)
            logits[:, ids] += drawn.delta.unsqueeze(1)
        if penalties is None or self.seen is None:
            return (logits >= least) & (logits <= most) if self.filters.typical_p < 1 else logits >= least
        # The operator may round a penalized logit otherwise: a few roundings outside of the bounds is still inside.
        seen = self.seen[rows]
        generated = seen & GENERATED > 0 if self.counts is None else self.counts[rows]
        moved = penalties.apply(logits.to(least.dtype), seen & IN_PROMPT > 0, generated)
        eps, added = 4 * torch.finfo(least.dtype).eps, penalties.most_added(generated)
        left = moved >= least - eps * (least.abs() + added)
        return left & (moved <= most + eps * (most.abs() + added)) if self.filters.typical_p < 1 else left

    def token_set(self, vocab: int) -> Tensor:
        """(V,) bool: the tokens of the schedule, as `replay_logprob` takes them."""
        ids = torch.tensor(ReflectionTokens.of(self.batch.default.tokens).ids, device=self.batch.device)
        return torch.zeros(vocab, dtype=torch.bool, device=self.batch.device).index_fill(0, ids, True)
