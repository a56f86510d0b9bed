"""moe_route, the router of a mixture of experts: weights and experts of each token, and what balance losses need of
the scores.

T tokens, E experts, k of them a token, B sequences. Contract, numerics and bytes moved: csrc/moe/moe_route.h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator

ORDERS = ("softmax_topk", "topk_softmax")
GROUP_RULES = ("top1", "top2", "topk")
EPSILON = 1e-20  # what a sum of weights is protected by, as in DeepSeek-V3


class MoERoute(NamedTuple):
    """What `moe_route` gives; with `sequences` the counts and mean scores are (B, E)."""

    weights: Tensor  # (T, k) float32
    indices: Tensor  # (T, k) int64; -1 for a token that the mask leaves out
    counts: Tensor  # (E,) int64: how many copies each expert got
    mean_score: Tensor  # (E,) float32: P of the balance losses
    z_loss: Tensor  # () float32: mean of logsumexp(logits)^2


@dataclass(frozen=True)
class Rule:
    """How experts are scored, chosen and weighed: arguments of the raw ops, by their names (csrc/moe/moe_route.h)."""

    score: str
    over_chosen: bool  # order "topk_softmax"
    renormalize: bool
    epsilon: float
    scale: float
    groups: int = 0  # none
    kept_groups: int = 0
    group_top: int = 0  # of how many of its experts a group is the sum


def route_rule(
    k: int, score="softmax", order="softmax_topk", renormalize=False, epsilon=EPSILON, groups=None, scale=1.0
) -> Rule:
    """The raw ops' arguments from the public function's."""
    if order not in ORDERS:
        raise ValueError(f"moe_route: order must be one of {ORDERS}, got {order!r}")
    over_chosen = order == "topk_softmax"
    if epsilon != EPSILON and (over_chosen or not renormalize):
        raise ValueError(
            f"moe_route: epsilon is for renormalize=True with order softmax_topk, nothing else divides; got {epsilon}"
        )
    rule = Rule(score, over_chosen, renormalize, float(epsilon), float(scale))
    if groups is None:
        return rule
    if not isinstance(groups, tuple | list) or len(groups) != 3 or groups[2] not in GROUP_RULES:
        raise ValueError(f"moe_route: groups must be (number, how many are kept, one of {GROUP_RULES}), got {groups!r}")
    number, kept, by = groups
    top = {"top1": 1, "top2": 2, "topk": k // max(kept, 1)}[by]
    return replace(rule, groups=number, kept_groups=kept, group_top=top)


def sequence_bounds(tokens: int, sequences: int | Tensor | None, device) -> Tensor | None:
    """(B + 1,) int64 from what is given as `sequences`."""
    if sequences is None:
        return None
    if isinstance(sequences, Tensor):
        if sequences.dim() != 1 or len(sequences) == 0:
            raise ValueError(f"moe_route: sequences must be (B + 1,) bounds, got {tuple(sequences.shape)}")
        return sequences.long().contiguous()
    if sequences < 1 or tokens % sequences != 0:
        raise ValueError(
            f"moe_route: sequences must be at least 1 and divide the number of tokens, got {sequences} for {tokens}"
        )
    return torch.arange(0, tokens + 1, sequences, device=device)


def reference_moe_route(
    logits: Tensor, k: int, *, bias=None, replay_indices=None, token_mask=None, sequences=None, **options
) -> MoERoute:
    """`moe_route` in plain torch: the oracle of the tests (in float64) and the eager peer of the benchmarks."""
    rule = route_rule(k, **options)
    z = logits.to(accumulator(logits))
    tokens, experts = z.shape
    counted = (z != -torch.inf).any(1) & (True if token_mask is None else token_mask.bool())
    z = z.masked_fill(~counted.unsqueeze(1), 0.0)
    softmax, dead = torch.softmax(z, -1), z == -torch.inf  # there sqrt has no derivative
    scores = {
        "softmax": lambda: softmax,
        "sigmoid": lambda: torch.sigmoid(z),
        "sqrt_softplus": lambda: torch.logaddexp(z.masked_fill(dead, 0), z.new_zeros(())).sqrt().masked_fill(dead, 0),
    }[rule.score]()
    shares = scores / scores.sum(-1, keepdim=True)
    if replay_indices is None:
        key = (z if rule.over_chosen or (bias is None and not rule.groups) else scores).detach()
        key = key if bias is None else key + bias.detach().to(key.dtype)
        if rule.groups:
            grouped = key.view(tokens, rule.groups, experts // rule.groups)
            best = grouped.sort(-1, descending=True).values[..., : rule.group_top].sum(-1)
            kept = best.argsort(dim=-1, descending=True, stable=True)[:, : rule.kept_groups]
            open_ = torch.zeros_like(best, dtype=torch.bool).scatter(1, kept, True).unsqueeze(-1)
            key = torch.where(open_, grouped, -torch.inf).view(tokens, experts)
        indices = key.argsort(dim=-1, descending=True, stable=True)[:, :k]
    else:
        indices = replay_indices.long()
    indices = torch.where(counted.unsqueeze(1), indices, -1)
    held = indices >= 0
    chosen = (z if rule.over_chosen else scores).gather(1, indices.clamp_min(0))
    if rule.over_chosen:
        weights = torch.softmax(chosen.masked_fill(~held, -torch.inf), -1)
    else:
        weights = torch.where(held, chosen, 0.0)
        weights = weights / (weights.sum(-1, keepdim=True) + rule.epsilon) if rule.renormalize else weights
    weights = torch.where(held, weights * rule.scale, 0.0)
    bounds = sequence_bounds(tokens, sequences, z.device)
    bounds = torch.tensor([0, tokens], device=z.device) if bounds is None else bounds
    sequence = torch.repeat_interleave(torch.arange(len(bounds) - 1, device=z.device), bounds.diff())
    member = (sequence.unsqueeze(1) == torch.arange(len(bounds) - 1, device=z.device)) & counted.unsqueeze(1)
    member = member.to(z.dtype)
    mean_score = (member.T @ shares) / member.sum(0).clamp_min(1).unsqueeze(1)
    copies = torch.zeros_like(z).scatter_add(1, indices.clamp_min(0), held.to(z.dtype))
    counts = (member.T @ copies).long()
    high = z.detach().amax(-1, keepdim=True)  # torch.logsumexp rounds at its size, and so does its derivative
    lse = high.squeeze(-1) + (z - high).exp().sum(-1).log()
    z_loss = torch.where(counted, lse.square(), 0.0).sum() / counted.sum().clamp_min(1)
    if sequences is None:
        counts, mean_score = counts[0], mean_score[0]
    return MoERoute(weights, indices, counts, mean_score, z_loss)


@_op.fake("moe_route")
def _(logits, bias, replay, mask, bounds, k, *_):
    (tokens, experts), acc = logits.shape, accumulator(logits)
    sequences = 1 if bounds is None else bounds.shape[0] - 1
    shapes = ((tokens, k), (tokens, k), (sequences, experts), (sequences, experts), (), (tokens, 2), (sequences + 1,))
    dtypes = (acc, torch.int64, torch.int64, acc, acc, acc, torch.int64)
    return tuple(logits.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True))


_moe_route = _autograd.differentiable("moe_route")


@explained
def moe_route(
    logits: Tensor,
    k: int,
    *,
    score: str = "softmax",
    order: str = "softmax_topk",
    renormalize: bool = False,
    epsilon: float = EPSILON,
    bias: Tensor | None = None,
    groups: tuple[int, int, str] | None = None,
    scale: float = 1.0,
    replay_indices: Tensor | None = None,
    token_mask: Tensor | None = None,
    sequences: int | Tensor | None = None,
) -> MoERoute:
    """The k experts of each token, their weights, and from the same pass over the logits all that balance losses need.

    One kernel forward and one backward, which takes the gradients of weights, mean scores and z-loss at once; beside
    the results O(E) memory. Published routers:

        DeepSeekMoE, OLMoE      moe_route(logits, k)
        Qwen3-MoE               moe_route(logits, k, renormalize=True)
        Mixtral, gpt-oss        moe_route(logits, k, order="topk_softmax")
        DeepSeek-V2             moe_route(logits, 6, groups=(8, 3, "top1"), scale=16.0)
        DeepSeek-V3             moe_route(logits, 8, score="sigmoid", bias=bias, groups=(8, 4, "top2"),
                                          renormalize=True, scale=2.5)

    Args:
        logits: (T, E) float32, bfloat16, float16 or float64, E at most 1024; rows may be strided. Computed with in
            float32 (float64). A NaN is chosen last and comes out in the weights (with a softmax, those of its token).
        k: experts a token, at most E.
        score: `softmax` over the experts, `sigmoid`, or `sqrt_softplus`, sqrt(log(1 + e^z)).
        order: `softmax_topk` weighs by the scores; `topk_softmax` by a softmax over the chosen logits.
        renormalize: divide a token's weights by their sum + `epsilon`. (With topk_softmax their sum is 1 anyway.)
        bias: (E,), added to the scores (topk_softmax: the logits) for the choice only; it gets no gradient.
        groups: (G, g, rule): experts in G groups of neighbors, at most 32, chosen only within the g whose scores are
            largest: the sum of a group's `top1`; `top2` (Hugging Face, torchtitan); or `topk`, its top k // g
            (Megatron, Transformer Engine).
        scale: of the weights.
        replay_indices: (T, k) int64 or int32, the experts that the rollout engine chose, instead of choosing: `bias`
            and `groups`, which are about the choice, then have no part. Their weights come from the live logits, with
            gradients. -1: dropped, weight 0.
        token_mask: (T,), 0 for a token that counts for nothing: weights 0, indices -1.
        sequences: statistics of each sequence: their length, or their (B + 1,) int64 bounds (`cu_seqlens`).

    Returns:
        A `MoERoute`. Experts by falling score, of equal ones the lower index first. `mean_score` is the mean over the
        tokens that count of the scores, divided by their sum over the experts where that is not 1 (sigmoid and
        sqrt_softplus, as in DeepSeek-V3); for `topk_softmax` of the softmax over all. `counts` has no gradient.
        A token with no logit above -inf counts for nothing.

    Raises:
        ValueError: a shape or dtype does not fit, k > E, an unknown name, groups that do not divide E or keep fewer
            than k experts, an epsilon where nothing is divided, (CPU only) a replayed index outside [-1, E), sequences
            that do not span the tokens. On CUDA, where checking would synchronize, such an index is dropped, and bounds
            are held inside the tokens.

    Source: DeepSeekMoE (arXiv 2401.06066), DeepSeek-V3 (arXiv 2412.19437), ST-MoE for the z-loss (arXiv 2202.08906).
    """
    if logits.dim() != 2:
        raise ValueError(f"moe_route: logits must have shape (T, E), got {tuple(logits.shape)}")
    rule = route_rule(k, score, order, renormalize, epsilon, groups, scale)
    weights, indices, counts, mean_score, z_loss, _, _ = _moe_route(
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        bias=None if bias is None else bias.detach().to(accumulator(logits)).contiguous(),
        replay=None if replay_indices is None else replay_indices.long().contiguous(),
        mask=None if token_mask is None else token_mask.bool().contiguous(),
        bounds=sequence_bounds(logits.shape[0], sequences, logits.device),
        k=k,
        **vars(rule),
    )
    if sequences is None:
        counts, mean_score = counts[0], mean_score[0]
    return MoERoute(weights, indices, counts, mean_score, z_loss)
