"""Importance correction: the sampler's log-probs are not quite the trainer's own for the same weights.

A rollout in bfloat16, in other batches or by another engine rounds otherwise, so what was sampled comes from a policy a
little beside the one that is trained. The loss then compares with the trainer's own log-probs at the start of the step,
and each token, or each completion, weighs by what the trainer's policy gives it over what the sampler's gave it,
exp(own - sampled), within bounds (truncated importance sampling; masked where it is outside).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from warpup.policy.masks import rollout_weights

from ..model.heads import Head
from ..run import StageRun
from .policy_step import Experience, in_rows, score_tokens

Mode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class Correction:
    """How weights are made: of a token or of a whole sequence; outside of [floor, cap] held there, or 0."""

    mode: Mode
    cap: float = 3.0
    floor: float | None = None

    def weights(self, own: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
        """(N, L) of tokens, or (N,), from log-probs (N, L)."""
        level, _, mode = self.mode.partition("_")
        return rollout_weights(own, sampled, mask, level=level, mode=mode, cap=self.cap, floor=self.floor)

    def apply(
        self, run: StageRun, head: Head, experience: Experience, rows: Sequence[int], max_tokens: int
    ) -> tuple[Experience, dict[str, Any]]:
        """The experience with the trainer's own log-probs and with weights; and how far the sampler was from it.

        Numbers: `sampler_kl`, the KL of the trainer's policy from the sampler's, estimated by k3; of the ratios before
        any bound their mean, `correction_ratio`, and the share outside, `correction_outside`; `correction_ess`, the
        effective sample size (sum w)^2 / sum w^2 of the weights, over their number.
        """
        (own,) = score_tokens(run, head, experience, rows, max_tokens)
        mask = in_rows(experience, rows)
        sampled = experience.rolls.logp
        weights = self.weights(own, sampled, mask)
        ratios = replace(self, mode=self.mode.replace("mask", "truncate"), cap=math.exp(20), floor=None)
        counted = mask if weights.dim() == 2 else mask.any(1)
        ratio, w = ratios.weights(own, sampled, mask)[counted].double(), weights[counted].double()
        outside = (ratio > self.cap) | (ratio < (self.floor or 0.0))
        difference = (own - sampled)[mask].double()
        numbers = {
            "sampler_kl": (difference.exp() - difference - 1).mean(),
            "correction_ratio": ratio.mean(),
            "correction_outside": outside.double().mean(),
            "correction_ess": w.sum() ** 2 / (w.square().sum() * len(w)).clamp_min(torch.finfo(w.dtype).tiny),
        }
        return replace(experience, own_logp=own, weights=weights), {k: float(v) for k, v in numbers.items()}
