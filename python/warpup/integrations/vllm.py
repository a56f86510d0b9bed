"""Reflection schedules and thinking budgets in vLLM (0.31 to 0.33), under both of its model runners.

    vllm serve MODEL --logits-processors warpup.integrations.vllm:Processor
    LLM(MODEL, logits_processors=["warpup.integrations.vllm:Processor"])

A request asks for its schedule with `SamplingParams(extra_args={"reflection": schedule.to_json()})`, for its budget
with `"thinking_budget": budget.to_json()` there; the others are left alone. All requests of a server share the markers
of thinking and code. vLLM takes float32 logits through its processors before it divides by the temperature.

Name the processor so, and not as an entry point: under asynchronous scheduling runner V1 fills in the tokens of the
last step for processors that it was given by name alone. What cannot be served is refused when the engine starts:
batch-sharded sampling, diffusion models, runner V1 with that entry point. Runner V1 itself refuses processors beside
speculative decoding; runner V2 has both.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from warpup.integrations._requests import ROOM, Requests, asked_by, markers_of, room
from warpup.reflection import BudgetState, ReflectionBatch, ReflectionSchedule, ReflectionTokens, ThinkingBudget
from warpup.reflection.apply_schedule import reflection_state_update_

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as BaseV1  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        LogitsProcessor as BaseV2,
    )
except ImportError as error:
    raise ImportError(f"warpup.integrations.vllm needs vLLM 0.31 or later: {error}") from None

NAME = "warpup.integrations.vllm:Processor"


def asked_in(params) -> tuple[ReflectionSchedule | None, ThinkingBudget | None]:
    """The schedule and the budget of a request's sampling parameters."""
    return asked_by(getattr(params, "extra_args", None) or {}, "extra_args")


class ReflectionV1(BaseV1):  # pyright: ignore[reportGeneralTypeIssues]
    """Runner V1: the persistent batch is rows of requests that are removed, added and moved between steps."""

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        if vllm_config.scheduler_config.async_scheduling and not vllm_config.model_config.logits_processors:
            raise ValueError(
                "vLLM's asynchronous scheduling fills in sampled tokens for logits processors that are named only: "
                f"start it with --logits-processors {NAME}, and remove the entry point that loaded this"
            )
        self.requests = Requests(
            vllm_config.scheduler_config.max_num_seqs,
            device=device,
            remedy="vLLM did not fill in the tokens of the last step; switch asynchronous scheduling off",
        )

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any | None) -> None:
        """`batch_update`: removed, then added, then moved; None where the rows are the same. The output lists that come
        with added requests grow from step to step. Here, before the forward pass, the last token may still be missing
        in them: `apply` reads them."""
        for index in batch_update.removed if batch_update else ():
            self.requests.stop(index)
        for index, params, prompt, output in batch_update.added if batch_update else ():
            self.requests.stop(index)
            asked = asked_in(params)
            if any(asked) and prompt is None:
                message = (
                    "a prompt of embeddings has no tokens to follow: its schedule and thinking budget are left out"
                )
                warnings.warn(message, stacklevel=2)
            elif any(asked):
                self.requests.start(index, prompt, output, *asked)
        for source, target, direction in batch_update.moved if batch_update else ():
            self.requests.move(source, target, swap=direction.name == "SWAP")

    def apply(self, logits: Tensor) -> Tensor:
        if self.requests.known:
            self.requests.catch_up()
            self.requests.apply_(logits, range(len(logits)))
        return logits


