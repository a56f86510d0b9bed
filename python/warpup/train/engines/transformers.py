"""transformers' continuous batching: finished rows make room for waiting ones, in the trainer's process, on the model
that is trained.

It runs in a thread of its own, where the run's precision does not reach: products are made in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from warpup._evaluating import evaluating

from ..errors import TrainError
from ..model.tokens import Tokens
from ..sampling.rollouts import Rollouts
from .protocol import Completion, SamplingParams, rollouts_of

NAME = "transformers' continuous batching"


class ContinuousBatching:
    """`generate_batch` obeys what stands in its config, and not all of that: what it leaves out, such as stop strings,
    is refused before (`check_engine`)."""

    def __init__(self, model):
        self.model = model

    def generate(self, prompts: Sequence[Tokens], params: SamplingParams) -> Rollouts:
        config = GenerationConfig(
            do_sample=True, temperature=params.temperature, top_k=0, max_new_tokens=params.max_new_tokens,
            eos_token_id=list(params.eos), pad_token_id=params.pad,
        )  # fmt: skip
        requests = [list(prompt) for prompt in prompts for _ in range(params.copies)]
        batching = self._batching(requests, params)
        with evaluating(self.model):  # which generate_batch sets and leaves
            found = self.model.generate_batch(requests, generation_config=config, continuous_batching_config=batching)
        # Errors are no exceptions there: requests that failed say so, or are not among the results.
        failed = [one.error for one in found.values() if one.error is not None]
        if failed or len(found) != len(requests):
            why = failed[0] if failed else f"{len(found)} of {len(requests)} requests came back"
            raise TrainError(f"{NAME}: {why}; rlvr.engine = own samples without it")
        completions = [
            Completion(one.generated_tokens, one.logprobs, any(end in one.generated_tokens for end in params.eos))
            for one in found.values()
        ]
        return rollouts_of(completions, params, NAME)

    def _batching(self, requests: Sequence[Tokens], params: SamplingParams) -> ContinuousBatchingConfig:
        """Room for as many requests at once as `rows` says: left to itself it takes nine tenths of all memory. Without
        flash attention a mask of all tokens of a batch and of the cache is held as well, so both are kept small."""
        flash = self.model.device.type == "cuda" and self.model.dtype in (torch.bfloat16, torch.float16)
        page, most = (256, 8192) if flash else (32, 1024)  # tokens of a page of the cache, and of a batch
        at_once = min(len(requests), params.rows or len(requests))
        longest = max(map(len, requests)) + params.max_new_tokens
        [seed] = params.seeds(1)
        return ContinuousBatchingConfig(
            return_logprobs=True, seed=seed, auto_switch_to_flash=flash, page_size=page,
            num_blocks=at_once * -(-longest // page), max_requests_per_batch=at_once,
            max_batch_tokens=max(at_once, min(sum(map(len, requests)), most)),
        )  # fmt: skip

    def update_weights(self, model) -> None:
        self.model = model
