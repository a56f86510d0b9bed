"""Reflection schedules in vLLM (0.31 to 0.33), under both of its model runners.

    vllm serve MODEL --logits-processors warpup.integrations.vllm:Processor
    LLM(MODEL, logits_processors=["warpup.integrations.vllm:Processor"])

A request asks for its schedule with `SamplingParams(extra_args={"reflection": schedule.to_json()})`; the others are
left alone. All schedules of a server share the markers of thinking and code. vLLM takes float32 logits through its
processors before it divides by the temperature.

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

from warpup.integrations._requests import Requests, room, schedule_from
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from warpup.reflection.apply_schedule import reflection_state_update_

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as BaseV1  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        LogitsProcessor as BaseV2,
    )
except ImportError as error:
    raise ImportError(f"warpup.integrations.vllm needs vLLM 0.31 or later: {error}") from None

ARGUMENT = "reflection"
NAME = "warpup.integrations.vllm:Processor"


def schedule_of(params) -> ReflectionSchedule | None:
    return schedule_from((getattr(params, "extra_args", None) or {}).get(ARGUMENT))


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
            schedule = schedule_of(params)
            if schedule is not None and prompt is None:
                message = "a prompt of embeddings has no tokens to follow: its reflection schedule is left out"
                warnings.warn(message, stacklevel=2)
            elif schedule is not None:
                self.requests.start(index, prompt, output, schedule)
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
        self.pending: dict[int, ReflectionSchedule | None] = {}
        self.active: set[int] = set()
        self.scheduled = torch.zeros(req_states.max_num_reqs, dtype=torch.bool, device=req_states.device)  # `active`

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
        states, device = self.states, self.states.device
        if self.batch is None:
            first = next(schedule for schedule in self.pending.values() if schedule is not None)
            markers = ReflectionTokens((), *ReflectionTokens.of(first.tokens).markers)
            options = {"ring": self.drafts + 2, "device": device, **room(states.max_num_reqs)}
            self.batch = ReflectionBatch(states.max_num_reqs, tokens=markers, **options)
        for slot, schedule in self.pending.items():
            self.batch.set_schedule([slot], schedule or self.batch.default)
        slots = torch.tensor(list(self.pending), device=device)
        self.scheduled[slots] = torch.tensor([s is not None for s in self.pending.values()], device=device)
        self.pending = {}
        # `.gpu` is asked for each time: a tensor of host memory has another one after every write.
        reflection_state_update_(
            self.batch.tables,
            states.all_token_ids.gpu[slots],
            slots,
            count=(states.total_len.gpu[slots].long() - 1).clamp(min=0),
            prompt=states.prompt_len.gpu[slots].long(),
        )

    def apply(self, logits: Tensor, ctx) -> Tensor:
        """`ctx.expanded_idx_mapping`, `ctx.input_ids`, `ctx.pos` (rows,): each row's slot, or a negative number, input
        token and position."""
        if self.batch is None:
            return logits
        slot, pos = ctx.expanded_idx_mapping.long().clamp(min=-1), ctx.pos.long()
        held = slot.clamp(min=0)
        tokens, known = ctx.input_ids.long().unsqueeze(1), self.scheduled[held]
        offset = pos - (self.states.total_len.gpu[held].long() - 1)
        for i in range(self.drafts + 1):
            mine = torch.where(known & (offset == i), slot, -1)
            seen = self.batch.tables.state[held, 0, 0].long()
            rollback = (seen - pos).clamp(min=0) if i == 0 else None
            self.batch.update(tokens, mine, rollback=rollback)
            self.batch.apply_(logits, mine)
        return logits


class Processor(BaseV2, BaseV1):  # pyright: ignore[reportGeneralTypeIssues]
    """What vLLM is given: each runner makes it with arguments of its own and gets the processor that it expects."""

    markers: tuple | None = None  # of the server's first schedule

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        """Raises ValueError where a request's schedule is none, or follows other markers than the first one did: vLLM
        answers the request with it."""
        schedule = schedule_of(sampling_params)
        if schedule is None:
            return
        markers = ReflectionTokens.of(schedule.tokens).markers
        if cls.markers is None:
            cls.markers = markers
        if any(markers) and markers != cls.markers:
            raise ValueError(f"all schedules of a server share their markers, here {cls.markers}, got {markers}")

    def __new__(cls, vllm_config, *arguments):
        return (ReflectionV1 if len(arguments) == 2 else ReflectionV2)(vllm_config, *arguments)
