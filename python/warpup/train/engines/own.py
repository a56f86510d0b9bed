"""The trainer's own sampler: `rollout`, in the trainer's process, on the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.tokens import Tokens
from ..sampling.rollouts import Rollouts, rollout
from .protocol import SamplingParams


class OwnSampler:
    """Draws the same completions whatever they are batched with, and knows schedules, budgets and penalties."""

    def __init__(self, model):
        self.model = model

    def generate(self, prompts: Sequence[Tokens], params: SamplingParams) -> Rollouts:
        return rollout(
            self.model, prompts, eos=params.eos, pad=params.pad, max_new_tokens=params.max_new_tokens,
            copies=params.copies, temperature=params.temperature, logit_bias=params.logit_bias,
            decoding=params.decoding, rows=params.rows, generator=params.generator, stop=params.stop, record=True,
            **params.filters,
        )  # fmt: skip

    def update_weights(self, model) -> None:
        self.model = model
