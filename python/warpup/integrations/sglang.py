"""Reflection schedules in SGLang, as a custom logit processor.

    from warpup.integrations.sglang import ReflectionLogitProcessor
    client.generate(..., custom_logit_processor=ReflectionLogitProcessor.to_str(),
                    sampling_params={"custom_params": {"reflection": schedule.to_json()}})

Start the server with `--enable-custom-logit-processor`, warpup installed beside it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpup.integrations._requests import Requests, schedule_from

try:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor as Base  # pyright: ignore[reportMissingImports]
except ImportError:  # without SGLang the adapter still runs on its protocol
    Base = object

SLOTS = 4096
# The engine makes the processor anew from its serialised class, so what is known of the requests is kept here.
_requests: dict[Any, Requests] = {}


class ReflectionLogitProcessor(Base):  # pyright: ignore[reportGeneralTypeIssues]
    """Row i of the logits is the next token of the request that SGLang puts as `__req__` among its parameters, with
    `rid`, `origin_input_ids` and `output_ids`; a request without "reflection" is left alone."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        requests = _requests.setdefault(logits.device, Requests(SLOTS, device=logits.device))
        keys = []
        for row, params in enumerate(custom_param_list or ()):
            schedule, request = schedule_from((params or {}).get("reflection")), (params or {}).get("__req__")
            if schedule is None:
                keys.append(("none", row))
                continue
            if request is None:
                raise ValueError("this SGLang does not hand the request to its processors (custom_params['__req__'])")
            keys.append(request.rid)
            known = requests.known.get(request.rid)
            if known is None or known[2] is not request.output_ids:  # new, or preempted and retracted
                self._make_room(requests, custom_param_list)
                requests.start(request.rid, request.origin_input_ids, request.output_ids, schedule)
        if requests.batch is not None:
            requests.catch_up()
            requests.apply_(logits, keys)
        return logits

    @staticmethod
    def _make_room(requests: Requests, params) -> None:
        if not requests.free:
            here = {p["__req__"].rid for p in params if p and "__req__" in p}
            for key in [k for k in requests.known if k not in here]:
                requests.stop(key)
