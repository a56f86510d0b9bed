"""`token_logprob` where the vocabulary is spread over the ranks of a group, as tensor parallelism leaves the logits.

Each rank reads its own columns once. What it knows of a row is then four numbers and one for each of its targets
(csrc/logprob/token_logprob.h, `state`), which one all-gather brings to every rank; logits never travel, and the
backward needs no communication.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from warpup import _op
from warpup._op import accumulator
from warpup._transforms import once_differentiable
from warpup.logprob.token_logprob import IGNORE_INDEX, SampledTokens, asked_for, sampled_tokens


def vocab_parallel_logprob(
    logits: Tensor,
    targets: Tensor,
    begin: int,
    vocab: int,
    group: dist.ProcessGroup | None = None,
    *,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob` of logits whose columns are spread over the ranks of a group; every rank gets the whole result.

    One collective, of 5 numbers a row and rank, 4 + K where a row has K targets. Every rank calls it, with the same
    targets and options; the gradients of the results must be the same on all of them too, as those of a loss are that
    every rank computes.

    Args:
        logits: (..., W), this rank's columns [begin, begin + W) of the vocabulary; as for `token_logprob`.
        targets: (...,) int64 in [0, vocab), or `ignore_index`; or (..., K), as for `token_logprob`.
        begin, vocab: this rank's first column, and all ranks' columns together. Ranks may have different widths.
        group: the ranks that share the vocabulary; None: all.
        temperature, scale, softcap, entropy, lse, sum_p2, ignore_index: as in `token_logprob`.

    Returns:
        As `token_logprob`, to within rounding whatever the number of ranks. The gradient is of this rank's columns.

    Raises:
        ValueError: columns outside of [0, vocab), and as `token_logprob`, before any communication; on the CPU also for
            a target out of range, which on a GPU gives NaN.

    Source: Megatron-LM's vocabulary-parallel cross entropy (arXiv 1909.08053), one collective in place of its three.
    """
    op, width = "vocab_parallel_logprob", logits.shape[-1]
    if not 0 <= begin <= begin + width <= vocab:
        raise ValueError(f"{op}: columns [{begin}, {begin + width}) are not within a vocabulary of {vocab}")
    rows, lead = logits.shape[:-1], logits.dim() - 1
    if targets.shape[:lead] != rows or targets.dim() > lead + 1:
        raise ValueError(f"{op}: targets must have shape {(*rows,)} or {(*rows, 'K')}, got {tuple(targets.shape)}")
    outside = ((targets < 0) | (targets >= vocab)) & (targets != ignore_index)
    if not targets.is_cuda and outside.any():  # the kernel looks on one rank only, and the others would wait for it
        raise ValueError(f"{op}: targets must be in [0, {vocab}) or {ignore_index}, got {int(targets[outside][0])}")
    tokens = sampled_tokens(op, width, targets, temperature, ignore_index, scale=scale, softcap=softcap, lead=lead)
    flat = logits.reshape(rows.numel(), width)
    logp, *others = _VocabParallel.apply(flat, tokens.flattened(lead), begin, vocab, group, entropy, sum_p2)
    return asked_for((logp.view(targets.shape), *(r.view(rows) for r in others)), entropy, lse, sum_p2)


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, tokens: SampledTokens, begin: int, vocab: int, group, with_entropy, with_sum_p2):
        rows, dtype = len(logits), accumulator(logits)
        each = tokens.targets.view(rows, 1) if tokens.targets.dim() == 1 else tokens.targets  # (rows, K)
        state = logits.new_zeros(rows, 4 + each.shape[1], dtype=dtype)
        state[:, 0] = -torch.inf
        unread, stats = logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, 2, dtype=dtype)
        unread_logp = logits.new_empty(tokens.targets.shape, dtype=dtype)
        outputs = (unread_logp, unread if with_entropy else None, None, unread if with_sum_p2 else None, stats)
        # A column more than there are: to the kernel no slice is the last one, so it leaves the state.
        _op.ops.token_logprob_slice_(logits, *tokens, begin, vocab + 1, state, *outputs)
        every = [torch.empty_like(state) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, state, group=group)

        t = tokens.temperature_scalar if tokens.temperature is None else tokens.temperature.double()
        states = torch.stack(every).double()
        highest, sums, shifted, squares = states[..., :4].unbind(-1)
        target = states[..., 4:].sum(0)  # 0 on all ranks but the one that has its column
        top = highest.amax(0)
        moved = ((highest - top) / t).where(sums > 0, 0.0)  # of a rank without a logit above -inf there is nothing
        e = moved.exp()
        total, shifted, squares = (e * sums).sum(0), (e * (shifted + moved * sums)).sum(0), (e * e * squares).sum(0)
        asked = each != tokens.ignore_index
        counted = asked.any(-1) & (total != 0)
        log_sum = total.where(counted, 1.0).log()
        invalid = counted & (asked & ((each < 0) | (each >= vocab))).any(-1)

        def valid(result: Tensor) -> Tensor:
            """result: (rows,), or (K, rows)."""
            return result.where(counted, 0.0).masked_fill(invalid, torch.nan).to(dtype)

        logp = valid((target.T - top) / t - log_sum).T.where(asked, 0.0).contiguous().view_as(tokens.targets)
        entropy, lse = valid(log_sum - shifted / total), valid(top / t + log_sum)
        sum_p2 = valid(squares / total.square())
        stats = torch.stack([top.where(counted, 0.0), log_sum.where(counted, torch.inf)], -1).to(dtype)
        ctx.tokens, ctx.slice_of = tokens, (begin, vocab)
        ctx.save_for_backward(logits, stats, entropy, sum_p2)
        ctx.set_materialize_grads(False)
        return logp, entropy, lse, sum_p2

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, *gradients):
        logits, stats, entropy, sum_p2 = saved
        if all(g is None for g in gradients):
            return (None,) * 7
        logp, *others = (None if g is None else g.contiguous() for g in gradients)
        gradient = logits.clone()
        _op.ops.token_logprob_backward_(gradient, *ctx.tokens, stats, entropy, sum_p2, logp, *others, *ctx.slice_of)
        return gradient, *(None,) * 6
