"""Grouped advantages: rewards against the other rewards of their group. Over tokens and trees: `advantage_tokens`.

Contracts, numerics and bytes moved: csrc/advantage/*.h. Advantages are constants of the loss: nothing here has a
gradient, inputs that require one are taken as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op

_op.raw("group_advantage", "group_advantage_stats", "group_plan", "role_advantage", "masked_moments")
INTEGERS = (int, torch.SymInt)  # the latter under torch.compile with dynamic shapes


def fail(op: str, message: str):
    raise ValueError(f"{op}: {message}")


def widened(op: str, name: str, x: Tensor, other: Tensor | None = None) -> Tensor:
    """`x` in the type that is computed in: float64 where it or the other is float64, else float32."""
    if not x.is_floating_point():
        fail(op, f"{name} must be a floating tensor, got {x.dtype}")
    wide = x.dtype == torch.float64 or (other is not None and other.dtype == torch.float64)
    x = x.detach() if x.requires_grad else x
    return x.to(torch.float64 if wide else torch.float32)


def check_shape(op: str, name: str, x: Tensor, shape: tuple) -> None:
    if tuple(x.shape) != tuple(shape):
        fail(op, f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


# ---- group_plan -----------------------------------------------------------------------------------------------------


class GroupPlan(NamedTuple):
    """Rows sorted into groups: group g is `order[offsets[g]:offsets[g + 1]]`."""

    order: Tensor  # (N,) int64
    offsets: Tensor  # (N + 1,) int64; from the number of groups on, all entries are N


def reference_group_plan(ids: Tensor) -> GroupPlan:
    """`group_plan` with a library sort: what runs on a GPU."""
    n = ids.shape[0]
    ids, order = torch.sort(ids, stable=True)
    rows = torch.arange(n, device=ids.device)
    first = torch.cat([ids.new_ones(min(n, 1), dtype=torch.bool), ids[1:] != ids[:-1]])
    group = torch.where(first, first.cumsum(0) - 1, n)  # rows that begin no group write N where N belongs
    offsets = torch.full((n + 1,), n, device=ids.device).scatter(0, group, torch.where(first, rows, n))
    return GroupPlan(order, offsets)


@torch.library.register_fake("warpup::group_plan")
def _(ids):
    return ids.new_empty(ids.shape, dtype=torch.int64), ids.new_empty(ids.shape[0] + 1, dtype=torch.int64)


def group_plan(ids: Tensor) -> GroupPlan:
    """Sort rows into groups by id, once for several calls of `group_advantage`.

    Args:
        ids: (N,) int64 or int32, any values in any order: negative, sparse, huge. They are compared, never an index.

    Returns:
        `order` (N,): rows by ascending id, those of one id in their former order; and `offsets` (N + 1,) into it,
        padded with N, since the number of groups is not known without waiting for the GPU.

    Raises:
        ValueError: `ids` is not one-dimensional or not an integer tensor.
    """
    if ids.dim() != 1 or ids.dtype not in (torch.int64, torch.int32):
        fail("group_plan", f"ids must be a (N,) int64 or int32 tensor, got {tuple(ids.shape)} {ids.dtype}")
    if ids.is_cpu:
        return GroupPlan(*torch.ops.warpup.group_plan(ids.contiguous()))  # has a CPU twin only
    return reference_group_plan(ids)


# ---- group_advantage ------------------------------------------------------------------------------------------------


class GroupStats(NamedTuple):
    """Statistics of each group, (G,) tensors: with `groups` an id tensor G = N, by ascending id, the rest empty
    groups."""

    count: Tensor  # int64, rewards that are not NaN
    mean: Tensor  # of these; 0 where there are none
    std: Tensor  # of these, with `correction`; 0 where there are fewer than two
    mean_abs: Tensor  # mean |advantage| of these
    zero_variance: Tensor  # bool: there are rewards, and all are equal

    @property
    def zero_variance_share(self) -> Tensor:
        """Share of the groups with rewards whose rewards are all equal, a scalar tensor."""
        return self.zero_variance.sum() / (self.count > 0).sum().clamp(min=1)


def reference_group_advantage(
    rewards, groups=None, *, offsets=None, baseline="mean", scale="std", eps=1e-4, correction=1, singleton="zero",
    lengths=None, stats=False,
):  # fmt: skip
    """`group_advantage` as a loop over groups in plain torch: the oracle of the tests (in float64)."""
    r = rewards.detach().to(torch.float64 if rewards.dtype == torch.float64 else torch.float32)
    n_rows, out, kept = len(r), torch.zeros_like(r), []
    if isinstance(groups, int):
        members = list(torch.arange(n_rows).view(-1, groups))
    elif groups is None:
        members = [torch.arange(a, b) for a, b in pairwise(offsets.tolist())]
    else:
        plan = groups if isinstance(groups, GroupPlan) else reference_group_plan(groups)
        bounds = plan.offsets.tolist()
        members = [plan.order[a:b] for a, b in pairwise(bounds)]
    valid = r[~r.isnan()]
    for rows in (m.to(r.device) for m in members):
        rows = rows[~r[rows].isnan()]
        x, n = r[rows], len(rows)
        equal = n > 0 and bool(x.max() == x.min())
        std = x.std(correction=correction) if n > 1 and not equal else x.new_zeros(())
        if n == 1:
            out[rows] = x if singleton == "raw" else 0 * x
        elif n > 1:
            others = x.expand(n, n)[~torch.eye(n, dtype=torch.bool, device=x.device)].view(n, n - 1)
            c = {"mean": x - x.mean(), "leave_one_out": x - others.mean(1), "none": x}.get(baseline)
            if baseline == "length_weighted":
                w = lengths.to(r.dtype)[rows]
                c = x - ((w * x).sum() / w.sum() if w.sum() > 0 else x.mean())
            if baseline == "runner_up":
                c = torch.zeros_like(x)
                c[x.argmax()] = x.max() - x.topk(2).values[1]
            if equal and baseline != "none":
                c = torch.zeros_like(x)
            if scale == "std":
                c = torch.zeros_like(x) if equal else c / (std + eps)
            if scale == "batch_std":
                c = torch.zeros_like(x) if valid.max() == valid.min() else c / (valid.std(correction=correction) + eps)
            if scale == "leave_one_out_std" and n > 2:
                s, constant = others.std(1, correction=correction), others.amax(1) == others.amin(1)
                c = torch.where(constant, c, c / (s + eps))
            out[rows] = c
        mean = (x[0] if equal else x.mean()) if n else x.new_zeros(())
        kept.append((torch.tensor(n), mean, std, out[rows].abs().mean() if n else x.new_zeros(()), torch.tensor(equal)))
    if not stats:
        return out
    columns = zip(*kept, strict=True) if kept else ([],) * 5
    dtypes = (torch.int64, r.dtype, r.dtype, r.dtype, torch.bool)
    return out, GroupStats(*(torch.tensor(c, dtype=t, device=r.device) for c, t in zip(columns, dtypes, strict=True)))


@torch.library.register_fake("warpup::group_advantage")
def _(rewards, *_):
    return rewards.new_empty(rewards.shape)


@torch.library.register_fake("warpup::group_advantage_stats")
def _(rewards, offsets, order, lengths, batch, group_size, *_):
    groups = rewards.shape[0] // group_size if offsets is None else offsets.shape[0] - 1
    dtypes = (torch.int64, rewards.dtype, rewards.dtype, rewards.dtype, torch.uint8)
    return rewards.new_empty(rewards.shape), *(rewards.new_empty(groups, dtype=t) for t in dtypes)


@torch.library.register_fake("warpup::masked_moments")
def _(x, mask, skip_nan, correction):
    return x.new_empty(4, dtype=torch.float64)


def group_advantage(
    rewards: Tensor,
    groups: int | Tensor | GroupPlan | None = None,
    *,
    offsets: Tensor | None = None,
    baseline: str = "mean",
    scale: str = "std",
    eps: float = 1e-4,
    correction: int = 1,
    singleton: str = "zero",
    lengths: Tensor | None = None,
    stats: bool = False,
) -> Tensor | tuple[Tensor, GroupStats]:
    """Advantage of each reward over the rewards of its group: `(r - baseline) / (scale + eps)`.

    The defaults are GRPO as in TRL; `warpup.advantage` names what other trainers compute. Statistics take two passes; a
    group of equal rewards (max == min) gets exactly 0 at any magnitude, where rounding noise over `eps` would not be.
    Deterministic, no wait for the GPU, one kernel launch (two more for `batch_std`).

    Args:
        rewards: (N,), any floating dtype, any stride. NaN means "no reward": left out of all statistics, advantage 0.
        groups: rows in each group, contiguous; or (N,) int64 or int32 ids in any order; or a `GroupPlan` made of them.
        offsets: instead of `groups`, (G + 1,) int64: group g is rows offsets[g] to offsets[g + 1], empty ones allowed.
        baseline: `mean`; `leave_one_out`, the mean of the others, as n / (n - 1) (r - mean); `length_weighted`,
            sum(len r) / sum(len); `runner_up`, best minus second best for the best row (the first of equals), 0 for the
            others; or `none`.
        scale: `std` of the group; `batch_std` of all rewards; `leave_one_out_std` of the others in the group (undivided
            where they are equal, or only one); or `none`, where `eps` is not added either.
        eps: added to the scale.
        correction: 1 divides squared deviations by n - 1 (Bessel), 0 by n.
        singleton: a group's only reward gives `zero`, or its `raw` value.
        lengths: (N,) any number dtype, for `length_weighted`. Where a group's sum to 0, the mean is taken.
        stats: also return the `GroupStats`.

    Returns:
        Advantages (N,) in float32 (float64 for float64 rewards), or the pair with the statistics. They carry no
        gradient.

    Raises:
        ValueError: not exactly one of `groups` and `offsets`, N not a multiple of the group size, a shape or dtype that
            does not fit, an unknown name, `lengths` missing, (CPU only) offsets that descend or do not span the
            rewards. On CUDA, where checking would synchronise, such offsets are clamped.

    Source: TRL GRPOTrainer, verl core_algos, RLOO (arXiv 2402.14740), OPO (arXiv 2505.23585), Dr. GRPO (arXiv
    2503.20783).
    """
    op = "group_advantage"
    if rewards.dim() != 1:
        fail(op, f"rewards must have shape (N,), got {tuple(rewards.shape)}")
    rewards = widened(op, "rewards", rewards)
    if (groups is None) == (offsets is None):
        fail(op, f"give either groups or offsets, got {'neither' if groups is None else 'both'}")
    n, size, order = rewards.shape[0], 0, None
    if isinstance(groups, Tensor):
        if groups.dim() != 1 or groups.shape[0] != n or groups.dtype not in (torch.int64, torch.int32):
            fail(op, f"groups must be ({n},) int64 or int32 ids, got {tuple(groups.shape)} {groups.dtype}")
        order, offsets = group_plan(groups)
    elif isinstance(groups, GroupPlan):
        order, offsets = groups
    elif isinstance(groups, INTEGERS) and not isinstance(groups, bool):
        size = groups
        if size < 1 or n % size != 0:
            fail(op, f"groups must be at least 1 and divide the number of rewards, got {size} for {n} rewards")
    elif groups is not None:
        fail(op, f"groups must be an int, an id tensor or a GroupPlan, got {type(groups).__name__}")
    elif not isinstance(offsets, Tensor) or offsets.dim() != 1 or offsets.dtype not in (torch.int64, torch.int32):
        got = f"{tuple(offsets.shape)} {offsets.dtype}" if isinstance(offsets, Tensor) else type(offsets).__name__
        fail(op, f"offsets must be a (G + 1,) int64 tensor, got {got}")
    else:
        offsets = offsets.long().contiguous()
    if baseline != "length_weighted":
        lengths = None
    elif lengths is None:
        fail(op, "lengths (N,) are needed for baseline length_weighted, got None")
    else:
        check_shape(op, "lengths", lengths, (n,))
        lengths = lengths.detach().to(rewards.dtype)
    batch = _op.ops.masked_moments(rewards.contiguous(), None, True, correction) if scale == "batch_std" else None
    arguments = (rewards, offsets, order, lengths, batch, size, baseline, scale, eps, correction, singleton)
    if not stats:
        return _op.ops.group_advantage(*arguments)
    advantages, *columns, zero_variance = _op.ops.group_advantage_stats(*arguments)
    return advantages, GroupStats(*columns, zero_variance.view(torch.bool))


# ---- role_advantage -------------------------------------------------------------------------------------------------


def reference_role_advantage(rewards, roles, baseline_state, decay=0.95):
    """`role_advantage` as a loop in plain torch."""
    state = baseline_state.to(rewards.dtype).clone()
    advantages = torch.zeros_like(rewards)
    for i, role in enumerate(roles.tolist()):
        if not rewards[i].isnan():
            advantages[i] = rewards[i] - state[role]
            state[role] = decay * state[role] + (1 - decay) * rewards[i]
    return advantages, state


@torch.library.register_fake("warpup::role_advantage")
def _(rewards, roles, state, decay):
    return rewards.new_empty(rewards.shape), rewards.new_empty(state.shape)


def role_advantage(
    rewards: Tensor, roles: Tensor, baseline_state: Tensor, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantage over a running mean of each role's rewards; rows count in their order.

    For each row i in turn: `A[i] = r[i] - b[role]`, then `b[role] <- decay b[role] + (1 - decay) r[i]`.

    Args:
        rewards: (N,), any floating dtype. NaN means "no reward": advantage 0, the baseline stays.
        roles: (N,) int64 in [0, K). For a baseline per game and role, number the pairs: `game * roles_per_game + role`.
        baseline_state: (K,) floating, the baselines before these rows (begin with zeros). It is not changed.
        decay: in [0, 1].

    Returns:
        Advantages (N,) and the baselines after these rows (K,), in float32 (float64 if an input is). No gradient.

    Raises:
        ValueError: a shape or dtype does not fit, decay outside [0, 1], (CPU only) a role outside [0, K). On CUDA,
            where checking would synchronise, such a row gives NaN and changes no baseline.

    Source: role-conditioned advantage estimation, SPIRAL (arXiv 2506.24119); its released code keys by player only.
    """
    op = "role_advantage"
    if rewards.dim() != 1:
        fail(op, f"rewards must have shape (N,), got {tuple(rewards.shape)}")
    check_shape(op, "roles", roles, rewards.shape)
    if roles.dtype not in (torch.int64, torch.int32):
        fail(op, f"roles must be int64, got {roles.dtype}")
    wide = widened(op, "rewards", rewards, baseline_state).contiguous()
    state = widened(op, "baseline_state", baseline_state, rewards).contiguous()
    return _op.ops.role_advantage(wide, roles.long().contiguous(), state, decay)
