"""Sparse support: log-probs over the tokens that a filter left in each row, without the logits of the others.

The kept tokens are a CSR matrix: row i of the logits has token_ids[offsets[i] : offsets[i + 1]]. `kept_logits` makes
these logits alone, K products of H numbers where all logits take N * V, and its gradients are two products of the same
sparse matrix; `kept_softmax` is the softmax over each row's tokens. Time and memory go with K, but for the weight's
gradient, which has the weight's size.

Top-k 512 of a vocabulary of 151,936 keeps one logit in 300.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from warpup import _autograd, _op
from warpup._op import accumulator

# Rows of a 16-bit weight that are alive at once in the accumulator's type: about what a CPU's cache holds.
GATHERED_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}


class KeptTokens(NamedTuple):
    """The tokens that top-k, top-p or another filter left in each of N rows, as vLLM and TRL hand them over.

    Row i has token_ids[offsets[i] : offsets[i + 1]]. Where a function takes it, a plain pair will do.
    """

    token_ids: Tensor  # (K,) int32 or int64, rising within a row
    offsets: Tensor  # (N + 1,) int64, rising from 0 to K

    @classmethod
    def from_mask(cls, mask: Tensor) -> KeptTokens:
        """Of a mask (..., V), bool; its leading dimensions become one."""
        if mask.dtype != torch.bool:
            raise ValueError(f"KeptTokens.from_mask: mask must be bool, got {str(mask.dtype).removeprefix('torch.')}")
        mask = mask.reshape(-1, mask.shape[-1])
        rows, ids = mask.nonzero().unbind(1)
        return cls.from_counts(ids.int(), torch.bincount(rows, minlength=len(mask)))  # a sum of bools takes long

    @classmethod
    def from_counts(cls, token_ids: Tensor, counts: Tensor) -> KeptTokens:
        """Of all ids and how many of them each row has."""
        return cls(token_ids, pad(counts.reshape(-1).cumsum(0), (1, 0)))

    def counts(self) -> Tensor:
        """(N,) int64: how many tokens each row has."""
        return self.offsets.diff()

    def to_mask(self, vocab: int) -> Tensor:
        """(N, vocab) bool."""
        mask = torch.zeros(len(self.offsets) - 1, vocab, dtype=torch.bool, device=self.offsets.device)
        mask[self.rows(), self.token_ids.long()] = True
        return mask

    def rows(self) -> Tensor:
        """(K,) int64: the row of each kept token."""
        each = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(each, self.counts(), output_size=len(self.token_ids))

    def select(self, rows: Tensor) -> KeptTokens:
        """The sets of these rows (M,) int64, in this order."""
        counts = self.counts()[rows]
        shift = torch.repeat_interleave(self.offsets[rows] - (counts.cumsum(0) - counts), counts)
        at = torch.arange(len(shift), device=shift.device) + shift
        return KeptTokens.from_counts(self.token_ids[at], counts)


def check_kept(op: str, kept: tuple[Tensor, Tensor], rows: int, vocab: int, device: torch.device) -> KeptTokens:
    """`kept` with int64 numbers. Raises ValueError unless it has a set of tokens in [0, vocab) for each of the rows;
    its values are looked at on the CPU only, since on a GPU that would synchronise."""
    ids, offsets = kept
    for name, tensor, length in (("token_ids", ids, ids.numel()), ("offsets", offsets, rows + 1)):
        if tensor.shape != (length,) or tensor.dtype not in (torch.int32, torch.int64) or tensor.device != device:
            raise ValueError(
                f"{op}: kept.{name} must be int32 or int64 of shape {(length,)} on {device}, got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)} on {tensor.device}"
            )
    found = KeptTokens(ids.long(), offsets.long())
    if device.type == "cuda" or torch.compiler.is_compiling():
        return found
    ids, offsets = found
    if offsets[0] != 0 or offsets[-1] != len(ids) or (offsets.diff() < 0).any():
        raise ValueError(f"{op}: kept.offsets must rise from 0 to the number of token_ids, {len(ids)}, got {offsets}")
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        raise ValueError(f"{op}: kept.token_ids must be in [0, {vocab}), got {int(ids[outside][0])}")
    row = found.rows()
    falls = (ids.diff() <= 0) & (row.diff() == 0)
    if falls.any():
        at = int(falls.int().argmax())
        raise ValueError(
            f"{op}: kept.token_ids must rise within a row, each id once; row {int(row[at])} has {int(ids[at])} before "
            f"{int(ids[at + 1])}"
        )
    return found


# ---- Logits of the kept tokens --------------------------------------------------------------------------------------


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    return torch.sparse_csr_tensor(offsets, columns, values, (len(offsets) - 1, width), check_invariants=False)


# torch says once a process that its CSR tensors are beta. (The import may happen inside of a transform.)
with warnings.catch_warnings(), torch._C._DisableFuncTorch():
    warnings.simplefilter("ignore")
    _csr(torch.tensor([0, 0]), torch.zeros(0, dtype=torch.int64), torch.zeros(0), 1)


def _blocks(weight: Tensor, kept: KeptTokens) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Parts of the kept tokens whose weights are there in the accumulator's type: the rows and the tokens of a part,
    its CSR offsets and columns, and the matrix that the columns are rows of. Of a float32 weight this is the weight."""
    ids, offsets = kept
    if weight.dtype == accumulator(weight):
        yield slice(0, len(offsets) - 1), slice(0, len(ids)), offsets, ids, weight
        return
    step = max(1, GATHERED_BYTES[weight.device.type] // (4 * weight.shape[1]))
    row = kept.rows()
    for begin in range(0, len(ids), step):
        end = min(len(ids), begin + step)
        # The rows of these tokens; on a GPU, where to ask would be to wait, all.
        rows = slice(0, len(offsets) - 1) if ids.is_cuda else slice(int(row[begin]), int(row[end - 1]) + 1)
        part = (offsets[rows.start : rows.stop + 1] - begin).clamp(0, end - begin)
        columns = torch.arange(end - begin, device=ids.device)
        yield rows, slice(begin, end), part, columns, weight[ids[begin:end]].to(accumulator(weight))


@_op.composite(
    "kept_logits(Tensor hidden, Tensor weight, Tensor? bias, Tensor token_ids, Tensor offsets) -> Tensor logits"
)
def _kept_logits(hidden, weight, bias, token_ids, offsets):
    wide = hidden.to(accumulator(hidden))
    logits = wide.new_zeros(len(token_ids))
    for rows, at, part, columns, matrix in _blocks(weight, KeptTokens(token_ids, offsets)):
        zeros = _csr(part, columns, logits[at], len(matrix))
        logits[at] = torch.sparse.sampled_addmm(zeros, wide[rows], matrix.t(), beta=0.0).values()
    if bias is not None:
        logits += bias[token_ids]
    return logits.to(hidden.dtype)


@_op.fake("kept_logits")
def _(hidden, weight, bias, token_ids, offsets):
    return hidden.new_empty(token_ids.shape)


@_op.composite(
    "kept_logits_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor token_ids, Tensor offsets, "
    "Tensor grad_logits, bool[] needs) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
def _kept_logits_backward(hidden, weight, bias, token_ids, offsets, grad_logits, needs):
    """A gradient that is not needed comes back without elements."""
    need_hidden, need_weight, need_bias = needs
    acc, kept = accumulator(hidden), KeptTokens(token_ids, offsets)
    wide, values = hidden.to(acc), grad_logits.to(acc)
    grad_hidden = wide.new_zeros(hidden.shape if need_hidden else 0)
    if need_hidden:
        for rows, at, part, columns, matrix in _blocks(weight, kept):
            grad_hidden[rows] += _csr(part, columns, values[at], len(matrix)) @ matrix
    grad_weight, grad_bias = wide.new_empty(0), wide.new_empty(0)
    if need_weight or need_bias:  # the same matrix the other way round: a row for each token of the vocabulary
        order = token_ids.argsort(stable=True)
        limits = torch.arange(len(weight) + 1, device=token_ids.device)
        limits = torch.searchsorted(token_ids[order], limits)
        by_token = _csr(limits, kept.rows()[order], values[order], len(hidden))
        if need_weight:
            grad_weight = by_token @ wide
        if need_bias:
            grad_bias = (by_token @ wide.new_ones(len(hidden), 1)).squeeze(1)
    return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


kept_logits = _autograd.differentiable("kept_logits")  # hidden (N, H), weight (V, H), bias or None, *KeptTokens -> (K,)


# ---- The softmax over each row's kept tokens ------------------------------------------------------------------------

# What a raw op knows of a row beside its logits: the fields of SampledTokens but for the mask.
OF_ROWS = (
    "Tensor token_ids, Tensor offsets, Tensor targets, Tensor? temperature, float temperature_scalar, "
    "int ignore_index, Tensor? token_set, Tensor? delta, float delta_scalar"
)


def _over_temperature(logits, row, token_ids, temperature, temperature_scalar, token_set, delta, delta_scalar):
    """((logits + delta of the set) / temperature, temperature) of each kept token, in float64."""
    x = logits.double()
    if token_set is not None:
        moved = x + (delta_scalar if delta is None else delta.double()[row])
        x = torch.where(token_set[token_ids], moved, x)
    t = temperature_scalar if temperature is None else temperature.double()[row]
    return x / t, t


@_op.composite(
    f"kept_softmax(Tensor logits, {OF_ROWS}, bool with_entropy, bool with_lse, bool with_sum_p2) "
    "-> (Tensor logp, Tensor entropy, Tensor lse, Tensor sum_p2, Tensor stats)"
)
def _kept_softmax(
    logits, token_ids, offsets, targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
    with_entropy, with_lse, with_sum_p2,
):  # fmt: skip
    def reduced(values, how):
        return torch.segment_reduce(values, how, offsets=offsets, unsafe=True)

    row = KeptTokens(token_ids, offsets).rows()
    x, _ = _over_temperature(logits, row, token_ids, temperature, temperature_scalar, token_set, delta, delta_scalar)
    largest = reduced(x, "max")
    counted = (targets != ignore_index) & (largest != -torch.inf)
    largest = largest.masked_fill(~counted, 0.0)
    lse = largest + reduced((x - largest[row]).exp(), "sum").log()
    log_p = x - lse[row]
    p = log_p.exp()
    logp = reduced(log_p.masked_fill(token_ids != targets[row], -torch.inf), "max")
    entropy, sum_p2 = -reduced(torch.xlogy(p, p), "sum"), reduced(p * p, "sum")

    acc = accumulator(logits)
    asked = (True, with_entropy, with_lse, with_sum_p2)
    results = (
        r.masked_fill(~counted, 0.0).to(acc) if wanted else logits.new_empty(0, dtype=acc)
        for r, wanted in zip((logp, entropy, lse, sum_p2), asked, strict=True)
    )
    # The lse inf marks a row that does not count.
    return *results, torch.stack([lse.masked_fill(~counted, torch.inf), entropy, sum_p2], -1)


@_op.fake("kept_softmax")
def _(logits, token_ids, offsets, targets, *rest):
    acc = accumulator(logits)
    results = (targets.new_empty(targets.shape if asked else 0, dtype=acc) for asked in (True, *rest[-3:]))
    return *results, targets.new_empty((*targets.shape, 3), dtype=torch.float64)


@_op.composite(
    f"kept_softmax_backward(Tensor logits, {OF_ROWS}, Tensor stats, Tensor? grad_logp, Tensor? grad_entropy, "
    "Tensor? grad_lse, Tensor? grad_sum_p2) -> Tensor grad_logits"
)
def _kept_softmax_backward(
    logits, token_ids, offsets, targets, temperature, temperature_scalar, ignore_index, token_set, delta, delta_scalar,
    stats, grad_logp, grad_entropy, grad_lse, grad_sum_p2,
):  # fmt: skip
    """The formula of token_logprob.h over each row's kept tokens."""
    row = KeptTokens(token_ids, offsets).rows()
    x, t = _over_temperature(logits, row, token_ids, temperature, temperature_scalar, token_set, delta, delta_scalar)
    lse, entropy, sum_p2 = stats[row].unbind(-1)
    p = (x - lse).exp()
    grad = torch.zeros_like(x)
    if grad_logp is not None:
        g = grad_logp.double()[row]
        grad += g * ((token_ids == targets[row]) & (lse != torch.inf)) - p * g
    if grad_entropy is not None:
        grad -= grad_entropy.double()[row] * (torch.xlogy(p, p) + p * entropy)
    if grad_lse is not None:
        grad += grad_lse.double()[row] * p
    if grad_sum_p2 is not None:
        grad += grad_sum_p2.double()[row] * 2 * p * (p - sum_p2)
    # Of a row that does not count also where its logits, and so its entropy, are NaN.
    return (grad / t).masked_fill(lse == torch.inf, 0.0).to(logits.dtype)


kept_softmax = _autograd.differentiable("kept_softmax")
