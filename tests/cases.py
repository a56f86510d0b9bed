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
        """Asserts that outputs and gradients agree with the reference in float64 by the rule of `agree`. For float64
        inputs that is the reference itself: its error is taken to be what one rounding of each input does to it."""
        want = self.run(upcast(inputs), self.reference)
        naive = self.run(nudged(inputs), self.reference)
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


def nudged(inputs: Inputs) -> Inputs:
    """The inputs with each float64 value moved by one rounding, up or down."""
    generator = torch.Generator().manual_seed(2)

    def nudge(v):
        if not (isinstance(v, Tensor) and v.dtype == torch.float64):
            return v
        sign = torch.randint(2, v.shape, generator=generator, dtype=torch.float64).to(v) * 2 - 1
        return v * (1 + sign * torch.finfo(torch.float64).eps)

    return {k: nudge(v) for k, v in inputs.items()}


def agree(got: Iterable[Tensor], want: Iterable[Tensor], naive: Iterable[Tensor]) -> None:
    """err(got) <= 2 err(naive) + atol for each tensor: `want` is float64, `naive` the same formula in got's precision,
    atol two roundings of the largest element to got's dtype. What is not finite must be the same, exactly."""
    for i, (g, w, n) in enumerate(zip(got, want, naive, strict=True)):
        assert g.shape == w.shape, f"result {i}: shape {tuple(g.shape)}, expected {tuple(w.shape)}"
        finite = w.isfinite()
        torch.testing.assert_close(g[~finite].double(), w[~finite], rtol=0, atol=0, equal_nan=True)
        g64, w64, n64 = (x[finite].double() for x in (g, w, n))
        if w64.numel() == 0:
            continue
        atol = w64.abs().max() * torch.finfo(g.dtype).eps
        error, naive_error = (g64 - w64).abs(), (n64 - w64).abs().nan_to_num(0).max()
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
]
