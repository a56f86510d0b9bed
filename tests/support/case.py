"""An entry of the case table, and the rule by which its results agree with their reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    core: Callable[[Inputs, tuple, New], tuple[Thunk, Thunk]] | None  # (inputs, gradients, new) -> forward, backward of
    # _core; None for what composes kernels with library products
    bytes: Callable[[Inputs], tuple[int, int]]  # that forward and backward must at least move
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    products: bool = False  # calls the library's GEMM, whose bits depend on the number of threads
    backends: tuple[str, ...] = ("cpu", "hostcuda", "cuda")  # implementations of our own
    stopped: tuple[str, ...] = ()  # variants that stop gradients: theirs is not the derivative, the op's tests check it

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

    def check(self, inputs: Inputs, times: int = 2) -> None:
        """Asserts that outputs and gradients agree with the reference in float64 by the rule of `agree`."""
        self.compare(self.run(inputs), inputs, times)

    def compare(self, got: Iterable[Tensor], inputs: Inputs, times: int = 2) -> None:
        """The same for results of `run` that are there already, wherever they were computed."""
        got, want = list(got), self.run(upcast(inputs), self.reference)
        times = 4 if self.products else times  # a library sums in an order of its own
        naive = [self.run(i, self.reference) for i in (inputs, *(nudged(inputs, seed) for seed in range(4)))]
        try:
            agree(got, want, naive, times)
        except AssertionError:
            # Of a result of a few numbers the largest error of five evaluations is luck: it takes more of them to know
            # what a naive one errs by.
            if min((w.numel() for w in want if w.is_floating_point()), default=0) > 64:
                raise
            naive += [self.run(nudged(inputs, seed), self.reference) for seed in range(4, 40)]
            agree(got, want, naive, times)


def leaves(outputs: Tensor | Iterable | dict | None) -> tuple[Tensor, ...]:
    """The tensors of an op's result, whatever they are packed in; None is none."""
    if outputs is None:
        return ()
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


def agree(got: Iterable[Tensor], want: Iterable[Tensor], naive: Iterable[Iterable[Tensor]], times: int = 2) -> None:
    """err(got) <= `times` err(naive) + atol for each tensor: `want` is float64, `naive` the same formula in got's
    precision, evaluated several times, atol two roundings of the largest element to got's dtype (in float64, where
    `want` has such errors itself, 16), of 1e-6 at least (float64: 1) since inputs are of order 1. What is not finite,
    or no floating number, must be the same, exactly."""
    for i, (g, w, *n) in enumerate(zip(got, want, *naive, strict=True)):
        assert g.shape == w.shape, f"result {i}: shape {tuple(g.shape)}, expected {tuple(w.shape)}"
        if not w.is_floating_point():
            torch.testing.assert_close(g, w, rtol=0, atol=0)
            continue
        finite = w.isfinite()
        torch.testing.assert_close(g[~finite].double(), w[~finite], rtol=0, atol=0, equal_nan=True)
        if not finite.any():
            continue
        g64, w64 = g[finite].double(), w[finite]
        double = g.dtype == torch.float64
        atol = w64.abs().max().clamp_min(1.0 if double else 1e-6) * torch.finfo(g.dtype).eps * (8 if double else 1)
        naive_error = torch.stack([(x[finite].double() - w64).abs() for x in n]).nan_to_num(0).max()
        error = (g64 - w64).abs()
        worst = error.argmax()
        assert error[worst] <= times * naive_error + atol, (
            f"result {i}: {g64[worst]:.9g}, expected {w64[worst]:.9g}; error {error[worst]:.3g}, "
            f"naive {naive_error:.3g}, atol {atol:.3g}"
        )


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
