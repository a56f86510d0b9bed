"""Family `logprob`: log-probabilities from hidden states, beside the products alone, what makes the logits, and what
does not (torch's `linear_cross_entropy`, the function that TRL's trainers call, Liger-Kernel's loss).

On a CPU without instructions for bfloat16 the peers take minutes for its products: WARPUP_BENCH_SLOW adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, compiled, differentiable, expected, moved
from bench.harness.timing import Candidate
from bench.peers import slow_products
from tests.support.cases import OPS, gradients_of
from warpup import KeptTokens
from warpup._products import widened

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SHAPES = {"cpu": (1024, 1024, 32000), "cuda": (8192, 4096, 151936), "quick": (8, 16, 500)}
GEMMS = {"forward": 1, "backward": 3, "forward+backward": 4}  # logits; logits again, two gradients
PRODUCTS = "its GEMMs alone"
KEPT = 64  # tokens of each row that a filter left


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for dtype in DTYPES if device == "cpu" else (torch.bfloat16,):
        for direction in DIRECTIONS:
            goals = {PRODUCTS: 0.8, "eager": 1} if size != "quick" and direction == "forward+backward" else {}
            name = f"linear_logprob {direction} {DTYPES[dtype]} {list(shape)}"
            yield Comparison(name, partial(linear_logprob, device, shape, dtype, direction), goals)
        name = f"linear_logprob {KEPT} kept, forward+backward {DTYPES[dtype]} {list(shape)}"
        yield Comparison(
            name, partial(kept_logprob, device, shape, dtype), {"all logits": 1} if size != "quick" else {}
        )
        batched = [shape[0] // 512 or 1, min(512, shape[0]), *shape[1:]]
        goals = {PRODUCTS: 0.8, "eager": 1} if size != "quick" else {}
        name = f"linear_policy_loss forward+backward {DTYPES[dtype]} {batched}"
        yield Comparison(name, partial(linear_policy_loss, device, tuple(batched), dtype), goals)


def test_logprob_linear(case, measure):
    measure(case)


@lru_cache(1)  # the cases of one dtype follow each other
def inputs_of(device, shape, dtype):
    inputs = OPS["linear_logprob"].inputs(shape, dtype, device, 0, "plain")
    return {k: inputs[k] for k in ("hidden", "weight", "targets")}


@lru_cache(1)
def results_of(device, shape, dtype):
    """Log-probs and gradients in float64, some rows at a time."""
    x = inputs_of(device, shape, dtype)
    (g,) = gradients_of([torch.empty(shape[0], device=device)])
    weight = x["weight"].double().requires_grad_()
    logp, grad_hidden, grad_weight = [], [], torch.zeros_like(weight)
    for h, y, gradient in zip(*(t.split(256) for t in (x["hidden"], x["targets"], g)), strict=True):
        h = h.double().requires_grad_()
        out = OPS["linear_logprob"].reference(h, weight, y)
        found = torch.autograd.grad(out, (h, weight), gradient.double())
        logp.append(out.detach()), grad_hidden.append(found[0])
        grad_weight += found[1]
    return torch.cat(logp), torch.cat(grad_hidden), grad_weight.detach()


def eager(hidden, weight, targets):
    """Cross-entropy from logits, as trainers write it: accumulated in float32 whatever the logits are."""
    logits = torch.nn.functional.linear(hidden, weight)
    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def chunked_cross_entropy() -> Callable | None:
    """torch's (from 2.13 on), in chunks, so that it keeps no logits; its default makes them all."""
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return None
    chunks = torch.nn.LinearCrossEntropyOptions()

    def logprob(hidden, weight, targets):
        return -torch.nn.functional.linear_cross_entropy(hidden, weight, targets, reduction="none", options=chunks)

    return logprob


def trl_chunked() -> Callable | None:
    """What TRL's trainers score tokens with (1.16), its optional outputs left out."""
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as size
    except ImportError:
        return None
    return lambda hidden, weight, targets: ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, size, None, 1.0, ()
    )[0]


def products(x, direction, logits_made: int) -> Candidate:
    """The matrix products of `direction` in one piece each, on memory that is there; in float32 where the library is
    slow at 16 bits."""
    hidden, weight = widened(x["hidden"].flatten(0, -2), x["weight"])
    logits, out_hidden, out_weight = hidden @ weight.t(), torch.empty_like(hidden), torch.empty_like(weight)

    def run():
        for _ in range(logits_made):
            torch.mm(hidden, weight.t(), out=logits)
        if "backward" in direction:
            torch.mm(logits, weight, out=out_hidden)
            torch.mm(logits.t(), hidden, out=out_weight)

    return Candidate(run, result=None)


