"""`group_advantage`: rewards against the other rewards of their group.

Contract, numerics and bytes moved: csrc/advantage/group_advantage.h.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import check_shape, eps_of, fail, widened
from warpup.advantage.group_plan import GroupPlan, group_plan, reference_group_plan
from warpup.advantage.masked_whiten import masked_moments

INTEGERS = (int, torch.SymInt)  # the latter under torch.compile with dynamic shapes


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
    rewards: Tensor, groups: int | Tensor | GroupPlan | None = None, *, offsets: Tensor | None = None, baseline="mean",
    scale="std", eps: float | None = None, correction: int | None = None, singleton="zero",
    lengths: Tensor | None = None, stats=False,
):  # fmt: skip
    """`group_advantage` as a loop over groups in plain torch: the oracle of the tests (in float64)."""
    eps, correction = 1e-4 if eps is None else eps, 1 if correction is None else correction
    r = rewards.detach().to(torch.float64 if rewards.dtype == torch.float64 else torch.float32)
    n_rows, out, kept = len(r), torch.zeros_like(r), []
    if isinstance(groups, int):
        members = list(torch.arange(n_rows).view(-1, groups))
    elif groups is not None:
        plan = reference_group_plan(groups) if isinstance(groups, Tensor) else groups
        members = [plan.order[a:b] for a, b in pairwise(plan.offsets.tolist())]
    else:
        assert offsets is not None
        members = [torch.arange(a, b) for a, b in pairwise(offsets.tolist())]
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
            c = {"mean": x - x.mean(), "leave_one_out": x - others.mean(1)}.get(baseline, x)
            if baseline == "length_weighted" and lengths is not None:
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


@_op.fake("group_advantage")
def _(rewards, *_):
    return rewards.new_empty(rewards.shape)


@_op.fake("group_advantage_stats")
def _(rewards, group_size, offsets, *_):
    groups = rewards.shape[0] // group_size if offsets is None else offsets.shape[0] - 1
    dtypes = (torch.int64, rewards.dtype, rewards.dtype, rewards.dtype, torch.uint8)
    return rewards.new_empty(rewards.shape), *(rewards.new_empty(groups, dtype=t) for t in dtypes)


_group_advantage = _op.short("group_advantage")


@overload
def group_advantage(
    rewards: Tensor, groups: int | Tensor | GroupPlan | None = ..., *, offsets: Tensor | None = ...,
    baseline: str = ..., scale: str = ..., eps: float | None = ..., correction: int | None = ..., singleton: str = ...,
    lengths: Tensor | None = ..., stats: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip
@overload
def group_advantage(
    rewards: Tensor, groups: int | Tensor | GroupPlan | None = ..., *, offsets: Tensor | None = ...,
    baseline: str = ..., scale: str = ..., eps: float | None = ..., correction: int | None = ..., singleton: str = ...,
    lengths: Tensor | None = ..., stats: Literal[True],
) -> tuple[Tensor, GroupStats]: ...  # fmt: skip


@explained
def group_advantage(
    rewards: Tensor,
    groups: int | Tensor | GroupPlan | None = None,
    *,
    offsets: Tensor | None = None,
    baseline: str = "mean",
    scale: str = "std",
    eps: float | None = None,
    correction: int | None = None,
    singleton: str = "zero",
    lengths: Tensor | None = None,
    stats: bool = False,
) -> Tensor | tuple[Tensor, GroupStats]:
    """Advantage of each reward over the rewards of its group: `(r - baseline) / (scale + eps)`.

    The defaults are GRPO as in TRL 1.16; `warpup.advantage` names what others compute. Statistics take two passes; a
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
        eps: added to the scale; None: 1e-4.
        correction: 1 divides squared deviations by n - 1 (Bessel), 0 by n; None: 1.
        singleton: a group's only reward gives `zero`, or its `raw` value.
        lengths: (N,) any number dtype, for `length_weighted` only. Where a group's sum to 0, the mean is taken.
        stats: also return the `GroupStats`.

    Returns:
        Advantages (N,) in float32 (float64 for float64 rewards), or the pair with the statistics. They carry no
        gradient.

    Raises:
        ValueError: not exactly one of `groups` and `offsets`, N not a multiple of the group size, a shape or dtype that
            does not fit, an unknown name, `lengths` missing, an argument that another one leaves without effect
            (`lengths` with another baseline, `eps` or `correction` where nothing is divided), (CPU only) offsets that
            descend or do not span the rewards. On CUDA, where checking would synchronize, such offsets are clamped.

    Source: TRL 1.16 GRPOTrainer, verl 0.9.1 core_algos, RLOO (arXiv 2402.14740), OPO (arXiv 2505.23585), Dr. GRPO
    (arXiv 2503.20783).
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
    if lengths is not None:
        check_shape(op, "lengths", lengths, (n,))
        if baseline != "length_weighted":
            fail(op, f"lengths belong to baseline='length_weighted', not to {baseline!r}: leave them out")
        lengths = lengths.detach().to(rewards.dtype)
    elif baseline == "length_weighted":
        fail(op, "lengths (N,) are needed for baseline length_weighted, got None")
    eps = eps_of(op, eps, scale, 1e-4)
    if correction is not None and scale == "none" and not stats:
        fail(op, f"correction is of a deviation, and scale='none' takes none: leave it out, got {correction}")
    correction = 1 if correction is None else correction
    batch = masked_moments(rewards, skip_nan=True, correction=correction) if scale == "batch_std" else None
    arguments = (rewards, size, offsets, order, lengths, batch, baseline, scale, eps, correction, singleton)
    if not stats:
        return _group_advantage(*arguments)
    advantages, count, mean, std, mean_abs, zero_variance = _op.ops.group_advantage_stats(*arguments)
    return advantages, GroupStats(count, mean, std, mean_abs, zero_variance.view(torch.bool))
