"""Token log-probabilities and what else one pass over the logits gives: entropy, log-sum-exp, sum of squares.

Contract, numerics and bytes moved: csrc/logprob/token_logprob.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup._transforms import beyond_reverse_mode
from warpup.logprob.kept import KeptTokens
from warpup.logprob.logit_form import form_of, formed

IGNORE_INDEX = -100


class SampledTokens(NamedTuple):
    """The tokens to score, one a row or K, and the sampler under which they were drawn: what all raw ops take, in their
    order."""

    targets: Tensor
    temperature: Tensor | None = None  # one a row, else the scalar
    temperature_scalar: float = 1.0
    ignore_index: int = IGNORE_INDEX
    token_set: Tensor | None = None  # (V,) bool
    delta: Tensor | None = None  # one a row, else the scalar
    delta_scalar: float = 0.0
    kept_mask: Tensor | None = None  # the logits' shape, bool
    scale: float = 1.0
    softcap: float = 0.0  # 0: none

    def rows(self, at: slice) -> SampledTokens:
        """The same for some of the rows, where these are one dimension."""
        return self._map(lambda t: t[at])

    def flattened(self, lead: int) -> SampledTokens:
        """The same for logits whose `lead` leading dimensions are folded into one."""
        return self._map(lambda t: t.flatten(0, lead - 1) if lead else t.unsqueeze(0))

    def spread(self, lead: int) -> SampledTokens:
        """The same for logits that have a row for each of the K targets of each row."""
        k = self.targets.shape[lead]

        def each(t: Tensor) -> Tensor:
            return t.unsqueeze(lead).expand(*t.shape[:lead], k, *t.shape[lead:])

        return self._replace(targets=None)._map(each)._replace(targets=self.targets)

    def columns(self, begin: int, end: int) -> SampledTokens:
        """The same for a slice of the vocabulary."""
        token_set = None if self.token_set is None else self.token_set[begin:end]
        kept = None if self.kept_mask is None else self.kept_mask[..., begin:end]
        return self._replace(token_set=token_set, kept_mask=kept)

    def _map(self, change) -> SampledTokens:
        per_row = {k: getattr(self, k) for k in ("targets", "temperature", "delta", "kept_mask")}
        return self._replace(**{k: change(t) for k, t in per_row.items() if t is not None})


def sampled_tokens(
    op: str,
    vocab: int,
    targets: Tensor,
    temperature: float | Tensor,
    ignore_index: int,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    lead: int | None = None,
) -> SampledTokens:
    """The raw ops' arguments from those of a public function. `lead`: the leading dimensions of the logits, where
    targets may have one more."""
    form = form_of(op, scale, softcap)
    numbers = not (isinstance(temperature, Tensor) or isinstance(delta, Tensor))
    if numbers and delta == 0 and token_set is None and kept_mask is None:
        return SampledTokens(targets, None, float(temperature), ignore_index, None, None, 0.0, None, *form)
    rows = targets.shape[:lead]
    (each_t, one_t), (each_d, one_d) = _op.per_row(temperature, rows), _op.per_row(delta, rows)
    for name, each in (("temperature", each_t), ("delta", each_d)):
        if each is not None and each.shape != rows:
            raise ValueError(f"{op}: {name} must have shape {tuple(rows)}, got {tuple(each.shape)}")
    chosen = None
    if token_set is not None:
        chosen = token_mask(op, vocab, token_set, targets.device)
    elif each_d is not None or one_d != 0:
        raise ValueError(f"{op}: delta needs token_set, the tokens it is added to")
    if kept_mask is not None and kept_mask.shape != (*rows, vocab):
        raise ValueError(f"{op}: kept_mask must have shape {(*rows, vocab)}, got {tuple(kept_mask.shape)}")
    return SampledTokens(targets, each_t, one_t, ignore_index, chosen, each_d, one_d, kept_mask, *form)


def token_mask(op: str, vocab: int, token_set: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """(V,) bool of ids, or the mask itself. On a GPU, where checking would synchronise, ids outside are dropped."""
    if isinstance(token_set, str):
        raise ValueError(f"{op}: token_set must be ids, got the text {token_set!r}")
    if isinstance(token_set, Tensor) and token_set.dtype == torch.bool:
        if token_set.shape != (vocab,):
            raise ValueError(f"{op}: token_set must have shape {(vocab,)}, got {tuple(token_set.shape)}")
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
    kept: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob` and `replay_logprob` in plain torch: the oracle of the tests (in float64) and the eager peer of
    the benchmarks."""
    if kept is not None:
        kept_mask = KeptTokens(*kept).to_mask(logits.shape[-1]).view(logits.shape)
    rows = logits.shape[:-1]
    tokens = sampled_tokens(
        "reference", logits.shape[-1], targets, temperature, ignore_index, delta, token_set, kept_mask, lead=len(rows)
    )

    def each_row(each: Tensor | None, one: float) -> Tensor | float:
        return one if each is None else each.unsqueeze(-1).to(accumulator(logits))

    x = formed(logits.to(accumulator(logits)), scale, softcap)
    if tokens.token_set is not None:
        x = torch.where(tokens.token_set, x + each_row(tokens.delta, tokens.delta_scalar), x)
    if kept_mask is not None:
        x = x.masked_fill(~kept_mask, -torch.inf)
    x = x / each_row(tokens.temperature, tokens.temperature_scalar)
    ids = targets if targets.dim() > len(rows) else targets.unsqueeze(-1)
    asked = ids != ignore_index
    counted = asked.any(-1) & (x != -torch.inf).any(-1)
    asked &= counted.unsqueeze(-1)
    x = x.masked_fill(~counted.unsqueeze(-1), 0.0)
    logp_all = torch.log_softmax(x, -1)
    logp = logp_all.gather(-1, ids.where(asked, 0)).where(asked, 0.0).view(targets.shape)
    finite = logp_all.masked_fill(logp_all == -torch.inf, 0.0)
    p = logp_all.exp()
    of_rows = (-(p * finite).sum(-1), torch.logsumexp(x, -1), p.square().sum(-1))
    return asked_for((logp, *(torch.where(counted, r, 0.0) for r in of_rows)), entropy, lse, sum_p2)


