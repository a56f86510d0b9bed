"""Case table of `logprob`: log-probabilities from logits."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup._op import accumulator
from warpup.logprob import token_logprob as logprob
from warpup.policy import linear_policy_loss as logprob_linear_policy
from warpup.policy.kinds import PolicyOptions

EXTRAS = ("entropy", "lse", "sum_p2")
SIZES = {"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (1024, 32000)}


def targets_and_options(logits, generator, variant) -> Inputs:
    """Variants: plain; ignored (an ignored row); entropy (the same, entropies, a temperature a row); capped (entropies,
    of a scale and a soft cap); all (every result, replayed: a delta a row on some tokens, others not kept, capped);
    several (four targets a row, one of them twice, some ignored, a row's all; entropies, a temperature a row)."""
    *lead, vocab = logits.shape
    several = (4,) if variant == "several" else ()
    targets = torch.randint(vocab, (*lead, *several), generator=generator)
    inputs: Inputs = {"targets": targets, "temperature": 1.0, "entropy": False}
    if variant != "plain":
        targets[targets == 1] = 0
        targets.view(-1)[0] = logprob.IGNORE_INDEX
    if several:
        targets[..., 2] = targets[..., 1]
        targets.view(-1, *several)[1] = logprob.IGNORE_INDEX
    if variant in ("capped", "all"):
        inputs |= {"scale": 1.5, "softcap": 4.0}
    if variant in ("entropy", "capped", "all", "several"):
        inputs |= {"entropy": True, "temperature": torch.rand(lead, generator=generator) + 0.5}
    if variant == "all":
        kept = (torch.rand(logits.shape, generator=generator) < 0.8).scatter(
            -1, targets.clamp_min(0).unsqueeze(-1), True
        )
        delta = 3 * torch.randn(lead, generator=generator)
        chosen = torch.arange(vocab) % 5 == 0
        inputs |= {"lse": True, "sum_p2": True, "delta": delta, "token_set": chosen, "kept_mask": kept}
    return inputs


def tokens_of(x: Inputs, vocab: int) -> logprob.SampledTokens:
    options = {k: x[k] for k in ("delta", "token_set", "kept_mask", "scale", "softcap") if k in x}
    options["lead"] = x["logits" if "logits" in x else "hidden"].dim() - 1
    return logprob.sampled_tokens("case", vocab, x["targets"], x["temperature"], logprob.IGNORE_INDEX, **options)


def flags_of(x: Inputs) -> tuple[bool, ...]:
    """with_entropy, with_lse, with_sum_p2."""
    return tuple(x.get(name, False) for name in EXTRAS)


def saved_and_gradients(x: Inputs, found: tuple) -> tuple:
    """What a backward takes beside the inputs: of the forward's results, and as gradients these themselves."""
    logp, *others, stats = found
    entropy, lse, sum_p2 = (o if asked else None for o, asked in zip(others, flags_of(x), strict=True))
    return stats, entropy, sum_p2, logp, entropy, lse, sum_p2


def token_logprob_inputs(size, dtype, device, seed, variant) -> Inputs:
    """The variants of `targets_and_options`, all but `plain` with `-inf` logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
    options = targets_and_options(logits, generator, variant)
    if variant != "plain":
        logits[..., 1] = -torch.inf
    return moved_to(device, {"logits": logits, **options})


def token_logprob_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    logits, flags, vocab = x["logits"], flags_of(x), x["logits"].shape[-1]
    arguments = (logits, *tokens_of(x, vocab))
    found = ops.token_logprob(*arguments, *flags)
    logp, *_, stats = found
    outputs = [torch.empty_like(o) if asked else None for o, asked in zip(found, (True, *flags), strict=False)]
    targets = logp.shape[logits.dim() - 1 :].numel()
    state = logits.new_empty(*logits.shape[:-1], 4 + targets, dtype=logp.dtype)
    backward = saved_and_gradients(x, found)
    return [
        ("token_logprob", (*arguments, *flags)),
        ("token_logprob_slice_", (*arguments, 0, vocab, state, *outputs, torch.empty_like(stats))),
        ("token_logprob_backward", (*arguments, *backward)),
        ("token_logprob_backward_", (logits.clone(), *arguments[1:], *backward, 0, vocab)),
    ]


def token_logprob_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    shape, dtype = tuple(x["logits"].shape), name_of(x["logits"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    stats, grad = new((*shape[:-1], 2), acc), new(shape, dtype)
    names = ("logp", *(name for name, asked in zip(EXTRAS, flags_of(x), strict=True) if asked))
    outputs = {name: new(shape[:-1], acc) for name in names} | {"logp": new(tuple(x["targets"].shape), acc)}
    scalar = isinstance(x["temperature"], float)
    common = {"temperature_scalar" if scalar else "temperature": x["temperature"], "stats": stats}
    common |= {name: x[name] for name in ("token_set", "kept_mask", "delta", "scale", "softcap") if name in x}
    saved = {name: outputs[name] for name in ("entropy", "sum_p2") if name in outputs}
    grads = {f"grad_{name}": g for name, g in zip(names, gradients, strict=False)}

    def forward():
        core.token_logprob(x["logits"], x["targets"], **outputs, **common)
        return tuple(outputs.values())

    def backward():
        core.token_logprob_backward(x["logits"], x["targets"], grad_logits=grad, **saved, **grads, **common)
        return (grad,)

    return forward, backward


def token_logprob_bytes(x: Inputs) -> tuple[int, int]:
    size = x["logits"].numel() * x["logits"].element_size()
    return size, 2 * size


def linear_policy_loss_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(B, T, H, V). Variants: plain; full (per-token advantages, KL, entropy bonus, weights, a bias, chunks that do not
    divide the rows); gspo (two passes)."""
    batch, length, width, vocab = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(batch, length, width).to(dtype), (2 * normal(vocab, width) / width**0.5).to(dtype)
    targets = torch.randint(vocab, (batch, length), generator=generator)
    acc = accumulator(hidden)
    logp = logprob.reference_token_logprob((hidden.double() @ weight.double().t()), targets)
    inputs: Inputs = {
        "hidden": hidden,
        "weight": weight,
        "bias": torch.zeros(vocab, dtype=dtype),
        "targets": targets,
        "old_logp": (logp + 0.05 * normal(batch, length)).to(acc),
        "advantages": normal(batch).abs().to(acc),
        "mask": torch.rand(batch, length, generator=generator) < 0.8,
        "kind": "gspo" if variant == "gspo" else "grpo",
    }
    if variant == "full":
        inputs |= {"advantages": normal(batch, length).to(acc), "weights": normal(batch).abs().to(acc), "chunk": 4}
        inputs |= {"ref_logp": (logp - 0.1).to(acc), "kl_coef": 0.1, "entropy_coef": 0.01, "normalizer": "sequence"}
        inputs |= {"bias": normal(vocab).to(dtype), "temperature": 0.8, "scale": 0.9, "softcap": 3.0}
    return moved_to(device, inputs)


def linear_policy_loss_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    rows, vocab = x["targets"].numel(), x["weight"].shape[0]
    form = {k: x[k] for k in ("scale", "softcap") if k in x}
    given = logprob.sampled_tokens(
        "case", vocab, x["targets"], x.get("temperature", 1.0), logprob.IGNORE_INDEX, **form
    ).flattened(x["targets"].dim())
    tensors = {"hidden": x["hidden"].reshape(rows, -1), "weight": x["weight"], "bias": x["bias"]}
    tensors |= {k: x[k].reshape(-1) for k in ("old_logp", "mask")} | dict.fromkeys(("ref_logp", "weights", "penalty"))
    tensors["advantages"] = tensors["token_weight"] = torch.ones_like(tensors["old_logp"])
    options = PolicyOptions(entropy_coef=x.get("entropy_coef", 0.0)).raw()
    named = {**tensors, **given._asdict(), **options, "chunk": x.get("chunk", 0), "needs": [True, True, True]}
    op = ops.linear_policy_gradients
    return [("linear_policy_gradients", tuple(named[a.name] for a in op.default._schema.arguments))]


CASES = [
    Case(
        op="token_logprob",
        family="logprob",
        call=lambda logits, targets, **options: (
            warpup.replay_logprob(logits, targets, **options)
            if "delta" in options
            else warpup.token_logprob(logits, targets, **options)
        ),
        reference=logprob.reference_token_logprob,
        sizes=SIZES,
        variants=("plain", "ignored", "entropy", "capped", "several", "all"),
        inputs=token_logprob_inputs,
        differentiable=("logits",),
        raw=token_logprob_raw,
        core=token_logprob_core,
        bytes=token_logprob_bytes,
    ),
    Case(
        op="linear_policy_loss",
        family="logprob",
        call=warpup.linear_policy_loss,
        reference=logprob_linear_policy.reference_linear_policy_loss,
        sizes={
            "grad": (2, 3, 4, 7),
            "small": (3, 5, 19, 131),
            "threads": (4, 16, 32, 3000),
            "overhead": (1, 2, 4, 16),
            "bench": (4, 512, 1024, 32000),
        },
        variants=("plain", "full", "gspo"),
        inputs=linear_policy_loss_inputs,
        differentiable=("hidden", "weight", "bias"),
        raw=linear_policy_loss_raw,
        core=None,
        products=True,
        stopped=("plain", "full"),  # the backward runs once: autograd through the reference is what checks it
        bytes=lambda x: (x["weight"].nbytes, 2 * x["weight"].nbytes),
    ),
]
