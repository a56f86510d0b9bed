"""Case table of `policy_loss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.policy.kinds import METRICS, POLICY_KINDS, PolicyOptions
from warpup.policy.policy_loss import INPUTS, UNDIVIDED
from warpup.policy.reference import reference_policy_loss

OTHER_KINDS = tuple(kind for kind in POLICY_KINDS if kind not in ("ppo", "grpo", "dapo", "dr_grpo"))
# Their gradient is not the derivative of their value.
STOPPED = (
    "gspo_token",
    *(name for name, kind in POLICY_KINDS.items() if kind.formula == "weighted" and kind.level != "one"),
    *(name for name, kind in POLICY_KINDS.items() if kind.bounds == "trust region"),
)
KL_OF_KIND = {"gspo": "k3", "sapo": "k1+", "cispo_verl": "k3_verl", "gmpo": "k2"}  # the others are without a KL


def policy_loss_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; kl (a reference policy, advantages a token, each sequence counts once); dr_grpo; masked (an
    empty row, NaN under the mask, an explicit denominator); full (a KL and entropies with gradients of their own,
    weights); packed (the same tokens in sequences of which some are empty); tokens and tokens_gmpo (a loss for each
    token, with all that adds to it, and with a KL held in limits); each other kind."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shift):
        return -torch.rand(size, generator=generator, dtype=torch.float64) - shift

    logp, old_logp, ref_logp = uniform(0.5), uniform(0.4), uniform(0.6)
    mask = torch.rand(size, generator=generator) < 0.8
    advantages = torch.randn(size[:1], generator=generator, dtype=torch.float64)
    kind = {"masked": "dapo", "full": "gspo", "tokens": "gspo", "tokens_gmpo": "gmpo"}.get(variant, variant)
    inputs: Inputs = {"kind": kind}
    if inputs["kind"] not in POLICY_KINDS:
        inputs["kind"] = "grpo"
    if variant in ("gspo", "gspo_token", "luspo"):
        inputs["clip"] = (0.1, 0.15)  # theirs would hold all of these ratios
    if variant in KL_OF_KIND:
        inputs |= {"ref_logp": ref_logp, "kl_coef": 0.1, "kl": KL_OF_KIND[variant], "kl_corrected": True}
    if variant == "kl":
        advantages = torch.randn(size, generator=generator, dtype=torch.float64)
        inputs |= {"ref_logp": ref_logp, "kl_coef": 0.1, "normalizer": "sequence"}
    if variant == "masked":
        mask[0] = False
        old_logp[~mask], inputs["normalizer"] = torch.nan, 7.0
    if variant in ("clip_cov", "kl_cov"):
        inputs["selected"] = torch.rand(size, generator=generator) < 0.2
    if variant == "gpg":
        inputs["weights"] = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    if variant == "tokens_gmpo":
        inputs |= {"ref_logp": ref_logp, "kl_coef": 0.1, "kl_clamp": (0.3, 0.02), "reduction": "none"}
    if variant in (*OTHER_KINDS, "full", "packed", "tokens", "tokens_gmpo"):
        # Mostly of one sign: what a row's ratio is rounded by does not average out over its tokens, and of rows that
        # cancel no digits are left to compare.
        advantages = advantages.abs()
        advantages[-1] *= -0.3
    if variant == "tokens":
        inputs["reduction"] = "none"
    if variant in ("full", "tokens"):
        inputs |= {"ref_kl": -uniform(0), "entropy": -uniform(0), "weights": advantages.abs() + 0.5}
        inputs |= {"kl": "full", "kl_coef": 0.2, "kl_corrected": True, "entropy_coef": 0.05}
        inputs |= {"clip": (0.1, 0.15), "dual_clip": 1.1}
    inputs |= {"logp": logp, "old_logp": old_logp, "advantages": advantages, "mask": mask}
    if variant == "packed":
        inputs = {k: v.flatten() if isinstance(v, Tensor) and k != "advantages" else v for k, v in inputs.items()}
        tokens = logp.numel()
        inputs["cu_seqlens"] = torch.tensor([0, 0, tokens // 3, tokens // 2, tokens // 2, tokens])[
            -1 - size[0] :
        ].clone()
        inputs["cu_seqlens"][0] = 0
        inputs |= {
            "kind": "gspo",
            "clip": (0.1, 0.15),
            "normalizer": "token",
            "advantages": advantages.resize_(len(inputs["cu_seqlens"]) - 1),
        }
    inputs = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _policy_loss_arguments(x: Inputs) -> tuple[dict, dict]:
    """The inputs and the options of the raw ops, by name."""
    options = PolicyOptions(**{name: x[name] for name in PolicyOptions.__dataclass_fields__ if name in x})
    required = {name: x[name] for name in ("logp", "old_logp", "advantages", "mask")}
    optional = {name: x.get(name) for name in INPUTS if name not in required}
    if options.kind == "clip_cov":
        optional["weights"] = 1 - as_type(x["selected"], x["logp"])
    if options.kind == "kl_cov":
        optional["penalty"] = as_type(x["selected"], x["logp"])
    return required | optional, options.raw()


def as_type(mask: Any, like: Any) -> Any:
    return mask.to(like.dtype) if isinstance(mask, Tensor) else mask.astype(like.dtype)


def in_order(op: Any, named: dict) -> tuple:
    """Arguments in the order of the op's schema."""
    return tuple(named[a.name] for a in op.default._schema.arguments)