def asked_for(results: Sequence[Any], entropy: bool, lse: bool, sum_p2: bool) -> Tensor | tuple[Tensor, ...]:
    """`logp`, or a tuple of it and the others that were asked for."""
    if not (entropy or lse or sum_p2):
        return results[0]
    asked = (True, entropy, lse, sum_p2)
    return tuple(r for r, a in zip(results, asked, strict=False) if a)  # strict: a raw op's last result is its own


# ---- raw ops --------------------------------------------------------------------------------------------------------


@_op.fake("token_logprob")
def _(logits, targets, *_tokens_and_flags):
    return outputs_like(logits, logits.shape[:-1], targets, *_tokens_and_flags[-3:])


@_op.fake("token_logprob_slice_")
def _(*_):
    return None


def outputs_like(x: Tensor, rows: Sequence[int], targets: Tensor, *with_extras: bool) -> tuple[Any, ...]:
    """Empty logp, entropy, lse, sum_p2 and stats; None for those that are not asked for."""
    options = {"dtype": accumulator(x), "device": x.device}
    extras = [torch.empty(rows, **options) if asked else None for asked in with_extras]
    return torch.empty(targets.shape, **options), *extras, torch.empty((*rows, 2), **options)


_rows = {"leading": True, "own_row": True, "shared": ("token_set",)}
_token_logprob = _autograd.differentiable("token_logprob", strided=True, **_rows)
_token_logprob_inplace = _autograd.differentiable(
    "token_logprob", backward="token_logprob_backward_", strided=True, **_rows
)


