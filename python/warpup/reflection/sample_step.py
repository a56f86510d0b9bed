"""`sample_step`, one decode step in one operator: combination, schedule, penalties, phase temperature, filters, a keyed
draw.

Contract, numerics and bytes moved: csrc/reflection/sample_step.h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup.logprob.logit_form import form_of, formed
from warpup.reflection.apply_schedule import ReflectionTables, delta_of, progress_of, schedule_of, set_of
from warpup.reflection.sampling import FILTERS, SAMPLING

TOP_H = 100  # tokens that top_h chooses among, as in transformers
IN_PROMPT, GENERATED = 1, 2  # bits of `seen`


class SampledStep(NamedTuple):
    """One value a row. The log-prob before any filter is `logp + kept.log()`."""

    token: Tensor  # int64; -1 in a row of no request
    logp_raw: Tensor  # of the combined logits themselves: T = 1, no schedule, penalty or filter
    logp: Tensor  # of the distribution that the token was drawn from; 0 where T = 0
    kept: Tensor  # mass that the filters left, of the scheduled, penalized and tempered distribution
    p_r: Tensor  # mass of the schedule's tokens at T before delta: what a closed-form replay needs
    delta: Tensor  # float32, added to the schedule's tokens
    temperature: Tensor  # float32, of the row's phase
    least: Tensor  # what the filters left: tokens of at least this logit, scheduled and penalized; -inf: all
    most: Tensor  # and of at most this one; inf but under typical_p


# ---- reference ------------------------------------------------------------------------------------------------------


def _random_bits(seed: int, position: int, stream: int, items: np.ndarray) -> np.ndarray:
    """csrc/core/random.h in NumPy."""
    mask = 0xFFFFFFFF
    c, k = [position & mask, position >> 32, stream & mask, 0], [seed & mask, seed >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & mask, p >> 32 ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]

    def scrambled(x):
        x = ((x ^ x >> np.uint64(16)) * np.uint64(0x7FEB352D)) & np.uint64(mask)
        x = ((x ^ x >> np.uint64(15)) * np.uint64(0x846CA68B)) & np.uint64(mask)
        return x ^ x >> np.uint64(16)

    x = scrambled(items.astype(np.uint64) ^ np.uint64(c[0]))
    return scrambled((x + np.uint64(c[1])) & np.uint64(mask))


def _undrawn(z: Tensor) -> float | None:
    """What a row gives that nothing can be drawn from; None where something can."""
    if z.isnan().any() or (z == torch.inf).any():
        return torch.nan
    return None if (z > -torch.inf).any() else 0.0


def reference_sample_step(
    logits, tables, slots, *, tuned=None, base=None, seen=None, counts=None, bias=None, back=None, stream=0, scale=1.0,
    softcap=None,
) -> SampledStep:  # fmt: skip
    """`sample_step` by its definition, with sorts, a row at a time: the oracle of the tests."""
    acc, vocab, rows = accumulator(logits), logits.shape[1], []
    for r, slot in enumerate(slots.tolist()):
        if slot < 0:
            rows.append((-1, *[0.0] * 8))
            continue
        s: dict[str, float] = dict(zip(SAMPLING, tables.sampling[slot].tolist(), strict=True))
        lag = 0 if back is None else int(back[r])
        phase, generated, _ = progress_of(tables, slot, lag)
        t = s["answer"] if phase == 2 else s["code"] if phase == 3 else s["think"]
        given = torch.tensor([delta_of(tables, slot, lag, t), t], dtype=torch.float32)  # as it is handed out
        delta, rounded_t = given.tolist()
        z = formed(logits[r].to(acc), scale, softcap)
        if tuned is not None and base is not None:
            z = z + s["beta"] * (tuned[r].to(acc) - base[r].to(acc))
        if (each := _undrawn(z)) is not None:
            rows.append((0, *[each] * 4, delta, rounded_t, each, each))
            continue
        ids = [i for i in set_of(tables, schedule_of(tables, slot)) if i < vocab]
        raw, p_r = torch.log_softmax(z, -1), torch.softmax(z / (t or 1.0), -1)[ids].sum()
        z = z.clone()
        z[ids] += delta
        if bias is not None:
            z = z + bias[slot].to(z)
        if seen is not None:
            z = torch.where(seen[slot] > 0, torch.where(z > 0, z / s["repetition"], z * s["repetition"]), z)
            z = z - s["presence"] * (seen[slot] & GENERATED > 0).to(z)
        if counts is not None:
            z = z - s["frequency"] * counts[slot].to(z)
        if (each := _undrawn(z)) is not None:
            rows.append((0, *[each] * 4, delta, rounded_t, each, each))
            continue
        if t == 0:
            token = int((z == z.max()).nonzero()[0])
            rows.append((token, raw[token], 0.0, 1.0, float(token in ids), delta, rounded_t, z.max(), torch.inf))
            continue
        x = (z - z.max()) / t
        kept = reference_filters(x, s)
        filtered = any(s[name] != off for name, off in FILTERS.items() if name != "top_k") or 0 < s["top_k"] < vocab
        least = z[kept].min() if filtered else -torch.inf
        most = z[kept].max() if s["typical_p"] < 1 else torch.inf
        bits = _random_bits(int(s["seed"]), generated, stream, np.arange(vocab))
        exponentials = torch.from_numpy(-np.log1p(-(bits.astype(np.float64) + 0.5) * 2.0**-32)).to(z)
        token = int((x.exp() / exponentials).where(kept, -1.0).argmax())
        mass = x.exp().where(kept, 0.0).sum()
        logp, share = x[token] - mass.log(), mass / x.exp().sum()
        rows.append((token, raw[token], logp, share, p_r, delta, rounded_t, least, most))
    columns = list(zip(*rows, strict=True)) or [()] * 9
    dtypes = (torch.int64, *[acc] * 8)
    return SampledStep(
        *(torch.tensor([float(x) for x in c], dtype=torch.float64).to(logits.device, d)
          for c, d in zip(columns, dtypes, strict=True))
    )  # fmt: skip


def reference_filters(x: Tensor, s: Mapping[str, float]) -> Tensor:
    """(V,) bool: what the filters of a request leave of x (V,), the logits over the temperature. By sorts; equals stay
    or go together."""
    kept = x > -torch.inf

    def probs() -> Tensor:
        return torch.softmax(x.masked_fill(~kept, -torch.inf), 0)

    def largest(k: int) -> Tensor:
        return kept & (x >= x[kept].sort(descending=True).values[min(k, int(kept.sum())) - 1])

    def with_mass(key: Tensor, p: Tensor, mass: float) -> Tensor:
        """The largest keys, up to the first at which their p add up to `mass`."""
        order = key.masked_fill(~kept, -torch.inf).argsort(descending=True)
        enough = (p[order].cumsum(0) >= mass).nonzero()
        return kept & (key >= key[order[int(enough[0]) if len(enough) else int(kept.sum()) - 1]])

    if s["top_h"] > 0:
        kept = largest(TOP_H)
        p = probs()
        terms = -torch.xlogy(p, p)
        order = x.masked_fill(~kept, -torch.inf).argsort(descending=True)
        over = (terms[order].cumsum(0) > s["top_h"] * terms.sum()).nonzero()
        if s["top_h"] < 1 and len(over):
            kept = kept & ((x > x[order[int(over[0])]]) | (x == x.max()))
    if s["top_k"] > 0:
        kept = largest(int(s["top_k"]))
    if s["top_p"] < 1:
        kept = with_mass(x, probs(), s["top_p"])
    if s["min_p"] > 0:
        kept = kept & (x >= x.max() + math.log(s["min_p"]))
    if 0 < s["typical_p"] < 1:
        p = probs()
        kept = with_mass(-(x - (p * x).where(p > 0, 0.0).sum()).abs(), p, s["typical_p"])
    for name in ("epsilon_cutoff", "eta_cutoff"):
        if (epsilon := s[name]) > 0:
            p = probs()
            eta = epsilon**0.5 * math.exp(torch.xlogy(p, p).sum())
            least = min(epsilon, eta) if name == "eta_cutoff" else epsilon
            kept = kept & ((p >= least) | (p == p.max()))
    return kept


# ---- op -------------------------------------------------------------------------------------------------------------


@_op.fake("sample_step")
def _(logits, *rest):
    rows, acc = logits.shape[0], accumulator(logits)
    dtypes = (torch.int64, acc, acc, acc, acc, torch.float32, torch.float32, acc, acc)
    return tuple(logits.new_empty(rows, dtype=dtype) for dtype in dtypes)


_sample_step = _op.short("sample_step")


@explained
def sample_step(
    logits: Tensor,
    tables: ReflectionTables,
    slots: Tensor,
    *,
    tuned: Tensor | None = None,
    base: Tensor | None = None,
    seen: Tensor | None = None,
    counts: Tensor | None = None,
    bias: Tensor | None = None,
    back: Tensor | None = None,
    stream: int = 0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> SampledStep:
    """Draw each request's next token from its raw logits, and report what the draw was made under.

    In this order: scale and soft cap; `+ beta (tuned - base)`; the schedule and the bias; repetition, frequency and
    presence penalties (as in vLLM); the phase's temperature; top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff and
    eta_cutoff, each of what those before it left (as in transformers); a Gumbel draw whose noise is a function of
    (request seed, position, stream, token), so that neither the batch around a request nor its row changes what it
    draws. Nothing is sorted, nothing waits for the device, the logits are read once and stay as they are. Does not move
    the state on: `reflection_state_update_` takes the token.

    Args:
        logits: (B, V) float32, bfloat16, float16 or float64, V of stride 1.
        tables: the requests' states, schedules and sampling; `ReflectionBatch` fills them.
        slots: (B,) int64, the slot of each row; -1 for none.
        tuned, base: (B, V) of the logits' dtype: a small model before (base) and after (tuned) fine-tuning, whose
            difference is added (emulated fine-tuning; beta above 1 up-scales). Same vocabulary; slice the padding off.
        seen: (S, V) uint8: bit 0 in the prompt, bit 1 generated; what the penalties count, needed where a request has
            one. `mark_seen` sets bits.
        counts: (S, V) int32, how often each token was generated, needed where a request has a frequency penalty.
        bias: (S, V) float32, added to the logits of a request: a logit bias, and -inf for tokens that it may not take.
        back: (B,) int64, as in `apply_schedule_`.
        stream: of several draws from one distribution, which.
        scale, softcap: what the model does to the product of its output layer, where `logits` (but not `tuned` and
            `base`) are that product, as in `token_logprob`.

    Returns:
        `SampledStep`. The schedule's replay needs delta, temperature and the schedule's ids (`replay_logprob`), which
        gives `logp + kept.log()`; where the temperature is 0 the token is certain: leave it out of the ratio.

    Raises:
        ValueError: a shape, dtype, stride or device does not fit, one of `tuned` and `base` alone; on the CPU also a
            slot or a sampling value out of range, a penalty without `seen` or `counts`, a beta other than 1 without
            `tuned` and `base`. On CUDA, where checking would synchronize, these have no effect there.

    Ties: equal logits are kept together, where a sort would cut among them at random.

    Source: the filters as in transformers; EFT (arXiv 2310.12962), GRPO-ATS (temperature by phase), Gumbel-max.
    """
    state, schedules, sets, knots, _, sampling = tables
    results = _sample_step(
        logits, state, schedules, sets, knots, sampling, slots, tuned, base, back, seen, counts, bias, stream,
        *form_of("sample_step", scale, softcap),
    )  # fmt: skip
    return SampledStep(*results)


@explained
def mark_seen(seen: Tensor, slots: Tensor, tokens: Tensor, bit: int = GENERATED) -> None:
    """Sets a bit for the (B,) or (B, W) int64 tokens of these slots (B,) in `seen` (S, V) uint8, in place. A slot or a
    token below 0 is none, as `sample_step` gives them for a row of no request.

    Raises ValueError where a shape or a dtype does not fit, and (on the CPU) a slot or token is out of range.
    """
    op = "mark_seen"
    if seen.dtype != torch.uint8 or seen.dim() != 2 or not seen.is_contiguous():
        raise ValueError(f"{op}: seen must be uint8 (S, V), contiguous, got {seen.dtype} {tuple(seen.shape)}")
    if slots.dim() != 1 or tokens.dim() not in (1, 2) or len(tokens) != len(slots):
        raise ValueError(
            f"{op}: slots must be (B,) and tokens (B,) or (B, W), got {tuple(slots.shape)} and {tuple(tokens.shape)}"
        )
    tokens = tokens.reshape(len(slots), -1) if len(slots) else tokens.reshape(0, 1)
    rows = slots.unsqueeze(1).expand_as(tokens)
    for name, index, size in (("slots", rows, seen.shape[0]), ("tokens", tokens, seen.shape[1])):
        if index.is_cpu and index.numel() and int(index.max()) >= size:
            raise ValueError(f"{op}: {name} must be below {size}, got {int(index.max())}")
    real = (rows >= 0) & (tokens >= 0)
    rows, tokens = rows.where(real, 0), tokens.where(real, 0)
    marked = seen[rows, tokens] | (bit * real).to(torch.uint8)
    # Rows that are none change nothing: of several values for one place the largest, which has the bit, stays.
    seen.view(-1).scatter_reduce_(0, (rows * seen.shape[1] + tokens).view(-1), marked.view(-1), "amax")


@explained
def continuous_tokens(
    logits: Tensor, tables: ReflectionTables, slots: Tensor, embedding: Tensor, count: int, **options
) -> tuple[Tensor, SampledStep]:
    """CoT2's continuous token: the mean embedding of `count` draws from each row's distribution.

    embedding: (V, D). Returns (B, D) in its dtype and the draws, a `SampledStep` of (B, count) tensors; the ratio of a
    policy update is of the mean (or sum) of their log-probs. One draw is ordinary decoding. The draws are the streams 0
    to count - 1. Raises ValueError on a count below 1, and what `sample_step` raises.
    """
    if count < 1:
        raise ValueError(f"continuous_tokens: count must be at least 1, got {count}")
    if embedding.dim() != 2 or logits.dim() != 2 or embedding.shape[0] < logits.shape[1]:
        raise ValueError(
            f"continuous_tokens: logits must be (B, V) and embedding (V, D), got {tuple(logits.shape)} and "
            f"{tuple(embedding.shape)}"
        )
    draws = [sample_step(logits, tables, slots, stream=k, **options) for k in range(count)]
    steps = SampledStep(*(torch.stack(column, 1) for column in zip(*draws, strict=True)))
    return embedding[steps.token].float().mean(1).to(embedding.dtype), steps
