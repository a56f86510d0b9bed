"""Reflection schedules and thinking budgets in SGLang (0.5.20 to 0.5.23), as a custom logit processor.

    from warpup.integrations.sglang import ReflectionLogitProcessor
    client.generate(..., custom_logit_processor=ReflectionLogitProcessor.to_str(),
                    sampling_params={"custom_params": {"reflection": schedule.to_json(),
                                                       "thinking_budget": budget.to_json()}})   # both, or one

Start the server with `--enable-custom-logit-processor --disable-overlap-schedule`, warpup installed beside it. Under
the overlap schedule, SGLang's default, its token lists lag a token behind the logits, and drafts of speculative
decoding are not among them: both are refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpup.integrations._requests import Requests, asked_by

try:
    from sglang.srt.runtime_context import get_schedule  # pyright: ignore[reportMissingImports]
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f"warpup.integrations.sglang needs SGLang 0.5.20 or later: {error}") from None

SLOTS = 4096
# The engine makes the processor anew from its serialised class, so what is known of the requests is kept here.
_requests: dict[Any, Requests] = {}


class ReflectionLogitProcessor(CustomLogitProcessor):  # pyright: ignore[reportGeneralTypeIssues]
    """Row i of the logits is the next token of the request that SGLang puts as `__req__` among its parameters, with
    `rid`, `origin_input_ids` and `output_ids`; a request without "reflection" and "thinking_budget" is left alone."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        given = [params or {} for params in custom_param_list or ()]
        wishes = [asked_by(params, "custom_params") for params in given]
        asked = [params["__req__"] for params, wish in zip(given, wishes, strict=True) if any(wish)]
        if not asked:
            return logits
        self._check(asked)
        requests = _requests.setdefault(logits.device, Requests(SLOTS, device=logits.device))
        keys = []
        for row, (params, wish) in enumerate(zip(given, wishes, strict=True)):
            if not any(wish):
                keys.append(("none", row))
                continue
            request = params["__req__"]
            keys.append(request.rid)
            known = requests.known.get(request.rid)
            if known is None or known.output is not request.output_ids:  # new, or preempted and retracted
                self._make_room(requests, {other.rid for other in asked})
                requests.start(request.rid, request.origin_input_ids, request.output_ids, *wish)
        requests.catch_up()
        requests.apply_(logits, keys)
        return logits

    @staticmethod
    def _check(asked) -> None:
        if not get_schedule().disable_overlap_schedule:
            raise ValueError(
                "SGLang's overlap schedule samples a token before it knows the one before, so a schedule or a budget "
                "would lag by a token: start the server with --disable-overlap-schedule"
            )
        if len({request.rid for request in asked}) < len(asked):
            raise ValueError(
                "SGLang's speculative decoding does not tell a logit processor its drafts, so a schedule or a budget "
                "cannot follow them: start the server without --speculative-algorithm"
            )

    @staticmethod
    def _make_room(requests: Requests, here: set) -> None:
        if not requests.free:
            for key in [k for k in requests.known if k not in here]:
                requests.stop(key)
