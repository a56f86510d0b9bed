"""What the field's trainers compute, by name: each estimator a call of the ops with its conventions filled in.

All take `rewards` (N,), NaN for "no reward", and `groups`: rows per group, ids (N,), or a `GroupPlan`; all return
advantages in float32 (float64 for float64) without a gradient. Options and errors: `warpup.group_advantage`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from warpup._op import accumulator
from warpup.advantage._inputs import check_shape, fail
from warpup.advantage.gae import reward_to_go
from warpup.advantage.group_advantage import group_advantage
from warpup.advantage.group_plan import GroupPlan, group_plan
from warpup.advantage.masked_whiten import masked_whiten

Groups = int | Tensor | GroupPlan


def grpo(rewards: Tensor, groups: Groups, *, scale: str = "std", eps: float | None = None) -> Tensor:
    """`(r - mean) / (std + 1e-4)`, Bessel's std, a singleton gives 0. `scale`: the std of the group (`std`), of the
    whole batch (`batch_std`), or `none`. `eps` in the place of 1e-4, where there is a scale.

    Source: TRL 1.16 GRPOTrainer (`scale_rewards`); DeepSeekMath (arXiv 2402.03300).
    """
    return group_advantage(rewards, groups, scale=scale, eps=eps)


def grpo_verl(rewards: Tensor, groups: Groups, *, eps: float = 1e-6) -> Tensor:
    """`(r - mean) / (std + 1e-6)`, Bessel's std, a singleton gives its raw reward (verl has mean 0 and std 1 for it,
    and so divides by 1 + 1e-6). Equal rewards give 0, where rounding in verl's mean can leave +-1.

    Source: verl 0.9.1 compute_grpo_outcome_advantage.
    """
    return group_advantage(rewards, groups, eps=eps, singleton="raw")


def dr_grpo(rewards: Tensor, groups: Groups) -> Tensor:
    """`r - mean`: no division by the std, which favours questions that are nearly always or never solved.

    Source: Dr. GRPO (arXiv 2503.20783).
    """
    return group_advantage(rewards, groups, scale="none")


def rloo(rewards: Tensor, groups: Groups, *, singleton: str = "zero") -> Tensor:
    """`r - mean of the others`. A singleton gives 0 as in TRL 1.16 and verl's vector form; verl's loop has it `raw`.

    Source: RLOO (arXiv 2402.14740); verl 0.9.1 compute_rloo_outcome_advantage.
    """
    return group_advantage(rewards, groups, baseline="leave_one_out", scale="none", singleton=singleton)


def opo(rewards: Tensor, groups: Groups, *, lengths: Tensor, singleton: str = "raw") -> Tensor:
    """`r - sum(len r) / sum(len)`, the baseline of least variance if gradients grow with length (N,). A singleton gives
    its raw reward, as in verl.

    Source: OPO (arXiv 2505.23585); verl 0.9.1 compute_opo_outcome_advantage.
    """
    return group_advantage(
        rewards, groups, baseline="length_weighted", scale="none", lengths=lengths, singleton=singleton
    )


def pass_at_k(rewards: Tensor, groups: Groups, *, eps: float = 1e-6) -> Tensor:
    """`(best - second best) / (std + 1e-6)` for a group's best row, the first of equals; 0 for all others, and for
    groups of one (verl raises there).

    Source: verl 0.9.1 compute_grpo_passk_outcome_advantage (arXiv 2503.19595).
    """
    return group_advantage(rewards, groups, baseline="runner_up", eps=eps)


def gdpo(rewards: Tensor, groups: Groups, *, weights: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    """Several reward functions: each column of `rewards` (N, C) is normalized in its groups, they are summed with
    `weights` (C,) (None: 1), and the sum is normalized over the batch. A NaN entry adds nothing; a row of NaN gives 0
    and counts for nothing.

    Source: GDPO (arXiv 2601.05242); TRL 1.16 GRPOTrainer (`normalize_then_sum`). verl 0.9.1 whitens over tokens.
    """
    if rewards.dim() != 2:
        fail("gdpo", f"rewards must have shape (N, C), got {tuple(rewards.shape)}")
    n, columns = rewards.shape
    if weights is not None:
        check_shape("gdpo", "weights", weights, (columns,))
    plan = group_plan(groups) if isinstance(groups, Tensor) else groups
    each = [group_advantage(rewards[:, c], plan, eps=eps) for c in range(columns)]
    if not each:
        return rewards.new_zeros(n, dtype=accumulator(rewards))
    total = torch.zeros_like(each[0])
    for c, column in enumerate(each):
        total = total + (column if weights is None else column * weights[c].detach().to(column.dtype))
    total = total.masked_fill(rewards.detach().isnan().all(1), torch.nan)
    return group_advantage(total, max(n, 1), eps=eps)


def reinforce_pp(
    rewards: Tensor, groups: Groups | None = None, *, mask: Tensor, gamma: float = 1.0, carry: bool = True
) -> Tensor:
    """Discounted reward-to-go of each token, whitened over the batch's tokens: (B, T), 0 outside `mask` (B, T).

    `rewards` (B,) are given to each row's last token inside the mask, or are (B, T) already. `groups` is there for the
    common signature and must be None: the batch as a whole is the baseline. The sum is carried through observation
    tokens, outside the mask; `carry=False` ends it there, as verl did up to 0.7.

    Source: REINFORCE++ (arXiv 2501.03262); verl 0.9.1 compute_reinforce_plus_plus_outcome_advantage.
    """
    if groups is not None:
        fail(
            "reinforce_pp",
            "groups have no part in it, the whole batch is the baseline: leave them out, or take reinforce_pp_baseline",
        )
    if rewards.dim() == 1:
        if mask.dim() != 2 or mask.shape[0] != rewards.shape[0]:
            fail("reinforce_pp", f"mask must have shape ({rewards.shape[0]}, T), got {tuple(mask.shape)}")
        mask = (mask != 0) & ~rewards.detach().isnan().unsqueeze(1)
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        rewards = torch.where(last, rewards.detach().unsqueeze(1), 0.0)
    return masked_whiten(reward_to_go(rewards, mask, gamma, carry=carry), mask)


def reinforce_pp_baseline(rewards: Tensor, groups: Groups, *, mask: Tensor, singleton: str = "raw") -> Tensor:
    """`r - mean of the group`, given to each token and whitened over the batch's tokens: (N, T), 0 outside `mask` (N,
    T). A singleton keeps its raw reward, as in verl; rows without a reward (NaN) count for nothing.

    Source: verl 0.9.1 compute_reinforce_plus_plus_baseline_outcome_advantage.
    """
    advantages = group_advantage(rewards, groups, scale="none", singleton=singleton)
    if mask.dim() != 2 or mask.shape[0] != rewards.shape[0]:
        fail("reinforce_pp_baseline", f"mask must have shape ({rewards.shape[0]}, T), got {tuple(mask.shape)}")
    mask = (mask != 0) & ~rewards.detach().isnan().unsqueeze(1)
    return masked_whiten(advantages.unsqueeze(1).expand(mask.shape), mask)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (grpo, grpo_verl, dr_grpo, rloo, opo, pass_at_k, gdpo, reinforce_pp, reinforce_pp_baseline)
}
