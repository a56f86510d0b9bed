"""Reflection schedules and thinking budgets under transformers' `generate` and its continuous batching; experts by
`transformers_moe`.

processor = ReflectionLogitsProcessor(schedule, budget=budget)
model.generate(..., logits_processor=LogitsProcessorList([processor]))
"""

from __future__ import annotations

import sys
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from warpup.integrations._requests import Requests, budget_from, check_probe, markers_of, schedule_from
from warpup.reflection import BudgetState, ReflectionBatch, ReflectionSchedule, ReflectionTokens, ThinkingBudget
from warpup.reflection.budget_state import make_certain_

try:  # newer than the oldest transformers that warpup runs on
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
except ImportError:
    ContinuousBatchingLogitsProcessor = object  # pyright: ignore[reportAssignmentType]
if find_spec("transformers.integrations.moe"):  # likewise: registers experts_implementation="warpup"
    import warpup.integrations.transformers_moe  # noqa: F401


class ReflectionLogitsProcessor(LogitsProcessor):
    """A schedule, a thinking budget or both on every row of a batch; prompts may be padded on the left. transformers
    divides by its temperature afterwards, as the schedule expects.

    Each `generate` is a generation, whose prompts are the ids of its first call: ids alone would not tell the next turn
    of a chat from the next token. Within it each call is held against the one before: the same rows and one token more
    go on; other rows (beams that were reordered, drafts that were rejected) are followed anew, O(B L) of work. In a
    decoding loop of your own, `reset()` comes before each generation.

    schedule, budget: for all rows, or a list of one a row, None for a row without. temperature: what `generate` will
    divide by, where the unit is "nat". inplace: change the scores that came, which saves a copy of (B, V) a step;
    `output_logits=True` then shows what was done. `delta` (B,) is what the last call added, `forced` (B,) the token
    that it forced in each row or -1; with `record=True` `deltas` has the former of each call of a generation.
    """

    supports_continuous_batching = False  # rows come and go there: ReflectionContinuousProcessor

    def __init__(
        self,
        schedule: ReflectionSchedule | Sequence[ReflectionSchedule | None] | None = None,
        *,
        budget: ThinkingBudget | Sequence[ThinkingBudget | None] | None = None,
        temperature: float = 1.0,
        inplace: bool = False,
        record: bool = False,
    ):
        if not any(_listed(schedule)) and not any(_listed(budget)):
            raise ValueError("neither a schedule nor a budget was given")
        for each in _listed(budget):
            check_probe(each)
        self.schedule, self.budget = schedule, budget
        self.temperature, self.inplace, self.record = temperature, inplace, record
        self.batch: ReflectionBatch | None = None
        self.state: BudgetState | None = None  # where there is a budget
        self.callers: list[weakref.ref[LogitsProcessorList]] = []  # of this generation: generate's, and its assistant's
        self.seen: Tensor | None = None  # the ids of the last call
        self.prompt = 0
        self.delta: Tensor | None = None
        self.deltas: list[Tensor] = []
        self.forced: Tensor | None = None

    def reset(self) -> None:
        """The next call begins a generation."""
        self.seen, self.callers = None, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._begin_with(_caller())
        batch = self._follow(input_ids)
        scores = scores if self.inplace else scores.clone()
        self.delta = batch.apply_(scores, temperature=self.temperature)
        if self.record:
            self.deltas.append(self.delta)
        if self.state is not None:
            for budget in _listed(self.budget):
                if budget is not None:
                    budget.check_vocabulary(scores.shape[1])
            self.forced = self.state.force_(scores)
        return scores

    def _begin_with(self, caller: LogitsProcessorList | None) -> None:
        """A caller that is new begins a generation, but for an assistant's, whose `generate` runs inside of ours."""
        if caller is None:  # a loop of one's own
            if self.callers:
                self.reset()
            return
        if any(caller is known() for known in self.callers):
            return
        if not any(_is_running(known()) for known in self.callers):
            self.reset()
        self.callers = [known for known in self.callers if known() is not None] + [weakref.ref(caller)]

    def _follow(self, ids: Tensor) -> ReflectionBatch:
        rows, length = ids.shape
        seen, self.seen, batch = self.seen, ids, self.batch
        if batch is not None and seen is not None:
            if torch.equal(ids[:, :-1], seen):
                batch.update(ids[:, -1])
                return batch
            if len(seen) != rows or not self.prompt <= length <= seen.shape[1] + 1:
                raise ValueError(
                    f"ids of shape {tuple(ids.shape)} do not go on from {tuple(seen.shape)} behind prompts of "
                    f"{self.prompt}: call reset() before another generation"
                )
        else:
            self.prompt, self.deltas = length, []
            batch = self._batch_of(rows, ids.device)
        none = torch.zeros(rows, dtype=torch.int64, device=ids.device)
        batch.begin_padded(range(rows), ids, none, none + self.prompt)  # padding is no token of any marker
        if self.state is not None:
            for row, budget in enumerate(_listed(self.budget, rows)):
                self.state.set([row], budget)
            self.state.begin(range(rows), ids, none + self.prompt)
        return batch

    def _batch_of(self, rows: int, device) -> ReflectionBatch:
        schedules, budgets = _listed(self.schedule, rows), _listed(self.budget, rows)
        for name, given in (("schedules", schedules), ("budgets", budgets)):
            if len(given) != rows:
                raise ValueError(f"{len(given)} {name} were given for {rows} rows (prompts times beams)")
        if self.batch is None or self.batch.slots != rows or self.batch.device != device:
            asked = [pair for pair in zip(schedules, budgets, strict=True) if any(pair)]
            self.batch = ReflectionBatch(rows, tokens=markers_of(*asked[0]), ring=2, device=device)
            for schedule in dict.fromkeys(schedules):
                if schedule is not None:
                    self.batch.set_schedule([row for row in range(rows) if schedules[row] == schedule], schedule)
            texts = [text for b in budgets if b for text in (b.closing, b.warning)]
            self.state = BudgetState(self.batch, room=max(map(len, texts))) if texts else None
        return self.batch