def linear_logprob(device, shape, dtype, direction) -> Work:
    op = OPS["linear_logprob"]
    x = inputs_of(device, shape, dtype)
    peers = {"eager": eager, "torch.compile": compiled(eager)}
    peers |= {"torch linear_cross_entropy": chunked_cross_entropy(), "TRL chunked": trl_chunked()}
    rows, width, vocab = shape
    flops = 2 * rows * width * vocab * GEMMS[direction]
    peers, left_out = slow_products(peers, dtype, device, flops)
    functions = {"warpup": op.call, **peers}
    candidates = {n: differentiable(f, x, ("hidden", "weight"), direction) for n, f in functions.items()}
    candidates[PRODUCTS] = products(x, direction, len(direction.split("+")))
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(x)),
        reference=lambda: expected(direction, results_of(device, shape, dtype), 2),
        flops=flops,
        dtype=dtype,
        left_out=left_out,
    )


def kept_logprob(device, shape, dtype) -> Work:
    """The logits of the kept tokens alone, beside all of them under a mask."""
    x, direction = dict(inputs_of(device, shape, dtype)), "forward+backward"
    rows, width, vocab = shape
    generator = torch.Generator().manual_seed(0)
    step = vocab // KEPT
    ids = torch.arange(KEPT) * step + torch.randint(step, (rows, KEPT), generator=generator)
    ids, x["targets"] = ids.to(device), ids[:, 0].to(device)
    kept = KeptTokens.from_counts(ids.flatten().int(), torch.full((rows,), KEPT, device=device))
    mask = kept.to_mask(vocab)
    op = OPS["linear_logprob"].call
    functions = {"warpup": partial(op, kept=kept), "all logits": partial(op, kept_mask=mask)}
    candidates = {n: differentiable(f, x, ("hidden", "weight"), direction) for n, f in functions.items()}

    def reference():
        """Some rows at a time, in float64."""
        (g,) = gradients_of([torch.empty(rows, device=device)])
        weight = x["weight"].double()
        logp, grad_hidden, grad_weight = [], [], torch.zeros_like(weight)
        for h, i, gradient in zip(*(t.split(256) for t in (x["hidden"], ids, g)), strict=True):
            h, w = h.double().requires_grad_(), weight[i].requires_grad_()
            out = torch.log_softmax((w @ h.unsqueeze(2)).squeeze(2), 1)[:, 0]
            found = torch.autograd.grad(out, (h, w), gradient.double())
            logp.append(out.detach()), grad_hidden.append(found[0])
            grad_weight.index_add_(0, i.flatten(), found[1].flatten(0, 1))
        return torch.cat(logp), torch.cat(grad_hidden), grad_weight

    return Work(
        candidates,
        bytes=moved(direction, OPS["linear_logprob"].bytes(x)),
        reference=reference,
        flops=6 * rows * width * KEPT,
        dtype=dtype,
    )


def loss_of(function):
    """Without the metrics, which are those of `policy_loss`."""
    return lambda **inputs: function(**inputs)[0]


@cache
def liger():
    """Liger-Kernel's chunked loss, whose gradients are made in the forward as well; a sequence at a time."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    except ImportError:
        return None
    loss = LigerFusedLinearGRPOLoss(loss_type="bnpo", use_ref_model=False, beta=0.0)
    return lambda hidden, weight, targets, old_logp, advantages, mask, kind: loss(
        hidden, weight, targets, mask, advantages, old_per_token_logps=old_logp
    )


def linear_policy_loss(device, shape, dtype) -> Work:
    op, direction = OPS["linear_policy_loss"], "forward+backward"
    x = op.inputs(shape, dtype, device, 0, "plain")
    x = {k: v for k, v in x.items() if k != "bias"}
    peers = {"eager": op.reference, "torch.compile": compiled(op.reference), "Liger-Kernel": liger()}
    batch, length, width, vocab = shape
    flops = 6 * batch * length * width * vocab
    peers, left_out = slow_products(peers, dtype, device, flops)
    functions = {"warpup": op.call, **peers}
    candidates = {n: differentiable(loss_of(f), x, ("hidden", "weight"), direction) for n, f in functions.items()}
    candidates[PRODUCTS] = products(x, direction, 1)

    def reference():
        """A sequence at a time, in float64."""
        weight = x["weight"].double().requires_grad_()
        gradient = gradients_of([torch.empty((), device=device)])[0].double()
        divisor, grad_weight, parts = ("token", float(x["mask"].sum())), torch.zeros_like(weight), []
        for i in range(batch):
            part = {k: x[k][i : i + 1] for k in ("targets", "old_logp", "advantages", "mask")}
            part |= {k: v.double() for k, v in part.items() if v.is_floating_point()}
            hidden = x["hidden"][i : i + 1].double().requires_grad_()
            loss, _ = op.reference(hidden, weight, **part, normalizer=divisor)
            found = torch.autograd.grad(loss, (hidden, weight), gradient)
            parts.append((loss.detach(), found[0]))
            grad_weight += found[1]
        return sum(p[0] for p in parts), torch.cat([p[1] for p in parts]), grad_weight.detach()

    return Work(
        candidates,
        bytes=moved(direction, op.bytes(x)),
        reference=reference,
        flops=flops,
        dtype=dtype,
        left_out=left_out,
    )
