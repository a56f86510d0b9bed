"""Token log-probabilities and what else one pass over the logits gives: entropy, log-sum-exp, sum of squares.

Contract, numerics and bytes moved: csrc/logprob/token_logprob.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, once_differentiable

_op.raw("token_logprob", "token_logprob_slice_", "token_logprob_backward", "token_logprob_backward_")
IGNORE_INDEX = -100


class Under(NamedTuple):
    """What the log-probs are taken of and under; the arguments that all raw ops share, in their order."""

    targets: Tensor
    temperature: Tensor | None = None  # one a row, else the scalar
    temperature_scalar: float = 1.0
    ignore_index: int = IGNORE_INDEX
    boosted: Tensor | None = None  # (V,) bool
    delta: Tensor | None = None  # one a row, else the scalar
    delta_scalar: float = 0.0
    kept: Tensor | None = None  # the logits' shape, bool

    def rows(self, at: slice) -> Under:
        """Of some rows of folded ones."""
        return self._replace(**{k: v[at] for k in _PER_ROW if (v := getattr(self, k)) is not None})

    def flat(self) -> Under:
        """The same for logits whose leading dimensions are folded into one."""
        kept = None if self.kept is None else self.kept.reshape(-1, self.kept.shape[-1])
        rows = {k: None if (v := getattr(self, k)) is None else v.reshape(-1) for k in ("temperature", "delta")}
        return self._replace(targets=self.targets.reshape(-1), kept=kept, **rows)


_PER_ROW = ("targets", "temperature", "delta", "kept")


class Wanted(NamedTuple):
    """Which results beside the log-probs."""

    entropy: bool = False
    lse: bool = False
    sum_p2: bool = False

    def pick(self, logp: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        return (logp, *(o for o, asked in zip(others, self, strict=True) if asked)) if any(self) else logp


def under(
    op: str, vocab: int, targets: Tensor, temperature, ignore_index: int, delta=0.0, token_set=None, kept_mask=None
) -> Under:
    """The raw ops' arguments from the public functions'."""

    def per_row(name, value):
        if not isinstance(value, Tensor):
            return None, float(value)
        value = value.expand(targets.shape) if value.numel() == 1 else value
        if value.shape != targets.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(targets.shape)}, got {tuple(value.shape)}")
        return value, 0.0

    t, t_scalar = per_row("temperature", temperature)
    d, d_scalar = per_row("delta", delta)
    boosted = None
    if token_set is not None:
        boosted = token_mask(op, vocab, token_set, targets.device)
    elif d is not None or d_scalar != 0:
        raise ValueError(f"{op}: delta needs token_set, the tokens it is added to")
    if kept_mask is not None and kept_mask.shape != (*targets.shape, vocab):
        raise ValueError(f"{op}: kept_mask must have shape {(*targets.shape, vocab)}, got {tuple(kept_mask.shape)}")
    return Under(targets, t, t_scalar, ignore_index, boosted, d, d_scalar, kept_mask)


def token_mask(op: str, vocab: int, token_set: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """(V,) bool of ids, or the mask itself. On a GPU, where checking would synchronise, ids outside are dropped."""
    if isinstance(token_set, Tensor) and token_set.dtype == torch.bool:
        return token_set
    ids = (
        token_set if isinstance(token_set, Tensor) else torch.tensor(list(token_set), dtype=torch.int64, device=device)
    )
    if ids.dim() != 1 or ids.dtype not in (torch.int64, torch.int32) or ids.device != device:
        raise ValueError(
            f"{op}: token_set must be ids, or a 1-d int64 tensor on {device}, got {ids.dtype} of shape "
            f"{tuple(ids.shape)} on {ids.device}"
        )
    outside = (ids < 0) | (ids >= vocab)
    if not (ids.is_cuda or torch.compiler.is_compiling()) and outside.any():
        raise ValueError(f"{op}: token_set must hold ids in [0, {vocab}), got {ids.tolist()}")
    spare = torch.zeros(vocab + 1, dtype=torch.bool, device=device)
    return spare.index_fill(0, ids.long().masked_fill(outside, vocab), True)[:vocab]


def reference_token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    ignore_index: int = IGNORE_INDEX,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob` and `replay_logprob` in plain torch: the oracle of the tests (in float64) and the eager peer of
    the benchmarks."""
    given = under("reference", logits.shape[-1], targets, temperature, ignore_index, delta, token_set, kept_mask)
    x = logits.to(accumulator(logits))
    if given.boosted is not None:
        shift = given.delta.unsqueeze(-1).to(x.dtype) if given.delta is not None else given.delta_scalar
        x = torch.where(given.boosted, x + shift, x)
    if kept_mask is not None:
        x = x.masked_fill(~kept_mask, -torch.inf)
    x = x / (given.temperature.to(x.dtype).unsqueeze(-1) if given.temperature is not None else given.temperature_scalar)
    counted = (targets != ignore_index) & (x != -torch.inf).any(-1)
    x = x.masked_fill(~counted.unsqueeze(-1), 0.0)
    logp_all = torch.log_softmax(x, -1)
    logp = logp_all.gather(-1, targets.where(counted, 0).unsqueeze(-1)).squeeze(-1)
    finite = logp_all.masked_fill(logp_all == -torch.inf, 0.0)
    p = logp_all.exp()
    results = (logp, -(p * finite).sum(-1), torch.logsumexp(x, -1), p.square().sum(-1))
    return Wanted(entropy, lse, sum_p2).pick(*(torch.where(counted, r, 0.0) for r in results))


