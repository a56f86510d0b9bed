"""Reflection schedules in vLLM, for its V1 logits processors and for model runner V2 (vLLM 0.32 on).

Both generations of processors share the entry-point group `vllm.logits_processors`, so the class is chosen by version:

    [project.entry-points."vllm.logits_processors"]
    reflection = "warpup.integrations.vllm:Processor"

A request asks for its schedule with `SamplingParams(extra_args={"reflection": schedule.to_json()})`; the others are
left alone. vLLM takes float32 logits through its processors before it divides by the temperature.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from warpup.integrations._requests import Requests, schedule_from
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from warpup.reflection.apply_schedule import reflection_state_update_

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as Base  # pyright: ignore[reportMissingImports]
except ImportError:  # without vLLM the adapters still run on its protocol
    Base = object

ARGUMENT = "reflection"


def schedule_of(params) -> ReflectionSchedule | None:
    return schedule_from((getattr(params, "extra_args", None) or {}).get(ARGUMENT))


class ReflectionV1(Base):  # pyright: ignore[reportGeneralTypeIssues]
    """V1: the persistent batch is rows of requests that are removed, added and moved between steps."""

    @classmethod
    def validate_params(cls, params) -> None:
        """Raises ValueError where a request's schedule is none."""
        schedule_of(params)

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool = False):
        self.requests = Requests(vllm_config.scheduler_config.max_num_seqs, device=device)
        self.rows: list[int] = []  # that hold a scheduled request, by index in the batch

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any | None) -> None:
        """`batch_update`: removed, then added, then moved; None where the rows are the same. The output lists that come
        with added requests grow from step to step."""
        for index in batch_update.removed if batch_update else ():
            self.requests.stop(index)
        for index, params, prompt, output in batch_update.added if batch_update else ():
            self.requests.stop(index)
            schedule = schedule_of(params)
            if schedule is not None:
                self.requests.start(index, prompt or (), output, schedule)
        for source, target, direction in batch_update.moved if batch_update else ():
            self.requests.move(source, target, swap=getattr(direction, "name", direction) == "SWAP")
        if self.requests.batch is not None:
            self.requests.catch_up()

    def apply(self, logits: Tensor) -> Tensor:
        if self.requests.known:
            self.requests.apply_(logits, range(len(logits)))
        return logits


class ReflectionV2:
    """Model runner V2: requests have slots that never move, whose tokens lie on the device; a row of logits is a
    position of a request, drafts among them. Nothing waits for the device.

    A request's rows are its last token and its drafts: each is pushed in turn and its row's logits scheduled; what was
    rejected since then is taken back at the next step. Rows of a prefill that goes on are left alone.
    """

    def __init__(self, vllm_config, req_states):
        self.states = req_states
        speculative = getattr(vllm_config, "speculative_config", None)
        self.drafts = getattr(speculative, "num_speculative_tokens", 0) or 0
        self.slots = len(req_states.total_len)
        self.batch: ReflectionBatch | None = None
        self.pending: dict[int, ReflectionSchedule | None] = {}
        self.active: set[int] = set()
        self.scheduled = torch.zeros(self.slots, dtype=torch.bool, device=req_states.total_len.device)  # `active` there

    def add_request(self, req_idx: int, sampling_params) -> bool:
        """Whether the request is under a schedule. Overwrites whoever had the slot."""
        schedule = schedule_of(sampling_params)
        if schedule is None and req_idx not in self.active:
            return False
        self.pending[req_idx] = schedule
        self.active.discard(req_idx)
        if schedule is not None:
            self.active.add(req_idx)
        return schedule is not None

    def apply_staged_writes(self) -> None:
        """New requests, and preempted ones that come back with what they had generated, but for the last token: that
        is an input of the step."""
        if not self.pending:
            return
        tables, device = self.states, self.states.all_token_ids.device
        if self.batch is None:
            first = next(schedule for schedule in self.pending.values() if schedule is not None)
            markers = ReflectionTokens((), *ReflectionTokens.of(first.tokens).markers)
            self.batch = ReflectionBatch(self.slots, tokens=markers, ring=self.drafts + 2, device=device)
        for slot, schedule in self.pending.items():
            self.batch.set_schedule([slot], schedule or self.batch.default)
        slots = torch.tensor(list(self.pending), device=device)
        self.scheduled[slots] = torch.tensor([s is not None for s in self.pending.values()], device=device)
        self.pending = {}
        reflection_state_update_(
            self.batch.tables,
            tables.all_token_ids[slots],
            slots,
            count=(tables.total_len[slots].long() - 1).clamp(min=0),
            prompt=tables.prompt_len[slots].long(),
        )

    def apply(self, logits: Tensor, ctx) -> Tensor:
        """`ctx.expanded_idx_mapping`, `ctx.input_ids`, `ctx.pos` (rows,): each row's slot, input token and position."""
        if self.batch is None:
            return logits
        slot, pos = ctx.expanded_idx_mapping.long(), ctx.pos.long()
        tokens = ctx.input_ids.long().unsqueeze(1)
        offset = pos - (self.states.total_len[slot].long() - 1)
        for i in range(self.drafts + 1):
            mine = torch.where(self.scheduled[slot] & (offset == i), slot, -1)
            seen = self.batch.tables.state[slot, 0, 0].long()
            rollback = (seen - pos).clamp(min=0) if i == 0 else None
            self.batch.update(tokens, mine, rollback=rollback)
            self.batch.apply_(logits, mine)
        return logits


def processor_for(installed: str) -> type:
    """The class for a version of vLLM."""
    major, minor = (int("".join(c for c in part if c.isdigit()) or 0) for part in installed.split(".")[:2])
    return ReflectionV2 if (major, minor) >= (0, 32) else ReflectionV1


def __getattr__(name: str):
    if name != "Processor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return processor_for(version("vllm"))
    except PackageNotFoundError:
        raise ImportError("vLLM is not installed: pip install vllm") from None