def scored(logits: Tensor, tokens: SampledTokens, inplace_backward: bool, *flags: bool) -> Tensor | tuple[Tensor, ...]:
    """What the public functions return; flags: entropy, lse, sum_p2."""
    lead = logits.dim() - 1
    if tokens.targets.dim() <= lead or not beyond_reverse_mode():
        run = _token_logprob_inplace if inplace_backward else _token_logprob
        return asked_for(run(logits, *tokens, *flags), *flags)
    # Forward mode knows results of one number a row alone, so each of the K targets gets a row of its own.
    rows = logits.unsqueeze(lead).expand(*tokens.targets.shape, logits.shape[lead])
    logp, *others = _token_logprob(rows, *tokens.spread(lead), *flags)[:4]
    if rows.shape[lead] == 0:  # a row without targets counts for nothing
        others = [r if r is None else r.new_zeros(r.shape[:-1]) for r in others]
        return asked_for((logp, *others), *flags)
    counted = (tokens.targets != tokens.ignore_index).int().argmax(-1, keepdim=True)
    others = [r if r is None else r.gather(-1, counted).squeeze(-1) for r in others]
    return asked_for((logp, *others), *flags)


# ---- public function ------------------------------------------------------------------------------------------------


@overload
def token_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = ..., scale: float = ...,
    softcap: float | None = ..., entropy: Literal[False] = ..., lse: Literal[False] = ..., sum_p2: Literal[False] = ...,
    ignore_index: int = ..., inplace_backward: bool = ...,
) -> Tensor: ...  # fmt: skip
@overload
def token_logprob(
    logits: Tensor, targets: Tensor, *, temperature: float | Tensor = ..., scale: float = ...,
    softcap: float | None = ..., entropy: bool = ..., lse: bool = ..., sum_p2: bool = ..., ignore_index: int = ...,
    inplace_backward: bool = ...,
) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip


@explained
def token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    ignore_index: int = IGNORE_INDEX,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Log-probability of each target token, or of K of them a row, and on request what else the same pass gives of the
    distribution.

    `logp = log_softmax(logits / temperature)[target]`, `entropy = -sum p log p`, `lse = logsumexp(logits /
    temperature)`, `sum_p2 = sum p^2`, in nats: one pass over the logits forward and one backward; no [..., V]
    temporary in either direction but the gradient itself.

    Args:
        logits: (..., V) float32, bfloat16, float16 or float64; `-inf` entries have probability 0. V has stride 1; the
            leading dimensions may be strided (`logits[:, :-1]` is not copied).
        targets: (...,) int64 in [0, V), or `ignore_index`; or (..., K), for K log-probs a row from the one pass, of a
            token that is listed twice twice.
        temperature: a number above 0, or a float32 tensor, (...,) with one value a row or with one for all. It gets no
            gradient. Under `torch.compile` a number is a constant of the graph: a schedule belongs in a tensor.
        scale, softcap: what the model does to the product of its output layer, where these `logits` are that product:
            `softcap * tanh(scale * logits / softcap)` (Gemma: `final_logit_softcapping`; Cohere, Granite, Falcon-H1: a
            scale). Both are above 0; softcap None: no cap. What is written above is then of the result.
        entropy, lse, sum_p2: also return these.
        ignore_index: rows with this target give zeros and a zero gradient, as do rows whose logits are all `-inf`. Of K
            targets such a one gives 0, and a row counts for nothing if it has no other.
        inplace_backward: the backward writes the gradient over `logits`, saving a tensor of its size. The logits must
            not be needed afterwards; a second backward raises.

    Returns:
        `logp` in the shape of `targets`, in float32 (float64 for float64 logits), or a tuple of it and what was asked
        for, each (...,), in the order (logp, entropy, lse, sum_p2). All are differentiable.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, the temperature is not above 0, or (CPU only) a
            target is out of range. On CUDA, where checking would synchronise, such a row gives NaN.

    Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867).
    """
    if inplace_backward:
        _op.check_written("token_logprob", "logits", logits, "leave inplace_backward off")
    lead = logits.dim() - 1
    tokens = sampled_tokens(
        "token_logprob", 0, targets, temperature, ignore_index, scale=scale, softcap=softcap, lead=lead
    )
    return scored(logits, tokens, inplace_backward, entropy, lse, sum_p2)
