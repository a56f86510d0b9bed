"""warpup's losses, advantages and output layer in verl (0.9), in its driver and its workers alike:

    VERL_USE_EXTERNAL_MODULES=warpup.integrations.verl python -m verl.trainer.main_ppo \\
        algorithm.adv_estimator=warpup_max_rl \\
        actor_rollout_ref.actor.policy_loss.loss_mode=warpup_dppo_tv \\
        actor_rollout_ref.model.use_fused_kernels=True

- `loss_mode=warpup_KIND` is a kind of `warpup.policy_loss` (`LOSSES` lists them). Division, KL and entropy stay verl's:
  `loss_agg_mode`, `kl_loss_*` and `entropy_coeff` mean what they always do.
- `adv_estimator=warpup_NAME` is an estimator of `warpup.advantage` (`ESTIMATORS`).
- With `use_fused_kernels=True` and the backend "torch", verl's default there, log-probs and entropies come from
  `linear_logprob`, so the logits are never whole. Other backends stay verl's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from warpup import advantage, clip_cov_tokens, kl_cov_tokens, linear_logprob
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.policy_loss import policy_loss_of

try:
    from verl.trainer.ppo.core_algos import (  # pyright: ignore[reportMissingImports]
        agg_loss,
        register_adv_est,
        register_policy_loss,
    )
    from verl.utils.experimental import torch_functional  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f"warpup.integrations.verl needs verl 0.9: {error}") from None

# ---- Losses ---------------------------------------------------------------------------------------------------------

# Not those of A-LoL, whose old_logp is a reference policy's: verl's is that of the policy which sampled.
LOSSES = tuple(kind for kind in POLICY_KINDS if not kind.startswith("a_lol"))


def options_of(kind: str, config) -> PolicyOptions:
    """A kind's options from verl's ActorConfig: `clip_ratio_low` and `_high` for every kind with a clip, `clip_ratio_c`
    for PPO's, `tau_pos` and `tau_neg`, `policy_loss.dro_beta`, `policy_loss.ppo_kl_coef`. What verl has no setting for
    is the kind's own. ValueError on a number that is out of range."""
    published, clip, dual_clip, constants = POLICY_KINDS[kind], None, None, None
    if published.clip is not None:
        low, high = (
            config.clip_ratio if bound is None else bound for bound in (config.clip_ratio_low, config.clip_ratio_high)
        )
        clip = (float("inf"), 1 + high) if published.bounds == "above" else (low, high)
    if kind in ("ppo", "grpo", "dapo", "dr_grpo"):
        dual_clip = config.get("clip_ratio_c", 3.0)
    if kind == "sapo":
        constants = (config.tau_pos, config.tau_neg)
    elif kind == "kl_cov":
        constants = (config.policy_loss.ppo_kl_coef,)
    elif kind == "dro":
        if not config.policy_loss.dro_beta:
            raise ValueError(
                "warpup_dro: set actor_rollout_ref.actor.policy_loss.dro_beta above 0; there is no default"
            )
        constants = (config.policy_loss.dro_beta,)
    return PolicyOptions(kind=kind, clip=clip, dual_clip=dual_clip, constants=constants, reduction="none")


def loss_of(kind: str) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """A kind of `warpup.policy_loss` as verl calls its policy losses."""

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """All tensors (B, T). Returns (loss, metrics under verl's names)."""
        options, given, mask = options_of(kind, config), config.policy_loss, response_mask != 0
        log_prob, old_log_prob, advantages = (t.contiguous() for t in (log_prob, old_log_prob, advantages))
        selected = None
        if kind == "clip_cov":
            bounds = (given.clip_cov_lb, given.clip_cov_ub)
            selected = clip_cov_tokens(
                log_prob,
                old_log_prob,
                advantages,
                mask,
                clip=options.clip_range(),
                share=given.clip_cov_ratio,
                bounds=bounds,
            )
        elif kind == "kl_cov":
            selected = kl_cov_tokens(log_prob, advantages, mask, share=given.kl_cov_ratio)
        losses, found = policy_loss_of(
            options, log_prob, old_log_prob, advantages, mask, weights=rollout_is_weights, selected=selected
        )
        moved = (old_log_prob - log_prob.detach()).masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
        metrics = {
            "actor/pg_clipfrac": found["clip_fraction_low"] + found["clip_fraction_high"],
            "actor/pg_clipfrac_lower": found["clip_fraction_dual"],
            "actor/ppo_kl": moved,
            "actor/ratio_max": found["ratio_max"],
        }
        total = agg_loss(losses, mask.to(losses.dtype), loss_agg_mode, **config.global_batch_info)
        return total, {name: value.item() for name, value in metrics.items()}

    loss.__name__ = f"warpup_{kind}"
    return loss


