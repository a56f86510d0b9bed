"""One table of the operators, for tests and benchmarks: how to call each op, on what, and what it must equal.

Adding an op adds an entry to `CASES`; `test_contract.py` then holds it to everything that every op promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import warpup
from warpup._native import core
from warpup.ops import logprob

Inputs = dict[str, Any]  # the keyword arguments of a public function
New = Callable[[tuple[int, ...], str], Any]  # an output array of a shape and a dtype ("float32")
Thunk = Callable[[], tuple]


@dataclass(frozen=True)
class Case:
    op: str
    family: str
    call: Callable  # the public function
    reference: Callable  # the same in plain torch, for any dtype
    sizes: dict[str, tuple[int, ...]]  # grad: float64 gradcheck; small: any test; threads: split up; overhead, bench
    variants: tuple[str, ...]  # what else `inputs` can make, the plainest first
    inputs: Callable[..., Inputs]  # (size, dtype, device, seed, variant)
    differentiable: tuple[str, ...]  # inputs that get a gradient
    raw: Callable[[Any, Inputs], list[tuple[str, tuple]]]  # (namespace, inputs) -> raw ops and their arguments
    core: Callable[[Inputs, tuple, New], tuple[Thunk, Thunk]]  # (inputs, gradients, new) -> forward, backward of _core
    bytes: Callable[[Inputs], tuple[int, int]]  # that forward and backward must at least move
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    def make(
        self, size: str = "small", dtype=torch.float32, device="cpu", seed=0, variant: str | None = None
    ) -> Inputs:
        return self.inputs(self.sizes[size], dtype, device, seed, variant or self.variants[0])

    def run(self, inputs: Inputs, function: Callable | None = None) -> tuple[Tensor, ...]:
        """The outputs of the public function (or another), then the gradients of the differentiable inputs."""
        function = function or self.call
        inputs = {k: v.detach().requires_grad_() if k in self.differentiable else v for k, v in inputs.items()}
        outputs = leaves(function(**inputs))
        wanted = [o for o in outputs if o.requires_grad]
        gradients = ()
        if wanted:
            gradients = torch.autograd.grad(wanted, [inputs[k] for k in self.differentiable], gradients_of(wanted))
        return (*(o.detach() for o in outputs), *gradients)

    def check(self, inputs: Inputs) -> None:
        """Asserts that outputs and gradients agree with the reference in float64 by the rule of `agree`."""
        want = self.run(upcast(inputs), self.reference)
        naive = [self.run(i, self.reference) for i in (inputs, *(nudged(inputs, seed) for seed in range(4)))]
        agree(self.run(inputs), want, naive)


def leaves(outputs: Tensor | Iterable | dict) -> tuple[Tensor, ...]:
    """The tensors of an op's result, whatever they are packed in."""
    if isinstance(outputs, Tensor):
        return (outputs,)
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return tuple(leaf for value in values for leaf in leaves(value))


def gradients_of(outputs: Iterable[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Random gradients, the same numbers for each dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(o.shape, generator=generator).to(o) for o in outputs)


def upcast(inputs: Inputs) -> Inputs:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def nudged(inputs: Inputs, seed: int) -> Inputs:
    """The inputs, each value moved up or down by one rounding in float32 (float64 for float64): no algorithm can be
    expected to err less than what this does to the exact result. It tells a sum that cancels from one that does not."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(v):
        v = v if v.dtype == torch.float64 else v.float()
        sign = torch.randint(2, v.shape, generator=generator).to(v) * 2 - 1
        return v * (1 + sign * torch.finfo(v.dtype).eps)

    return {k: nudge(v) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def agree(got: Iterable[Tensor], want: Iterable[Tensor], naive: Iterable[Iterable[Tensor]]) -> None:
    """err(got) <= 2 err(naive) + atol for each tensor: `want` is float64, `naive` the same formula in got's precision,
    evaluated several times, atol two roundings of the largest element to got's dtype (in float64, where `want` has
    such errors itself, 16, and of 1 at least). What is not finite must be the same, exactly."""
    for i, (g, w, *n) in enumerate(zip(got, want, *naive, strict=True)):
        assert g.shape == w.shape, f"result {i}: shape {tuple(g.shape)}, expected {tuple(w.shape)}"
        finite = w.isfinite()
        torch.testing.assert_close(g[~finite].double(), w[~finite], rtol=0, atol=0, equal_nan=True)
        if not finite.any():
            continue
        g64, w64 = g[finite].double(), w[finite]
        double = g.dtype == torch.float64
        atol = w64.abs().max().clamp_min(double) * torch.finfo(g.dtype).eps * (8 if double else 1)
        naive_error = torch.stack([(x[finite].double() - w64).abs() for x in n]).nan_to_num(0).max()
        error = (g64 - w64).abs()
        worst = error.argmax()
        assert error[worst] <= 2 * naive_error + atol, (
            f"result {i}: {g64[worst]:.9g}, expected {w64[worst]:.9g}; error {error[worst]:.3g}, "
            f"naive {naive_error:.3g}, atol {atol:.3g}"
        )


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


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
]
