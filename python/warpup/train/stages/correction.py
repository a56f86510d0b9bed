"""Importance correction: the sampler's log-probs are not quite the trainer's own for the same weights.

A rollout in bfloat16, in other batches or by another engine rounds otherwise, so what was sampled comes from a policy a
little beside the one that is trained. The loss then compares with the trainer's own log-probs at the start of the step,
and each token, or each completion, weighs by what the trainer's policy gives it over what the sampler's gave it,
exp(own - sampled), within bounds (truncated importance sampling; masked where it is outside). Tokens or completions on
which the two are too far apart can be left out as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from warpup.policy.masks import rollout_mask, rollout_weights
from warpup.policy.rows import per_token

from ..model.heads import Head
from ..run import StageRun
from ..settings import CorrectionMode
from .policy_step import Experience, in_rows, score_tokens


@dataclass(frozen=True)
class Correction:
    """mode: how weights are made, of a token or of a whole sequence; outside of [floor, cap] held there, or 0; None:
    without weights. mask: options of `warpup.rollout_mask`, which says what is left out; None: nothing is."""

    mode: CorrectionMode | None
    cap: float = 3.0
    floor: float | None = None
    mask: Mapping[str, Any] | None = None

    def weights(self, own: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
        """(N, L) of tokens, or (N,), from log-probs (N, L)."""
        assert self.mode is not None
        level, _, mode = self.mode.partition("_")
        return rollout_weights(own, sampled, mask, level=level, mode=mode, cap=self.cap, floor=self.floor)

    def apply(
        self, run: StageRun, head: Head, experience: Experience, rows: Sequence[int], max_tokens: int
    ) -> tuple[Experience, dict[str, Any]]:
        """The experience with the trainer's own log-probs and with weights; and how far the sampler was from it.

        Numbers: `sampler_kl`, the KL of the trainer's policy from the sampler's, estimated by k3; those of `measured`;
        `rollout_masked`, the share of the tokens that the mask leaves out.
        """
        (own,) = score_tokens(run, head, experience, rows, max_tokens)
        on, sampled, weights = in_rows(experience, rows), experience.rolls.logp, None
        difference = (own - sampled)[on].double()
        numbers = {"sampler_kl": (difference.exp() - difference - 1).mean()}
        if self.mode:
            weights = self.weights(own, sampled, on)
            numbers |= self.measured(weights, own, sampled, on)
        if self.mask:
            kept = per_token(rollout_mask(own, sampled, on, **self.mask), own)
            weights = kept.to(own) if weights is None else per_token(weights, own) * kept
            numbers["rollout_masked"] = (~kept[on]).double().mean()
        return replace(experience, own_logp=own, weights=weights), {k: float(v) for k, v in numbers.items()}

    def measured(self, weights: Tensor, own: Tensor, sampled: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of the ratios before any bound their mean, `correction_ratio`, and the share outside, `correction_outside`;
        `correction_ess`, the effective sample size (sum w)^2 / sum w^2 of the weights, over their number."""
        assert self.mode is not None
        ratios = Correction(cast(CorrectionMode, self.mode.replace("mask", "truncate")), cap=math.exp(20))
        counted = mask if weights.dim() == 2 else mask.any(1)
        ratio, w = ratios.weights(own, sampled, mask)[counted].double(), weights[counted].double()
        outside = (ratio > self.cap) | (ratio < (self.floor or 0.0))
        return {
            "correction_ratio": ratio.mean(),
            "correction_outside": outside.double().mean(),
            "correction_ess": w.sum() ** 2 / (w.square().sum() * len(w)).clamp_min(torch.finfo(w.dtype).tiny),
        }