for _kind in LOSSES:
    register_policy_loss(f"warpup_{_kind}")(loss_of(_kind))

# ---- Advantages -----------------------------------------------------------------------------------------------------

Estimator = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # of rewards (B, T), mask, groups, config


def _deviation(name: str, config) -> None:
    if not config.get("norm_adv_by_std_in_grpo", True):
        raise ValueError(
            f"{name} divides by the deviation; without (norm_adv_by_std_in_grpo=False) it is warpup_dr_grpo"
        )


def _grpo(rewards, mask, groups, config):
    _deviation("warpup_grpo", config)
    return advantage.grpo(rewards.sum(1), groups)


def _grpo_verl(rewards, mask, groups, config):
    _deviation("warpup_grpo_verl", config)
    return advantage.grpo_verl(rewards.sum(1), groups)


ESTIMATORS: Mapping[str, Estimator] = {
    "grpo": _grpo,
    "grpo_verl": _grpo_verl,
    "dr_grpo": lambda rewards, mask, groups, config: advantage.dr_grpo(rewards.sum(1), groups),
    "rloo": lambda rewards, mask, groups, config: advantage.rloo(rewards.sum(1), groups),
    "opo": lambda rewards, mask, groups, config: advantage.opo(
        rewards.sum(1), groups, lengths=mask.sum(1).to(rewards.dtype)
    ),
    "pass_at_k": lambda rewards, mask, groups, config: advantage.pass_at_k(rewards.sum(1), groups),
    "max_rl": lambda rewards, mask, groups, config: advantage.max_rl(rewards.sum(1), groups),
    "reinforce_pp": lambda rewards, mask, groups, config: advantage.reinforce_pp(
        rewards, mask=mask, gamma=config.gamma
    ),
    "reinforce_pp_baseline": lambda rewards, mask, groups, config: advantage.reinforce_pp_baseline(
        rewards.sum(1), groups, mask=mask
    ),
}


def estimator_of(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """An estimator of `warpup.advantage` as verl calls its own."""

    def estimate(
        token_level_rewards: Tensor, response_mask: Tensor, index=None, config=None, **_others
    ) -> tuple[Tensor, Tensor]:
        """token_level_rewards, response_mask (B, T); index (B,), what tells a prompt's answers. Returns (advantages,
        returns), both the advantages of the tokens (B, T), as verl's estimators without a critic do."""
        if index is None:
            raise ValueError(f"warpup_{name} compares answers to one prompt and needs `uid` in the batch")
        known: dict[Any, int] = {}
        groups = torch.tensor([known.setdefault(uid, len(known)) for uid in index.tolist()])
        mask = response_mask != 0
        rewards = token_level_rewards.masked_fill(~mask, 0.0)
        found = ESTIMATORS[name](rewards, mask, groups.to(rewards.device), config)
        found = found.unsqueeze(1) * mask if found.dim() == 1 else found
        return found, found

    estimate.__name__ = f"warpup_{name}"
    return estimate


for _name in ESTIMATORS:
    register_adv_est(f"warpup_{_name}")(estimator_of(_name))

# ---- The output layer -----------------------------------------------------------------------------------------------


class FusedLinearForPPO(torch_functional.FusedLinearForPPO):
    """verl's own but for the backend "torch", which is `linear_logprob` here."""

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """hidden_states (..., H), vocab_weights (V, H), input_ids (...): log-probs and entropies (...), float32."""
        if self.impl_backend != "torch":
            return super().forward(hidden_states, vocab_weights, input_ids, temperature)
        logp, entropy = linear_logprob(
            hidden_states, vocab_weights, input_ids.long(), temperature=temperature, entropy=True
        )
        return logp, entropy


torch_functional.FusedLinearForPPO = FusedLinearForPPO  # verl looks it up at every forward pass