class ReflectionV2(BaseV2):  # pyright: ignore[reportGeneralTypeIssues]
    """Runner V2: requests have slots that never move, whose tokens lie on the device; a row of logits is a position of
    a request, drafts among them. Nothing waits for the device.

    A request's rows are its last token and its drafts: each is pushed in turn and its row's logits scheduled; what was
    rejected since then is taken back at the next step. Rows of a prefill that goes on are left alone.
    """

    def __init__(self, vllm_config, req_states):
        if vllm_config.parallel_config.enable_batch_sharded_sampling:
            raise ValueError(
                "batch-sharded sampling shows a rank only some of a request's tokens, so its schedule cannot be "
                f"followed: start vLLM without --enable-batch-sharded-sampling, or without {NAME}"
            )
        if vllm_config.diffusion_config is not None:
            raise ValueError(f"a diffusion model writes no token after the other: start vLLM without {NAME}")
        self.states = req_states
        self.drafts = vllm_config.num_speculative_tokens
        self.batch: ReflectionBatch | None = None
        self.pending: dict[int, tuple[ReflectionSchedule | None, ThinkingBudget | None]] = {}
        self.active: set[int] = set()
        self.budgeted: set[int] = set()
        self.followed = torch.zeros(req_states.max_num_reqs, dtype=torch.bool, device=req_states.device)  # `active`

    def add_request(self, req_idx: int, sampling_params) -> bool:
        """Whether the request is under a schedule or a budget. Overwrites whoever had the slot."""
        asked = asked_in(sampling_params)
        if not any(asked) and req_idx not in self.active:
            return False
        self.pending[req_idx] = asked
        for slots, member in ((self.active, any(asked)), (self.budgeted, asked[1] is not None)):
            (slots.add if member else slots.discard)(req_idx)
        return any(asked)

    def apply_staged_writes(self) -> None:
        """New requests, and preempted ones that come back with what they had generated, but for the last token: that
        is an input of the step."""
        if not self.pending:
            return
        states, device = self.states, self.states.device
        if self.batch is None:
            markers = markers_of(*next(asked for asked in self.pending.values() if any(asked)))
            options = {"ring": self.drafts + 2, "device": device, **room(states.max_num_reqs)}
            self.batch = ReflectionBatch(states.max_num_reqs, tokens=markers, **options)
            self.state = BudgetState(self.batch, room=ROOM)
        for slot, (schedule, budget) in self.pending.items():
            self.batch.set_schedule([slot], schedule or self.batch.default)
            self.state.set([slot], budget)
        slots = torch.tensor(list(self.pending), device=device)
        self.followed[slots] = torch.tensor([any(asked) for asked in self.pending.values()], device=device)
        self.pending = {}
        # `.gpu` is asked for each time: a tensor of host memory has another one after every write.
        tokens, prompt = states.all_token_ids.gpu[slots], states.prompt_len.gpu[slots].long()
        count = (states.total_len.gpu[slots].long() - 1).clamp(min=0)
        reflection_state_update_(self.batch.tables, tokens, slots, count=count, prompt=prompt)
        if self.budgeted:
            self.state.begin(slots, tokens.long(), prompt, count)

    def apply(self, logits: Tensor, ctx) -> Tensor:
        """`ctx.expanded_idx_mapping`, `ctx.input_ids`, `ctx.pos` (rows,): each row's slot, or a negative number, input
        token and position."""
        if self.batch is None:
            return logits
        slot, pos = ctx.expanded_idx_mapping.long().clamp(min=-1), ctx.pos.long()
        held = slot.clamp(min=0)
        tokens, known = ctx.input_ids.long().unsqueeze(1), self.followed[held]
        offset = pos - (self.states.total_len.gpu[held].long() - 1)
        for i in range(self.drafts + 1):
            mine = torch.where(known & (offset == i), slot, -1)
            seen = self.batch.tables.state[held, 0, 0].long()
            rollback = (seen - pos).clamp(min=0) if i == 0 else None
            self.batch.update(tokens, mine, rollback=rollback)
            self.batch.apply_(logits, mine)
            if self.budgeted:
                self.state.force_(logits, mine)
        return logits


class Processor(BaseV2, BaseV1):  # pyright: ignore[reportGeneralTypeIssues]
    """What vLLM is given: each runner makes it with arguments of its own and gets the processor that it expects."""

    markers: tuple | None = None  # of the server's first schedule or budget

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raises ValueError where a request's schedule or budget is none, or follows other markers than the first one
        did: vLLM answers the request with it."""
        asked = asked_in(sampling_params)
        if not any(asked):
            return
        markers = markers_of(*asked).markers
        if cls.markers is None:
            cls.markers = markers
        schedule = asked[0] is not None and any(ReflectionTokens.of(asked[0].tokens).markers)
        shared = slice(None) if schedule else slice(2)  # a budget knows those of thinking alone
        if any(markers) and markers[shared] != cls.markers[shared]:
            raise ValueError(
                "all schedules and thinking budgets of a server share their markers (think_start, think_end, "
                f"code_start, code_end): the first one to come had {cls.markers}, got {markers}"
            )

    def __new__(cls, vllm_config, *arguments):
        return (ReflectionV1 if len(arguments) == 2 else ReflectionV2)(vllm_config, *arguments)
