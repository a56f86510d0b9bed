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


def max_rl(rewards: Tensor, groups: Groups) -> Tensor:
    """`(r - mean) / mean`, the gradient of maximum likelihood as far as a group of this size can tell: a question that
    is rarely solved weighs more. For rewards of at least 0; a group whose mean is not above 0 gives 0, a singleton too.

    Source: MaxRL (arXiv 2602.02710); prime-rl max_rl.
    """
    plan = group_plan(groups) if isinstance(groups, Tensor) else groups
    centered, stats = group_advantage(rewards, plan, scale="none", stats=True)
    mean = stats.mean[_group_of(plan, rewards)]
    return torch.where(mean > 0, centered / mean.where(mean > 0, 1.0), 0.0)


def hierarchical_grpo(
    rewards: Tensor, groups: Groups, *, episodes: Tensor, roles: Tensor, within: tuple[int, ...] = ()
) -> Tensor:
    """`r - mean`, each row against those of its own role: in its own episode for a role of `within`, else in its whole
    group. So solvers meet the solvers of the same problem, and who proposed it the other proposers.

    episodes, roles (N,) integers: an episode's number within its group, and who has acted. One look at the numbers
    (torch.unique) waits for a GPU.

    Source: prime-rl hierarchical_grpo (`episode_agents`).
    """
    for name, value in (("episodes", episodes), ("roles", roles)):
        check_shape("hierarchical_grpo", name, value, tuple(rewards.shape))
        if value.is_floating_point():
            fail("hierarchical_grpo", f"{name} must be integers, got {value.dtype}")
    plan = group_plan(groups) if isinstance(groups, Tensor) else groups
    alone = torch.isin(roles, torch.tensor(within, dtype=roles.dtype, device=roles.device))
    peers = torch.stack([_group_of(plan, rewards), roles.long(), alone.long(), episodes.long() * alone])
    return dr_grpo(rewards, peers.unique(dim=1, return_inverse=True)[1])


def optimal_token_baseline(
    rewards: Tensor,
    groups: Groups,
    *,
    mask: Tensor,
    logp: Tensor,
    sum_p2: Tensor,
    weights: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Each token's reward-to-go minus a baseline of its place: the mean of its group's at the same place, weighed by
    how much variance of the gradient each row has gathered so far, W = the sum up to there of 1 - 2 p + sum p^2.

    A place is counted in tokens of the mask. Where a row is the only one of its group that goes so far, its baseline
    is 0; so a singleton keeps what it earned. A row without a reward (NaN) counts for nothing.

    Args:
        rewards: (N,), given to each row's last token, or (N, T), a token's own.
        mask, logp, sum_p2: (N, T): the tokens that count, their log-probs, and the sum of the squared
            probabilities of all tokens there (`token_logprob(..., sum_p2=True)`).
        weights: (N, T), importance weights of tokens; their squares multiply what a token adds to W.
        eps: added to the sum of W.

    Returns:
        (N, T), float32 (float64 for float64 rewards), 0 outside the mask.

    Source: verl 0.9.1 optimal_token_baseline and tir_optimal_token_baseline, which are one where the mask has no holes.
    """
    op = "optimal_token_baseline"
    if mask.dim() != 2 or rewards.dim() not in (1, 2) or rewards.shape[0] != mask.shape[0]:
        fail(op, f"rewards must have shape (N,) or (N, T), mask (N, T), got {rewards.shape} and {mask.shape}")
    for name, value in (("logp", logp), ("sum_p2", sum_p2), ("weights", weights)):
        if value is not None:
            check_shape(op, name, value, tuple(mask.shape))
    if rewards.dim() == 2:
        check_shape(op, "rewards", rewards, tuple(mask.shape))
    plan = group_plan(groups) if isinstance(groups, Tensor) else groups
    group = _group_of(plan, rewards[:, 0] if rewards.dim() == 2 else rewards)
    unknown = rewards.isnan() & (mask != 0) if rewards.dim() == 2 else rewards.isnan().unsqueeze(1)
    on = (mask != 0) & ~unknown.any(1, keepdim=True)

    # Tokens of the mask to the left, so that a column is a place.
    order = (~on).sort(dim=1, stable=True).indices
    placed = on.gather(1, order)
    energy = 1 - 2 * logp.detach().double().exp() + sum_p2.detach().double()
    if weights is not None:
        energy = energy * weights.detach().double() ** 2
    reached = energy.masked_fill(~on, 0.0).gather(1, order).cumsum(1).masked_fill(~placed, 0.0)
    if rewards.dim() == 2:
        returns = rewards.detach().double().masked_fill(~on, 0.0).gather(1, order).flip(1).cumsum(1).flip(1)
    else:
        returns = rewards.detach().double().nan_to_num(nan=0.0).unsqueeze(1).expand(mask.shape)

    total, weight, rows = (
        x.new_zeros(x.shape).index_add(0, group, x)[group] for x in (returns * reached, reached, placed.double())
    )
    baseline = torch.where(rows > 1, total / (weight + eps), 0.0)
    advantages = (returns - baseline).masked_fill(~placed, 0.0)
    return torch.zeros_like(advantages).scatter(1, order, advantages).to(accumulator(rewards))


def _group_of(groups: int | GroupPlan, rewards: Tensor) -> Tensor:
    """(N,): the number of each row's group."""
    n = rewards.shape[0]
    if isinstance(groups, int):
        return torch.arange(n, device=rewards.device) // groups
    of_sorted = torch.repeat_interleave(torch.arange(n, device=rewards.device), groups.offsets.diff(), output_size=n)
    return torch.empty_like(of_sorted).scatter(0, groups.order, of_sorted)


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
    f.__name__: f
    for f in (grpo, grpo_verl, dr_grpo, rloo, opo, pass_at_k, max_rl, gdpo, reinforce_pp, reinforce_pp_baseline)
}
