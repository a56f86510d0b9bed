"""`token_logprob` under the sampler that was really used, of all logits or of those alone that its filter left.

Contract, numerics and bytes moved: csrc/logprob/token_logprob.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._numbers import DIVISORS
from warpup._op import accumulator
from warpup.logprob.kept import KeptTokens, check_kept, kept_softmax
from warpup.logprob.logit_form import formed
from warpup.logprob.token_logprob import IGNORE_INDEX, SampledTokens, asked_for, sampled_tokens, scored

OF_ROWS = 7  # fields of SampledTokens that `kept_softmax` takes: what it knows of a row beside its logits


@overload
def replay_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = ..., delta: float | Tensor = ...,
    token_set: Sequence[int] | Tensor | None = ..., kept_mask: Tensor | None = ...,
    kept: tuple[Tensor, Tensor] | None = ..., scale: float = ..., softcap: float | None = ...,
    entropy: Literal[False] = ..., lse: Literal[False] = ..., sum_p2: Literal[False] = ..., ignore_index: int = ...,
    inplace_backward: bool = ...,
) -> Tensor: ...  # fmt: skip
@overload
def replay_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = ..., delta: float | Tensor = ...,
    token_set: Sequence[int] | Tensor | None = ..., kept_mask: Tensor | None = ...,
    kept: tuple[Tensor, Tensor] | None = ..., scale: float = ..., softcap: float | None = ..., entropy: bool = ...,
    lse: bool = ..., sum_p2: bool = ..., ignore_index: int = ..., inplace_backward: bool = ...,
) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip


@explained
def replay_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
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
        logits, targets, temperature, scale, softcap, entropy, lse, sum_p2, ignore_index, inplace_backward: as in
            `token_logprob`.
        delta: what the sampler added to the logits of `token_set`: a number, or a float32 tensor, one value a row.
        token_set: ids in [0, V), a sequence or an int64 tensor, or a bool mask (V,), which saves making one.
        kept_mask: (..., V) bool, the tokens that top-k, top-p or another filter left; a target outside has logp -inf.
        kept: the same as `KeptTokens`, a set of ids for each of the N rows in CSR form: 8192 rows of 512 ids are 17 MB,
            where a mask of 151,936 columns is 1.2 GB. Only their logits are read.

    Returns, Raises: as `token_logprob`; also ValueError for an id out of range, a delta without a token_set, kept
        beside kept_mask, inplace_backward or K targets a row, and (CPU only) kept ids of a row that do not rise.

    Source: the definition; additive schedules on reflection tokens as in CyclicReflex and TIP.
    """
    vocab = logits.shape[-1] if logits.dim() else 0
    lead = logits.dim() - 1
    tokens = sampled_tokens(
        "replay_logprob", vocab, targets, temperature, ignore_index, delta, token_set, kept_mask, scale, softcap, lead
    )
    if kept is not None:
        check_alone("replay_logprob", kept_mask=kept_mask is not None, inplace_backward=inplace_backward)
        if targets.shape != logits.shape[:-1]:
            raise ValueError(
                f"replay_logprob: targets must have shape {tuple(logits.shape[:-1])}, got {tuple(targets.shape)}"
            )
        kept = check_kept("replay_logprob", kept, targets.numel(), vocab, logits.device)
        logits = logits.reshape(-1, vocab)[kept.rows(), kept.token_ids]
        flat = tokens.flattened(targets.dim())
        return kept_logprob("replay_logprob", logits, kept, flat, targets.shape, vocab, entropy, lse, sum_p2)
    if inplace_backward:
        _op.check_written("replay_logprob", "logits", logits, "leave inplace_backward off")
    return scored(logits, tokens, inplace_backward, entropy, lse, sum_p2)


def check_alone(op: str, **others: bool) -> None:
    """Raises ValueError if one of the `others` is given beside kept."""
    for name, given in others.items():
        if given:
            raise ValueError(f"{op}: {name} has no meaning beside kept; leave one of the two out")


def kept_logprob(
    op: str, logits: Tensor, kept: KeptTokens, tokens: SampledTokens, shape: torch.Size, vocab: int, *flags: bool
) -> Tensor | tuple[Tensor, ...]:
    """What `replay_logprob` gives, in `shape`, from the logits (K,) of the kept tokens alone, in their order; `kept`
    has been checked, `tokens` are flattened. flags: entropy, lse, sum_p2."""
    least, most = DIVISORS
    for name, value in (("scale", tokens.scale), ("softcap", tokens.softcap or 1.0)):
        if not least <= value <= most:
            raise ValueError(f"{op}: {name} must be in [{least:.3g}, {most:.3g}], got {value}")
    if not (logits.is_cuda or torch.compiler.is_compiling()):
        y, t = tokens.targets, tokens.temperature
        outside = ((y < 0) | (y >= vocab)) & (y != tokens.ignore_index)
        if outside.any():
            row = int(outside.int().argmax())
            raise ValueError(f"{op}: targets[{row}] = {int(y[row])} is outside [0, {vocab})")
        if not (least <= tokens.temperature_scalar <= most if t is None else bool(((t >= least) & (t <= most)).all())):
            got = tokens.temperature_scalar if t is None else t
            raise ValueError(f"{op}: temperature must be above 0, from {least:.3g} to {most:.3g}, got {got}")
    if (tokens.scale, tokens.softcap) != (1.0, 0.0):
        ignored = (tokens.targets == tokens.ignore_index)[kept.rows()]  # these may be NaN, which has a slope of NaN
        logits = formed(logits.to(accumulator(logits)).masked_fill(ignored, 0.0), tokens.scale, tokens.softcap)
    found = asked_for(kept_softmax(logits, *kept, *tokens[:OF_ROWS], *flags), *flags)
    return tuple(r.view(shape) for r in found) if isinstance(found, tuple) else found.view(shape)
