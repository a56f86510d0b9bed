"""TRL's GRPOTrainer on warpup's operators: `from warpup.integrations.trl import GRPOTrainer` in place of TRL's own.

Sampling, rewards, data, distribution and logging stay TRL's, metric names included. It is made of two parts, for
trainers derived from GRPOTrainer elsewhere, to stand before it among their bases: `LogprobMixin` takes log-probs and
entropies from `token_logprob`, `GRPOLossMixin` the loss from `policy_loss` as well.

TRL's own log-probs never hold the logits of a whole batch; these hold them once, and write their gradient in their
place. Where that is too much memory, smaller batches help. Written against trl 1.16.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import trl
from torch import Tensor
from torch.nn import functional
from trl.trainer.utils import nanmax, nanmin

from warpup import token_logprob
from warpup.logprob.token_logprob import IGNORE_INDEX
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.policy_loss import policy_loss_of


class LossType(NamedTuple):
    """A loss of TRL's: the kind of `policy_loss`, what it is divided by, and options of its own from GRPOConfig."""

    kind: str
    normalizer: str  # a method's name below
    sequence_kind: str | None = None  # with importance_sampling_level="sequence"
    options: Callable[[Any], dict[str, Any]] = lambda args: {}


LOSS_TYPES = {
    "grpo": LossType("ppo", "sequences", "gspo"),
    "bnpo": LossType("ppo", "tokens", "gspo"),
    "dr_grpo": LossType("ppo", "longest", "gspo"),
    "dapo": LossType("ppo", "all_tokens", "gspo"),
    "cispo": LossType("cispo", "all_tokens"),
}
TRL_ARGUMENTS = inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters.keys()
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo")  # those with clip_ratio/* among their metrics


