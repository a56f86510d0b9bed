"""Family `logprob`: log-probabilities of tokens from logits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache, partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, compiled, differentiable, expected, moved
from tests.support.cases import OPS, gradients_of, leaves

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SHAPES = {"cpu": (1024, 32000), "cuda": (8192, 151936), "quick": (8, 1000)}
SEVERAL = 20  # of the likeliest tokens, as a distillation scores
GOALS = {torch.float32: {"eager": 8, "torch.compile": 5.5}, torch.bfloat16: {"eager": 12, "torch.compile": 8}}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for dtype in DTYPES:
        for entropy in (False, True):
            for direction in DIRECTIONS if not entropy else ("forward", "forward+backward"):
                name = f"token_logprob{'+entropy' * entropy} {direction} {DTYPES[dtype]} {list(shape)}"
                goals = GOALS[dtype] if (size, direction, entropy) == ("cpu", "forward+backward", False) else {}
                yield Comparison(name, partial(token_logprob, device, shape, dtype, entropy, direction), goals)
        name = f"token_logprob of {SEVERAL} tokens a row forward+backward {DTYPES[dtype]} {list(shape)}"
        yield Comparison(name, partial(several, device, shape, dtype))


def test_logprob(case, measure):
    measure(case)


# ---- token_logprob --------------------------------------------------------------------------------------------------


def eager(logits, targets, temperature, entropy, dtype=torch.float32):
    """What a careful trainer writes: the plain formula, accumulated in float32 whatever the logits are."""
    all_logp = torch.log_softmax(logits, -1, dtype=dtype)
    logp = all_logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (logp, -(all_logp.exp() * all_logp).sum(-1)) if entropy else logp


@cache
def trl():
    try:
        from trl.trainer.utils import selective_log_softmax
    except ImportError:
        return None
    return lambda logits, targets, temperature, entropy: selective_log_softmax(logits, targets)


@lru_cache(1)  # the cases of one shape and dtype follow each other
def token_logprob_inputs(device, shape, dtype):
    rows = min(shape[0], 1024)  # the case table draws on the host: slow for gigabytes, so rows come again
    inputs = OPS["token_logprob"].inputs((rows, *shape[1:]), dtype, device, 0, "plain")
    again = {k: inputs[k].repeat(shape[0] // rows, *[1] * (inputs[k].dim() - 1)) for k in ("logits", "targets")}
    return {**inputs, **again}


@lru_cache(1)
def token_logprob_results(device, shape, dtype, entropy):
    """Outputs and gradient in float64, some rows at a time."""
    inputs = token_logprob_inputs(device, shape, dtype)
    like = torch.empty(shape[:-1], device=device)
    grads = gradients_of([like] * (1 + entropy))
    parts = []
    for x, y, *g in zip(*(t.split(128) for t in (inputs["logits"], inputs["targets"], *grads)), strict=True):
        x = x.double().requires_grad_()
        out = leaves(OPS["token_logprob"].reference(x, y, entropy=entropy))
        parts.append((*(o.detach() for o in out), *torch.autograd.grad(out, x, [v.double() for v in g])))
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def token_logprob(device, shape, dtype, entropy, direction) -> Work:
    op = OPS["token_logprob"]
    inputs = token_logprob_inputs(device, shape, dtype) | {"entropy": entropy}

    def make(function, **options):
        return differentiable(function, inputs, op.differentiable, direction, **options)

    candidates = {"warpup": make(op.call)}
    if direction != "forward":
        candidates["warpup, inplace_backward"] = make(partial(op.call, inplace_backward=True), consumes=True)
    candidates["eager"] = make(eager)
    candidates["torch.compile"] = make(compiled(eager))
    if dtype != torch.float32:
        candidates["eager, all in 16 bits"] = make(partial(eager, dtype=dtype))
    if not entropy and trl():
        candidates["TRL selective_log_softmax"] = make(trl())
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: expected(direction, token_logprob_results(device, shape, dtype, entropy), 1),
    )


# ---- several targets a row ------------------------------------------------------------------------------------------


def one_by_one(logits, targets):
    """A call for each of the K targets."""
    return torch.stack([OPS["token_logprob"].call(logits, y) for y in targets.unbind(-1)], -1)


def eager_several(logits, targets):
    return torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, targets)


def several(device, shape, dtype) -> Work:
    op, direction = OPS["token_logprob"], "forward+backward"
    logits = token_logprob_inputs(device, shape, dtype)["logits"]
    inputs = {"logits": logits, "targets": logits.float().topk(SEVERAL).indices}
    functions = {"warpup": op.call, "eager": eager_several, "torch.compile": compiled(eager_several)}
    if dtype == torch.float32:  # in 16 bits each call's gradient is rounded, and so is each sum of two
        functions["warpup, a call a target"] = one_by_one

    def results():
        """Log-probs and gradient in float64, some rows at a time."""
        (cotangent,) = gradients_of([torch.empty(inputs["targets"].shape, device=device)])
        parts = []
        for x, y, g in zip(*(t.split(128) for t in (*inputs.values(), cotangent)), strict=True):
            x = x.double().requires_grad_()
            logp = op.reference(x, y)
            parts.append((logp.detach(), *torch.autograd.grad(logp, x, g.double())))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    return Work(
        {name: differentiable(f, inputs, op.differentiable, direction) for name, f in functions.items()},
        bytes=moved(direction, op.bytes(inputs)),
        reference=results,
    )
