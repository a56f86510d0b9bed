"""Family `logprob`: log-probabilities of tokens from logits, and the policy losses on them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache, partial

import torch
from measure import DIRECTIONS, Case, Work, differentiable, expected

import warpup
from warpup.ops.logprob import reference_token_logprob

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SHAPES = {"cpu": (1024, 32000), "cuda": (8192, 151936), "quick": (8, 1000)}
GOALS = {torch.float32: {"eager": 8, "torch.compile": 5.5}, torch.bfloat16: {"eager": 12, "torch.compile": 8}}


def cases(device: str, size: str) -> Iterator[Case]:
    shape = SHAPES[size]
    for dtype in DTYPES:
        for entropy in (False, True):
            for direction in DIRECTIONS:
                name = f"token_logprob{'+entropy' * entropy} {direction} {DTYPES[dtype]} {list(shape)}"
                goals = GOALS[dtype] if direction == "forward+backward" and size == "cpu" and not entropy else {}
                yield Case(name, partial(token_logprob, device, shape, dtype, entropy, direction), goals)


def test_logprob(case, measure):
    measure(case)


# ---- token_logprob --------------------------------------------------------------------------------------------------


def eager(logits, targets, entropy=False, dtype=torch.float32):
    all_logp = torch.log_softmax(logits, -1, dtype=dtype)
    logp = all_logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (logp, -(all_logp.exp() * all_logp).sum(-1)) if entropy else logp


@cache
def compiled(entropy: bool):
    return torch.compile(partial(eager, entropy=entropy), fullgraph=True, dynamic=False)


def trl():
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError:
        return None
    return selective_log_softmax


@lru_cache(1)  # the cases of one shape and dtype follow each other
def token_logprob_inputs(device, shape, dtype):
    logits = 3 * torch.randn(shape, device=device, dtype=dtype)
    targets = torch.randint(shape[-1], shape[:-1], device=device)
    return logits, targets, torch.randn(shape[:-1], device=device), torch.randn(shape[:-1], device=device)


@lru_cache(1)
def token_logprob_reference(device, shape, dtype, entropy):
    """Outputs and gradient in float64, some rows at a time."""
    logits, targets, *grads = token_logprob_inputs(device, shape, dtype)
    parts = []
    for x, y, *g in zip(*(t.split(128) for t in (logits, targets, *grads)), strict=True):
        x = x.double().requires_grad_()
        out = reference_token_logprob(x, y, entropy=entropy)
        out = out if entropy else (out,)
        parts.append((*(o.detach() for o in out), *torch.autograd.grad(out, x, [v.double() for v in g[: len(out)]])))
    *outputs, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
    return outputs, [gradient]


def token_logprob(device, shape, dtype, entropy, direction) -> Work:
    logits, targets, *grads = token_logprob_inputs(device, shape, dtype)
    grads = grads[: 1 + entropy]
    make = partial(differentiable, inputs=(logits, targets), direction=direction, grads=grads)
    ours = partial(warpup.token_logprob, entropy=entropy)
    candidates = {"warpup": make(ours)}
    if direction != "forward":
        candidates["warpup, inplace_backward"] = make(partial(ours, inplace_backward=True), consumes=True)
    candidates["eager"] = make(partial(eager, entropy=entropy))
    candidates["torch.compile"] = make(compiled(entropy))
    if dtype is not torch.float32:
        low = [g.to(dtype) for g in grads]
        candidates["eager, 16 bits throughout"] = make(partial(eager, entropy=entropy, dtype=dtype), grads=low)
    if not entropy and (peer := trl()):
        low = [g.to(dtype) for g in grads]
        candidates["TRL selective_log_softmax"] = make(peer, grads=low)
    passes = {"forward": 1, "backward": 2, "forward+backward": 3}[direction]
    return Work(
        candidates,
        bytes=passes * logits.nbytes + (passes > 1) * sum(g.nbytes for g in grads) + targets.nbytes,
        reference=lambda: expected(direction, *token_logprob_reference(device, shape, dtype, entropy)),
    )
