"""Reflection schedules under transformers' `generate` and its continuous batching; experts by `transformers_moe`.

processor = ReflectionLogitsProcessor(schedule)
model.generate(..., logits_processor=LogitsProcessorList([processor]))
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from transformers import LogitsProcessor

from warpup.integrations._requests import Requests, schedule_from
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens

try:  # newer than the oldest transformers that warpup runs on
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
except ImportError:
    ContinuousBatchingLogitsProcessor = object  # pyright: ignore[reportAssignmentType]
if find_spec("transformers.integrations.moe"):  # likewise: registers experts_implementation="warpup"
    import warpup.integrations.transformers_moe  # noqa: F401


class ReflectionLogitsProcessor(LogitsProcessor):
    """A schedule on every row of a batch; prompts may be padded on the left. transformers divides by its temperature
    afterwards, as the schedule expects.

    A row has no name here, so each call is held against the one before: the same rows and one token more go on; other
    rows behind the same prompts (beams that were reordered, drafts that were rejected) are followed anew, O(B L) of
    work; anything else is a new generation, whose prompts are the ids of its first call. Beam search works that way.

    schedule: for all rows, or one a row. temperature: what `generate` will divide by, where the unit is "nat".
    inplace: change the scores that came, which saves a copy of (B, V) a step; `output_logits=True` then shows the
    schedule. `delta` (B,) is what the last call added; with `record=True` `deltas` has it of each call of a generation.
    """

    supports_continuous_batching = False  # rows come and go there: ReflectionContinuousProcessor

    def __init__(
        self,
        schedule: ReflectionSchedule | list[ReflectionSchedule],
        *,
        temperature: float = 1.0,
        inplace: bool = False,
        record: bool = False,
    ):
        self.schedule, self.temperature, self.inplace, self.record = schedule, temperature, inplace, record
        self.batch: ReflectionBatch | None = None
        self.seen: Tensor | None = None  # the ids of the last call
        self.prompt = 0
        self.delta: Tensor | None = None
        self.deltas: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        batch = self._follow(input_ids)
        scores = scores if self.inplace else scores.clone()
        self.delta = batch.apply_(scores, temperature=self.temperature)
        if self.record:
            self.deltas.append(self.delta)
        return scores

    def _follow(self, ids: Tensor) -> ReflectionBatch:
        rows, length = ids.shape
        seen, self.seen, batch = self.seen, ids, self.batch
        if seen is not None and (len(seen) != rows or length <= self.prompt):
            seen = None
        if batch is not None and seen is not None and torch.equal(ids[:, :-1], seen):
            batch.update(ids[:, -1])
            return batch
        if batch is None or seen is None or not torch.equal(ids[:, : self.prompt], seen[:, : self.prompt]):
            self.prompt, self.deltas = length, []
            batch = self._batch_of(rows, ids.device)
        none = torch.zeros(rows, dtype=torch.int64, device=ids.device)
        batch.begin_padded(range(rows), ids, none, none + self.prompt)  # padding is no token of any marker
        return batch

    def _batch_of(self, rows: int, device) -> ReflectionBatch:
        given = self.schedule if isinstance(self.schedule, list) else [self.schedule] * rows
        if len(given) != rows:
            raise ValueError(f"{len(given)} schedules were given for {rows} rows (prompts times beams)")
        if self.batch is None or self.batch.slots != rows or self.batch.device != device:
            self.batch = ReflectionBatch(rows, given[0], ring=2, device=device)
            for row, schedule in enumerate(given[1:], 1):
                if schedule is not given[0]:
                    self.batch.set_schedule([row], schedule)
        return self.batch


class ReflectionContinuousProcessor(ContinuousBatchingLogitsProcessor):  # pyright: ignore[reportGeneralTypeIssues]
    """The same for continuous batching: requests join, leave, are preempted and come back.

        manager = model.init_continuous_batching(...)
        attach(manager, ReflectionContinuousProcessor(schedule))
        manager.add_request(..., reflection=schedule.to_json())   # where one differs from the default

    Its argument a request is delta, worked out on the host from the token lists that the engine keeps: the call itself
    is one indexed addition, which a CUDA graph captures. All schedules share the ids of the first. Batches that are
    prepared before the last token is known (`use_async_batching`) are refused by `attach`.
    """

    supports_continuous_batching = True
    supported_kwargs = {"reflection": str}  # noqa: RUF012 (the engine's protocol)
    ignored_kwargs = ()

    def __init__(self, schedule: ReflectionSchedule, *, slots: int = 1024):
        self.schedule, self.requests = schedule, Requests(slots, schedule)
        self.ids: Tensor | None = None

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()  # the bits of 0.0

    def prepare_tensor_args(self, requests_with_new_token) -> Tensor:
        requests, keys = self.requests, []
        for future in requests_with_new_token:
            state = future.state
            keys.append(state.request_id)
            prompt, output = _split(state)
            if state.request_id in requests.known and len(requests.known[state.request_id][1]) == len(prompt):
                slot, _, _, seen = requests.known[state.request_id]
                requests.known[state.request_id] = (slot, prompt, output, seen)
            else:
                self._make_room(keys)
                given = getattr(state, "logit_processor_kwargs", {}).get("reflection")
                schedule = schedule_from(given) or self.schedule
                if schedule.tokens != self.schedule.tokens:
                    raise ValueError("under continuous batching all schedules act on the same tokens")
                requests.start(state.request_id, prompt, output, schedule)
        if not keys:
            return torch.empty(0, dtype=torch.int32)
        requests.catch_up()
        return requests.apply_(torch.empty(len(keys), 0), keys).view(torch.int32)

    def _make_room(self, keys) -> None:
        if not self.requests.free:
            for key in [k for k in self.requests.known if k not in keys]:  # finished, or preempted and rebuilt later
                self.requests.stop(key)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        if self.ids is None or self.ids.device != scores.device:
            self.ids = torch.tensor(ReflectionTokens.of(self.schedule.tokens).ids, device=scores.device)
        delta = tensor_arg[: scores.shape[0]].view(torch.float32)
        return scores.index_add(1, self.ids, delta.to(scores.dtype).unsqueeze(1).expand(-1, len(self.ids)))


def _split(state) -> tuple[list[int], list[int]]:
    """Prompt and output of a request; after a preemption the engine has moved the output behind the prompt."""
    initial, moved = list(state.initial_tokens), getattr(state, "_true_initial_tokens", 0)
    prompt = moved or len(initial)
    return initial[:prompt], [*initial[prompt:], *state.generated_tokens]


def attach(manager, processor: ReflectionContinuousProcessor) -> None:
    """Puts the processor in front of a continuous-batching manager's own, before it is started. Raises ValueError where
    the manager prepares batches ahead of their tokens."""
    if getattr(manager.continuous_batching_config, "use_async_batching", False):
        raise ValueError("a schedule needs every token before the next: set use_async_batching=False")
    listed = manager.logit_processor
    listed.logits_processor.insert(0, processor)
    listed.tensors_required += 1
    listed.do_processing = True
    listed._retrieve_processors_kwargs()
