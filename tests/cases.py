"""One table of the operators, for tests and benchmarks: how to call each op, on what, and what it must equal.

Adding an op adds an entry to `CASES`; `test_contract.py` then holds it to everything that every op promises.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import cases_advantage
import cases_advantage_tokens
import warpup
from case import Case, Inputs, New, Thunk, agree, gradients_of, leaves, name_of, nudged, upcast
from warpup._native import core
from warpup.ops import logprob

__all__ = ["CASES", "Case", "Inputs", "agree", "gradients_of", "leaves", "name_of", "nudged", "upcast"]


# ---- logprob --------------------------------------------------------------------------------------------------------


def token_logprob_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; ignored (an ignored row, `-inf` logits); entropy (the same, entropies, a temperature a row)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(size[-1], size[:-1], generator=generator)
    inputs: Inputs = {"logits": logits, "targets": targets, "temperature": 1.0, "entropy": False}
    if variant != "plain":
        logits[..., 1] = -torch.inf
        targets[targets == 1] = 0
        targets.view(-1)[0] = logprob.IGNORE_INDEX
    if variant == "entropy":
        inputs |= {"entropy": True, "temperature": torch.rand(size[:-1], generator=generator) + 0.5}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _token_logprob_arguments(x: Inputs) -> tuple:
    per_row = None if isinstance(x["temperature"], float) else x["temperature"]
    return x["logits"], x["targets"], per_row, x["temperature"] if per_row is None else 1.0, logprob.IGNORE_INDEX


def token_logprob_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    arguments = _token_logprob_arguments(x)
    logp, entropy, stats = ops.token_logprob(*arguments, x["entropy"])
    saved = (stats, entropy, logp, entropy) if x["entropy"] else (stats, None, logp, None)
    inplace = (arguments[0].clone(), *arguments[1:], *saved)
    return [
        ("token_logprob", (*arguments, x["entropy"])),
        ("token_logprob_backward", (*arguments, *saved)),
        ("token_logprob_backward_", inplace),
    ]


def token_logprob_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *positional, scalar, ignore_index = _token_logprob_arguments(x)
    shape, dtype = tuple(x["logits"].shape), name_of(x["logits"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    logp, stats, grad = new(shape[:-1], acc), new((*shape[:-1], 2), acc), new(shape, dtype)
    entropy = new(shape[:-1], acc) if x["entropy"] else None
    common = {"temperature_scalar": scalar, "ignore_index": ignore_index, "stats": stats, "entropy": entropy}
    grads = dict(zip(("grad_logp", "grad_entropy"), gradients, strict=False))

    def forward():
        core.token_logprob(*positional, logp=logp, **common)
        return (logp, entropy) if x["entropy"] else (logp,)

    def backward():
        core.token_logprob_backward(*positional, grad_logits=grad, **grads, **common)
        return (grad,)

    return forward, backward


def token_logprob_bytes(x: Inputs) -> tuple[int, int]:
    size = x["logits"].numel() * x["logits"].element_size()
    return size, 2 * size


def policy_loss_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; kl (a reference policy, advantages a token, each sequence counts once); dr_grpo; masked (an
    empty row, NaN under the mask, an explicit divisor)."""
    generator = torch.Generator().manual_seed(seed)
    logp, old_logp, ref_logp = (
        -torch.rand(size, generator=generator, dtype=torch.float64) - shift for shift in (0.5, 0.4, 0.6)
    )
    mask = torch.rand(size, generator=generator) < 0.8
    advantages = torch.randn(size[:1], generator=generator, dtype=torch.float64)
    inputs: Inputs = {"kind": {"dr_grpo": "dr_grpo", "masked": "dapo"}.get(variant, "grpo")}
    if variant == "kl":
        advantages = torch.randn(size, generator=generator, dtype=torch.float64)
        inputs |= {"ref_logp": ref_logp.to(dtype), "kl_coef": 0.1, "normalizer": "sequence"}
    if variant == "masked":
        mask[0] = False
        old_logp[~mask], inputs["normalizer"] = torch.nan, 7.0
    inputs |= {"logp": logp.to(dtype), "old_logp": old_logp.to(dtype), "advantages": advantages.to(dtype), "mask": mask}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _policy_loss_arguments(x: Inputs) -> tuple[list, tuple, tuple]:
    """Tensors, formula, normaliser, as the raw ops take them."""
    kind = logprob.POLICY_KINDS[x["kind"]]
    per_sequence, denominator, value = logprob._normalizer(x.get("normalizer"), x["kind"])
    tensors = [x.get(name) for name in ("logp", "old_logp", "advantages", "mask", "ref_logp")]
    return tensors, (kind.formula, *kind.clip, 0.0, 0.0, x.get("kl_coef", 0.0)), (per_sequence, denominator, value)


def policy_loss_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, formula, normalize = _policy_loss_arguments(x)
    forward = (*tensors, None, *formula, *normalize)
    loss, _, row_weight = ops.policy_loss(*forward)
    return [("policy_loss", forward), ("policy_loss_backward", (*tensors, *formula, row_weight, loss))]


def policy_loss_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tensors, (formula, low, high, *kl), (per_sequence, denominator, value) = _policy_loss_arguments(x)
    shape, dtype = tuple(x["logp"].shape), name_of(x["logp"].dtype)
    loss, metrics, row_weight = new((), dtype), new((len(logprob.METRICS),), dtype), new(shape[:1], dtype)
    partials, grad = new((shape[0] * -(-shape[1] // 8192), 8), dtype), new(shape, dtype)
    options = core.PolicyOptions(
        formula, clip=(low, high), kl=kl, per_sequence=per_sequence, denominator=denominator, denominator_value=value
    )

    def forward():
        outputs = {"loss": loss, "metrics": metrics, "row_weight": row_weight, "partials": partials}
        core.policy_loss(*tensors, options=options, **outputs)
        return (loss, *metrics)

    def backward():
        saved = {"row_weight": row_weight, "grad_loss": gradients[0], "grad_logp": grad}
        core.policy_loss_backward(*tensors, options=options, **saved)
        return (grad,)

    return forward, backward


def policy_loss_bytes(x: Inputs) -> tuple[int, int]:
    logp, streams = x["logp"], sum(x.get(name) is not None for name in ("logp", "old_logp", "ref_logp"))
    streams += x["advantages"].dim() == 2
    forward = logp.numel() * (streams * logp.element_size() + x["mask"].element_size())
    return forward, forward + logp.numel() * logp.element_size()


CASES = [
    Case(
        op="token_logprob",
        family="logprob",
        call=warpup.token_logprob,
        reference=logprob.reference_token_logprob,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (1024, 32000)},
        variants=("plain", "ignored", "entropy"),
        inputs=token_logprob_inputs,
        differentiable=("logits",),
        raw=token_logprob_raw,
        core=token_logprob_core,
        bytes=token_logprob_bytes,
    ),
    Case(
        op="policy_loss",
        family="logprob",
        call=warpup.policy_loss,
        reference=logprob.reference_policy_loss,
        sizes={"grad": (3, 5), "small": (5, 67), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "kl", "dr_grpo", "masked"),
        inputs=policy_loss_inputs,
        differentiable=("logp",),
        raw=policy_loss_raw,
        core=policy_loss_core,
        bytes=policy_loss_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    *cases_advantage.CASES,
    *cases_advantage_tokens.CASES,
]
