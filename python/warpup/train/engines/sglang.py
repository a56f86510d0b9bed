"""A server of SGLang (0.5.23 and later): its native `/generate`, and weights from a folder.

    python -m sglang.launch_server --model-path MODEL

With `--enable-return-routed-experts` it tells which experts a mixture took, which are replayed; which tokens top-k,
top-p and min-p have left it tells where it is asked. Seeds count where it runs with `--enable-deterministic-inference`.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..errors import TrainError
from ..model.tokens import Tokens
from .protocol import Completion, SamplingParams, rollouts_of
from .server import ServerEngine


class SGLang(ServerEngine):
    name = "SGLang"
    start = "python -m sglang.launch_server --model-path MODEL"

    experts_of_a_token: int | None = None  # where the server tells them

    def check(self, model, params: SamplingParams, longest: int) -> None:
        info = self.ask("/server_info", post=False)
        limit = info.get("context_length")
        if limit and longest > limit:
            raise TrainError(
                f"rlvr.max_new_tokens: the longest prompt and its completion have {longest} tokens, {self.url} takes "
                f"{limit}; start it with --context-length {longest}"
            )
        if info.get("enable_return_routed_experts"):
            self.experts_of_a_token = model.config.get_text_config().num_experts_per_tok
        few = SamplingParams(params.eos, params.pad, 1, params.generator, filters=params.filters)
        rollouts_of(self.complete([params.pad], few, 0), few, self.name)

    def complete(self, prompt: Tokens, params: SamplingParams, seed: int) -> list[Completion]:
        sampling = {
            "max_new_tokens": params.max_new_tokens, "temperature": params.temperature,
            "top_p": params.filters.get("top_p", 1.0), "top_k": params.filters.get("top_k", 0) or -1,
            "min_p": params.filters.get("min_p", 0.0), "stop_token_ids": list(params.eos),
            "stop": list(params.stop.texts) if params.stop else None, "no_stop_trim": True,
        }  # fmt: skip
        body = {
            "input_ids": [list(prompt)] * params.copies,  # a seed is a request's, so `n` copies of one would be alike
            "sampling_params": [sampling | {"sampling_seed": seed + copy} for copy in range(params.copies)],
            "return_logprob": True,
            "return_sampling_mask": params.filtered,
            "return_routed_experts": self.experts_of_a_token is not None,
        }
        return [self._read(one, len(prompt)) for one in self.ask("/generate", body)]

    def _read(self, one: dict[str, Any], prompt: int) -> Completion:
        meta, tokens = one["meta_info"], one["output_ids"]
        ended = meta["finish_reason"]
        if ended["type"] not in ("stop", "length"):
            raise TrainError(f"{self.name}: a completion has ended by {ended['type']!r}: {ended.get('message', '')}")
        # Under a filter, those over what it has left are given apart.
        kept = meta.get("output_token_sampling_mask")
        logp = (
            [p for p, *_ in meta["output_token_logprobs"]] if kept is None else meta["output_token_sampling_logprobs"]
        )
        experts = None
        if self.experts_of_a_token is not None:
            experts = decode_experts(meta["routed_experts"], prompt + len(tokens) - 1, self.experts_of_a_token)
        return Completion(tokens, logp, ended["type"] == "stop", kept, experts)

    def transfer(self, model) -> None:
        first = ranks.rank() == 0
        if first:  # "retract" leaves requests where they are, without the cache of the old weights
            self.ask("/pause_generation", {"mode": "retract"})
        try:
            path = self.leave(model)
            if first:
                self.ask("/update_weights_from_disk", {"model_path": path, "load_format": "auto", "flush_cache": True})
        finally:
            if first:
                self.ask("/continue_generation", {})


def decode_experts(text: str, tokens: int, k: int) -> Tensor:
    """(tokens, L, k) int32 from base64 of its bytes."""
    array = np.frombuffer(base64.b64decode(text), dtype=np.int32)
    return torch.from_numpy(array.copy()).view(tokens, -1, k)