def policy_loss_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, options = _policy_loss_arguments(x)
    each = x.get("reduction") == "none"
    named = {**tensors, **options, **(UNDIVIDED if each else {}), "denominator": None, "with_losses": each}
    loss, _, row_state, losses = ops.policy_loss(**named)
    named |= {"row_state": row_state, "grad_loss": loss, "grad_losses": losses}
    called = [
        ("policy_loss", in_order(ops.policy_loss, named)),
        ("policy_loss_backward", in_order(ops.policy_loss_backward, named | {"upstream": losses if each else None})),
    ]
    names = ("policy_losses", "policy_losses_backward") if each else ()
    return called + [(name, in_order(getattr(ops, name), named)) for name in names]


def policy_loss_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tensors, options = _policy_loss_arguments(x)
    shape, dtype = tuple(x["logp"].shape), name_of(x["logp"].dtype)
    rows = shape[0] if "cu_seqlens" not in x else x["cu_seqlens"].shape[0] - 1
    slots = rows * -(-shape[1] // 8192) if len(shape) == 2 else shape[0] // 8192 + rows
    loss, row_state = new((), dtype), new((rows, 4), dtype)
    metrics, unread = new((len(METRICS),), dtype), new((len(METRICS),), dtype)
    partials, grad, losses = new((slots, 13), dtype), new(shape, dtype), new(shape, dtype)
    each = x.get("reduction") == "none"
    options |= UNDIVIDED if each else {}
    extra = {f"grad_{name}": new(shape, dtype) for name in ("ref_kl", "entropy") if name in x}

    def forward():
        outputs = {"loss": loss, "metrics": metrics, "row_state": row_state, "partials": partials}
        core.policy_loss(**tensors, **options, **outputs, **({"losses": losses} if each else {}))
        return (losses if each else loss, *metrics[: 9 if "entropy" in x else 8])

    def backward():
        given, grad_loss = tensors, gradients[0]
        if each:  # the sum of the losses, each times its gradient
            given, grad_loss = tensors | {"upstream": gradients[0]}, (gradients[0].reshape(-1)[:1] * 0 + 1).reshape(())
            core.policy_loss(**given, **options, loss=loss, metrics=unread, row_state=row_state, partials=partials)
        saved = {"row_state": row_state, "grad_loss": grad_loss, "grad_logp": grad}
        core.policy_loss_backward(**given, **options, **saved, **extra)
        return (grad,)

    return forward, backward


def policy_loss_bytes(x: Inputs) -> tuple[int, int]:
    logp, streams = (
        x["logp"],
        sum(t is not None for t in x.values() if isinstance(t, Tensor) and t.shape == x["logp"].shape),
    )
    forward = logp.numel() * (streams * logp.element_size() + x["mask"].element_size())
    return forward, forward + logp.numel() * logp.element_size()


CASES = [
    Case(
        op="policy_loss",
        family="logprob",
        call=warpup.policy_loss,
        reference=reference_policy_loss,
        sizes={"grad": (3, 5), "small": (5, 67), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "kl", "dr_grpo", "masked", "full", "packed", "tokens", "tokens_gmpo", *OTHER_KINDS),
        inputs=policy_loss_inputs,
        differentiable=("logp",),
        raw=policy_loss_raw,
        core=policy_loss_core,
        bytes=policy_loss_bytes,
        dtypes=(torch.float32, torch.float64),
        stopped=(*STOPPED, "sapo"),
    ),
]
