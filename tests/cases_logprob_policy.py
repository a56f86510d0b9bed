"""Case table of `logprob_policy`: policy losses on log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from case import Case, Inputs, New, Thunk, name_of
from warpup._native import core
from warpup.ops import logprob_policy


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
    kind = logprob_policy.POLICY_KINDS[x["kind"]]
    per_sequence, denominator, value = logprob_policy._normalizer(x.get("normalizer"), x["kind"])
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
    loss, metrics, row_weight = new((), dtype), new((len(logprob_policy.METRICS),), dtype), new(shape[:1], dtype)
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
        op="policy_loss",
        family="logprob",
        call=warpup.policy_loss,
        reference=logprob_policy.reference_policy_loss,
        sizes={"grad": (3, 5), "small": (5, 67), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "kl", "dr_grpo", "masked"),
        inputs=policy_loss_inputs,
        differentiable=("logp",),
        raw=policy_loss_raw,
        core=policy_loss_core,
        bytes=policy_loss_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