@torch.library.register_fake("warpup::token_logprob")
def _(logits, targets, *rest):
    rows, wanted = logits.shape[:-1], rest[-3:]
    options = {"dtype": accumulator(logits), "device": logits.device}
    extra = (torch.empty(rows if asked else 0, **options) for asked in wanted)
    return torch.empty(rows, **options), *extra, torch.empty((*rows, 2), **options)


@torch.library.register_fake("warpup::token_logprob_backward")
def _(logits, *rest):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.register_fake("warpup::token_logprob_backward_")
@torch.library.register_fake("warpup::token_logprob_slice_")
def _(logits, *rest):
    return None


class TokenLogprob(torch.autograd.Function):
    @staticmethod
    def forward(logits, wanted, inplace_backward, *given):
        return _op.ops.token_logprob(logits, *given, *wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, ctx.wanted, ctx.inplace, *given = inputs
        _, *extra, stats = output
        ctx.mark_non_differentiable(stats, *(e for e, asked in zip(extra, ctx.wanted, strict=True) if not asked))
        ctx.set_materialize_grads(False)
        ctx.scalars = [None if isinstance(v, Tensor) else v for v in given]
        tensors = [v if isinstance(v, Tensor) else None for v in given]
        entropy, _, sum_p2 = (e if asked else None for e, asked in zip(extra, ctx.wanted, strict=True))
        ctx.save_for_backward(logits, stats, entropy, sum_p2, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        logits, stats, entropy, sum_p2, *tensors = ctx.saved_tensors
        given = [s if t is None else t for s, t in zip(ctx.scalars, tensors, strict=True)]
        rest = (None,) * (2 + len(given))
        grads = [grads[0], *(g if asked else None for g, asked in zip(grads[1:4], ctx.wanted, strict=True))]
        if all(g is None for g in grads):
            return (None, *rest)
        if not ctx.inplace:
            return (_op.ops.token_logprob_backward(logits, *given, stats, entropy, sum_p2, *grads), *rest)
        _op.ops.token_logprob_backward_(logits, *given, stats, entropy, sum_p2, *grads, 0, -1)
        torch.autograd.graph.increment_version(logits)  # so that a later backward which needs the logits raises
        return (logits, *rest)


def _logprob(logits: Tensor, given: Under, wanted: Wanted, inplace_backward: bool):
    if logits.requires_grad and torch.is_grad_enabled():
        *results, _ = TokenLogprob.apply(logits, wanted, inplace_backward, *given)
    else:
        *results, _ = _op.ops.token_logprob(logits, *given, *wanted)
    return wanted.pick(*results)


def token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    ignore_index: int = IGNORE_INDEX,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Log-probability of each target token, and on request what else the same pass gives of its distribution.

    `logp = log_softmax(logits / temperature)[target]`, `entropy = -sum p log p`, `lse = logsumexp(logits /
    temperature)`, `sum_p2 = sum p^2`, in nats: one pass over the logits forward and one backward; no [..., V]
    temporary in either direction but the gradient itself.

    Args:
        logits: (..., V) float32, bfloat16, float16 or float64; `-inf` entries have probability 0. V has stride 1; the
            leading dimensions may be strided (`logits[:, :-1]` is not copied).
        targets: (...,) int64 in [0, V), or `ignore_index`.
        temperature: a number above 0, or a float32 tensor, (...,) with one value a row or with one for all. It gets no
            gradient. Under `torch.compile` a number is a constant of the graph: a schedule belongs in a tensor.
        entropy, lse, sum_p2: also return these.
        ignore_index: rows with this target give zeros and a zero gradient, as do rows whose logits are all `-inf`.
        inplace_backward: the backward writes the gradient over `logits`, saving a tensor of its size. The logits must
            not be needed afterwards; a second backward raises.

    Returns:
        `logp` (...,) in float32 (float64 for float64 logits), or a tuple of it and what was asked for, in the order
        (logp, entropy, lse, sum_p2). All are differentiable.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, the temperature is not above 0, or (CPU only) a
            target is out of range. On CUDA, where checking would synchronise, such a row gives NaN.

    Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867).
    """
    given = under("token_logprob", 0, targets, temperature, ignore_index)
    return _logprob(logits, given, Wanted(entropy, lse, sum_p2), inplace_backward)


def replay_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    ignore_index: int = IGNORE_INDEX,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob` under the sampler that was really used: an additive schedule, a temperature and a filter.

    `logp = log_softmax((logits + delta [in token_set], -inf where not kept) / temperature)[target]`. With what the
    sampler used, the ratio of a fresh sample is 1 to rounding; without, the policy gradient is that of another policy.
    Still one pass over the logits each way, whatever the size of delta / temperature.

    Args:
        logits, targets, temperature, entropy, lse, sum_p2, ignore_index, inplace_backward: as in `token_logprob`.
        delta: what the sampler added to the logits of `token_set`: a number, or a float32 tensor, one value a row.
        token_set: ids in [0, V), a sequence or an int64 tensor, or a bool mask (V,), which saves making one.
        kept_mask: (..., V) bool, the tokens that top-k, top-p or another filter left; a target outside has logp -inf.

    Returns, Raises: as `token_logprob`; also ValueError for an id out of range or a delta without a token_set.

    Source: the definition; additive schedules on reflection tokens as in CyclicReflex and TIP.
    """
    given = under(
        "replay_logprob",
        logits.shape[-1] if logits.dim() else 0,
        targets,
        temperature,
        ignore_index,
        delta,
        token_set,
        kept_mask,
    )
    return _logprob(logits, given, Wanted(entropy, lse, sum_p2), inplace_backward)