def _listed(given, rows: int = 1) -> list:
    """One a row."""
    return list(given) if isinstance(given, Sequence) else [given] * rows


def _caller() -> LogitsProcessorList | None:
    """The list that runs the processor. `generate` makes one for itself at each call and keeps it to the end, so it is
    what a generation can be known by; it does not pass it on, but stands on the stack."""
    frame, code = sys._getframe(2), LogitsProcessorList.__call__.__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame and frame.f_locals["self"]


def _is_running(caller: LogitsProcessorList | None) -> bool:
    """Whether a function further up the stack holds that list: the `generate` that made it has not returned."""
    frame = sys._getframe(1) if caller is not None else None
    while frame is not None:
        if any(value is caller for value in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False


class _ContinuousProcessor(ContinuousBatchingLogitsProcessor):  # pyright: ignore[reportGeneralTypeIssues]
    """What follows requests under continuous batching: they join, leave, are preempted and come back.

    Its argument a request is a number, worked out on the host from the token lists that the engine keeps, and 0 where
    there is nothing to do. The call itself is a few indexed operations, which a CUDA graph captures.
    """

    supports_continuous_batching = True
    ignored_kwargs = ()

    def __init__(self, requests: Requests):
        self.requests = requests
        self.states: dict[str, Any] = {}  # the engine's state of each request; one that is new has another

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()  # the bits of 0.0 too

    @abstractmethod
    def asked(self, given: dict[str, str]) -> tuple[ReflectionSchedule | None, ThinkingBudget | None]:
        """The schedule and the budget of a request that came with these arguments."""

    @abstractmethod
    def argument(self, keys: list[str]) -> Tensor:
        """(len(keys),) int32, of requests that were caught up with."""

    def prepare_tensor_args(self, requests_with_new_token) -> Tensor:
        requests, keys = self.requests, []
        for future in requests_with_new_token:
            state = future.state
            keys.append(state.request_id)
            prompt, output = _split(state)
            if self.states.get(state.request_id) is state:
                requests.known[state.request_id].output = output
            else:
                self._make_room(keys)
                asked = self.asked(getattr(state, "logit_processor_kwargs", {}))
                requests.start(state.request_id, prompt, output, *asked)
                self.states[state.request_id] = state
        if not keys:
            return torch.empty(0, dtype=torch.int32)
        requests.catch_up()
        return self.argument(keys)

    def _make_room(self, keys) -> None:
        if not self.requests.free:
            for key in [k for k in self.requests.known if k not in keys]:  # finished, or preempted and rebuilt later
                self.requests.stop(key), self.states.pop(str(key))


class ReflectionContinuousProcessor(_ContinuousProcessor):
    """A schedule under continuous batching.

        manager = model.init_continuous_batching(...)
        attach(manager, ReflectionContinuousProcessor(schedule))
        manager.add_request(..., reflection=schedule.to_json())   # where one differs from the default

    Its argument a request is delta. All schedules share the ids of the first. Batches that are prepared before the last
    token is known (`use_async_batching`) are refused by `attach`.
    """

    supported_kwargs = {"reflection": str}  # noqa: RUF012 (the engine's protocol)

    def __init__(self, schedule: ReflectionSchedule, *, slots: int = 1024):
        super().__init__(Requests(slots, schedule))
        self.schedule = schedule
        self.ids: Tensor | None = None

    def asked(self, given):
        schedule = schedule_from(given.get("reflection")) or self.schedule
        if schedule.tokens != self.schedule.tokens:
            raise ValueError("under continuous batching all schedules act on the same tokens")
        return schedule, None

    def argument(self, keys):
        return self.requests.apply_(torch.empty(len(keys), 0), keys).view(torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        if self.ids is None or self.ids.device != scores.device:
            self.ids = torch.tensor(ReflectionTokens.of(self.schedule.tokens).ids, device=scores.device)
        delta = tensor_arg[: scores.shape[0]].view(torch.float32).unsqueeze(1)
        wide = torch.promote_types(scores.dtype, torch.float32)  # one rounding, as `apply_schedule_` has
        return scores.index_copy(1, self.ids, (scores.index_select(1, self.ids).to(wide) + delta).to(scores.dtype))


class BudgetContinuousProcessor(_ContinuousProcessor):
    """A thinking budget under continuous batching, attached in the same way; `manager.add_request(...,
    thinking_budget=budget.to_json())` where a request has another one than the default."""

    supported_kwargs = {"thinking_budget": str}  # noqa: RUF012 (the engine's protocol)

    def __init__(self, budget: ThinkingBudget, *, slots: int = 1024):
        check_probe(budget)
        super().__init__(Requests(slots))
        self.budget = budget

    def asked(self, given):
        return None, budget_from(given.get("thinking_budget")) or self.budget

    def argument(self, keys):
        return (self.requests.forced(keys) + 1).int()

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        return make_certain_(scores.clone(), tensor_arg[: scores.shape[0]].long() - 1)


def _split(state) -> tuple[list[int], list[int]]:
    """Prompt and output of a request; after a preemption the engine has moved the output behind the prompt."""
    initial, moved = list(state.initial_tokens), getattr(state, "_true_initial_tokens", 0)
    prompt = moved or len(initial)
    return initial[:prompt], [*initial[prompt:], *state.generated_tokens]


def attach(manager, processor: _ContinuousProcessor) -> None:
    """Puts the processor in front of a continuous-batching manager's own, before it is started. Raises ValueError where
    the manager prepares batches ahead of their tokens."""
    if getattr(manager.continuous_batching_config, "use_async_batching", False):
        raise ValueError("a schedule or budget needs every token before the next: set use_async_batching=False")
    listed = manager.logit_processor
    listed.logits_processor.insert(0, processor)
    listed.tensors_required += 1
    listed.do_processing = True
    listed._retrieve_processors_kwargs()