class LogprobMixin:
    """Log-probs and entropies of a GRPOTrainer from `token_logprob`."""

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # Images, MoE's auxiliary loss and a head in float32 of its own are TRL's business.
        if self.args.cast_lm_head_to_fp32 or any(value is not None and value is not False for value in others.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
        parts, size = [], batch_size or len(input_ids)
        for ids, attention in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            # One position more than the completion's: the last token of the prompt predicts its first. The last has no
            # target and is ignored in place, since a slice of the logits would cost a copy of their gradient.
            keep = logits_to_keep + 1
            with self.accelerator.autocast():
                logits = model(input_ids=ids, attention_mask=attention, logits_to_keep=keep, use_cache=False).logits
            targets = ids[:, -logits_to_keep:].masked_fill(attention[:, -logits_to_keep:] == 0, IGNORE_INDEX)
            targets = functional.pad(targets, (0, 1), value=IGNORE_INDEX)
            found = token_logprob(
                logits, targets, temperature=self.temperature, entropy=compute_entropy, inplace_backward=True
            )
            parts.append(found if compute_entropy else (found,))
        logp, *entropy = (torch.cat(part)[:, :-1] for part in zip(*parts, strict=True))
        return logp, entropy[0] if entropy else None, None


class GRPOLossMixin(LogprobMixin):
    """Log-probs and loss of a GRPOTrainer from `token_logprob` and `policy_loss`, for the loss types in LOSS_TYPES.

    Raises ValueError, when the trainer is made, on a loss type or an option that it does not cover. `LogprobMixin`
    alone covers them all: it leaves the loss to TRL.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._loss_options()

    def _loss_options(self) -> PolicyOptions:
        """The options of `policy_loss` but for its normalizer; ValueError on what is not covered."""
        elsewhere = "; LogprobMixin in place of GRPOLossMixin leaves the loss to TRL"
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type: expected one of {', '.join(LOSS_TYPES)}, got {self.loss_type!r}{elsewhere}")
        row = LOSS_TYPES[self.loss_type]
        kind = row.sequence_kind if self.importance_sampling_level == "sequence" else row.kind
        if kind not in POLICY_KINDS:
            level = f"importance_sampling_level {self.importance_sampling_level!r}"
            raise ValueError(f"loss_type {self.loss_type!r} with {level} is not covered{elsewhere}")
        if self._entropy_bonus_enabled:
            raise ValueError(f"entropy_coef and use_adaptive_entropy are not covered{elsewhere}")
        low = math.inf if POLICY_KINDS[kind].bounds == "above" else self.epsilon_low  # TRL's CISPO has no use for it
        try:
            return PolicyOptions(
                kind=kind,
                clip=(low, self.epsilon_high),
                delta=self.args.delta,
                kl_coef=self.beta,
                kl_corrected=bool(self.beta and self.args.use_bias_correction_kl),
                **row.options(self.args),
            )
        except ValueError as error:
            raise ValueError(f"{error}{elsewhere}") from None

    def _compute_loss(self, model, inputs) -> Tensor:
        completion_mask = inputs["completion_mask"]
        mask = completion_mask * inputs["tool_mask"] if "tool_mask" in inputs else completion_mask
        logp, entropy, aux_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs[name] for name in TRL_ARGUMENTS & inputs.keys()},
        )
        old_logp = inputs.get("old_per_token_logps")
        old_logp = logp.detach() if old_logp is None else old_logp
        given = inputs["advantages"]
        given = given.unsqueeze(1) if given.dim() == 1 else given  # (B, 1), or one a token
        advantages = given.expand_as(logp)
        ref_logp = inputs["ref_per_token_logps"] if self.beta else None

        training = self.model.training
        steps = self.current_gradient_accumulation_steps if training else 1  # of which each adds its share
        normalizer = getattr(self, f"_{LOSS_TYPES[self.loss_type].normalizer}")(mask, inputs, steps, training)
        loss, _ = policy_loss_of(
            replace(self._loss_options(), normalizer=normalizer),
            logp,
            old_logp,
            advantages * self._weights(logp, entropy, old_logp, advantages, mask, inputs),
            mask,
            ref_logp=ref_logp,
        )
        log = self._metrics["train" if training else "eval"]
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / steps
            log["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
        with torch.no_grad():
            self._log_loss(log, logp.detach(), entropy.detach(), old_logp, ref_logp, given, mask)
        return loss

    # What TRL divides each loss by, the accumulation's steps included.

    def _sequences(self, mask, inputs, steps, training):
        return "sequence", len(mask) * steps  # empty sequences count

    def _tokens(self, mask, inputs, steps, training):
        return "token", mask.sum().clamp(min=1) * steps

    def _longest(self, mask, inputs, steps, training):
        return "constant", len(mask) * self.max_completion_length * steps

    def _all_tokens(self, mask, inputs, steps, training):
        # Of the whole generation batch, of which one optimizer step takes a part.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        return "token", tokens * steps / self.args.steps_per_generation if training else tokens

    def _weights(self, logp, entropy, old_logp, advantages, mask, inputs) -> Tensor | float:
        """What TRL multiplies the policy term with, none below 0: so it can as well go into the advantages."""
        weights = 1.0
        if self.off_policy_mask_threshold is not None:
            weights = self.get_off_policy_mask(
                advantages=advantages,
                per_token_logps=logp,
                sampling_per_token_logps=inputs.get("sampling_per_token_logps", old_logp),
                mask=mask,
                off_policy_threshold=self.off_policy_mask_threshold,
            )
        if self.top_entropy_quantile < 1:
            weights = weights * self.get_high_entropy_mask(entropy, mask, 1 - self.top_entropy_quantile)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            weights = weights * inputs["importance_sampling_ratio"]
        return weights

    def _log_loss(self, log, logp, entropy, old_logp, ref_logp, advantages, mask) -> None:
        """TRL's metrics of the loss, under its names: means and extremes over sequences where both the ratios and the
        advantages are a sequence's, (B, 1), else over tokens."""
        log_ratio = logp - old_logp
        if self.importance_sampling_level == "sequence":
            log_ratio = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        ratio = log_ratio.exp()

        def mean(values):
            kept = torch.ones_like(values) if values.shape[1] == 1 else mask
            total, count = self.accelerator.reduce(torch.stack([(values * kept).sum(), kept.sum().float()]), "sum")
            return (total / count.clamp(min=1)).item()

        def each(values):
            values = values.float()
            rows = values.squeeze(1) if values.shape[1] == 1 else (values * mask).sum(-1) / mask.sum(-1)
            return self.accelerator.gather(rows)

        if ref_logp is not None:
            d = ref_logp - logp
            kl = d.exp() - d - 1
            log["kl"].append(mean(kl * ratio if self.args.use_bias_correction_kl else kl))
        log["entropy"].append(mean(entropy))
        if self.loss_type == "cispo":
            log["cispo_clip_ratio"].append(mean(((ratio > self.epsilon_high) & (advantages > 0)).float()))
        if self.loss_type in CLIPPED:
            if self.args.delta is not None:
                ratio = ratio.clamp(max=self.args.delta)
            low = (ratio < 1 - self.epsilon_low) & (advantages < 0)
            high = (ratio > 1 + self.epsilon_high) & (advantages > 0)
            for name, values in (("low", low), ("high", high), ("region", low | high)):
                log[f"clip_ratio/{name}_mean"].append(mean(values.float()))
            log["clip_ratio/low_min"].append(nanmin(each(low)).item())
            log["clip_ratio/high_max"].append(nanmax(each(high)).item())


class GRPOTrainer(GRPOLossMixin, trl.GRPOTrainer):
    """TRL's GRPOTrainer with warpup's log-probs and loss; arguments and GRPOConfig are TRL's."""
