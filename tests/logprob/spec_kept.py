"""Case table of the sparse support: `linear_logprob(kept=...)`, which makes the logits of the kept tokens alone."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.logprob.spec_linear_logprob import linear_logprob_bytes, linear_logprob_inputs
from tests.logprob.spec_token_logprob import flags_of, tokens_of
from tests.support.case import Case, Inputs
from warpup import KeptTokens
from warpup.logprob.linear_logprob import reference_linear_logprob
from warpup.logprob.replay_logprob import OF_ROWS


def kept_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(N, H, V). Those of `linear_logprob`, some tokens of each row kept; in variant `ignored` a row has none."""
    x = linear_logprob_inputs(size, dtype, "cpu", seed, variant)
    for name in ("chunk", "kept_mask"):
        x.pop(name, None)
    rows, _, vocab = size
    mask = torch.rand(rows, vocab, generator=torch.Generator().manual_seed(seed)) < 0.3
    mask.scatter_(1, x["targets"].clamp_min(0).unsqueeze(1), True)
    if variant == "ignored":
        mask[0] = False
    x = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    return x | {"kept": KeptTokens(*(t.to(device) for t in KeptTokens.from_mask(mask)))}


def kept_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    products = (x["hidden"], x["weight"], x["bias"], x["kept"].token_ids.long(), x["kept"].offsets)
    logits = ops.kept_logits(*products)
    rows = (logits, *products[3:], *tokens_of(x, x["weight"].shape[0])[:OF_ROWS])
    logp, *_, stats = ops.kept_softmax(*rows, *flags_of(x))
    gradients = (logp, *(logp if asked else None for asked in flags_of(x)))
    return [
        ("kept_logits", products),
        ("kept_logits_backward", (*products, logits, [True, True, True])),
        ("kept_softmax", (*rows, *flags_of(x))),
        ("kept_softmax_backward", (*rows, stats, *gradients)),
    ]


CASES = [
    Case(
        op="kept_logits",
        family="logprob",
        call=warpup.linear_logprob,
        reference=reference_linear_logprob,
        sizes={
            "grad": (3, 4, 7),
            "small": (5, 19, 131),
            "threads": (64, 32, 3000),
            "overhead": (2, 4, 16),
            "bench": (2048, 1024, 32000),
        },
        variants=("plain", "ignored", "entropy", "all"),
        inputs=kept_inputs,
        differentiable=("hidden", "weight", "bias"),
        raw=kept_raw,
        core=None,
        products=True,
        backends=("cpu", "cuda"),
        bytes=linear_logprob_bytes,
    ),
]
