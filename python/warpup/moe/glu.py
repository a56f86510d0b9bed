"""glu: the gated activation between an expert's two products.

Contract, numerics and bytes moved: csrc/moe/glu.h.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator

GATES = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
    "relu": F.relu,
}
ACTIVATIONS = (*GATES, "swiglu_oai")


def reference_glu(h: Tensor, *, activation: str = "silu", weights=None, permutation=None) -> Tensor:
    """`glu` in plain torch."""
    if activation == "swiglu_oai":
        gate, up = h[..., ::2].clamp(max=7.0), h[..., 1::2].clamp(-7.0, 7.0)
        a = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    else:
        gate, up = h.chunk(2, -1)
        a = GATES[activation](gate) * up
    if weights is None or permutation is None:  # they go together
        return a
    w = torch.where(permutation < 0, 0, weights[permutation.clamp_min(0)]).to(h.dtype)
    return torch.where(permutation.unsqueeze(1) < 0, 0, a * w.unsqueeze(1))


@_op.fake("glu")
def _(h, weights, permutation, activation):
    return h.new_empty(h.shape[0], h.shape[1] // 2)


def _gradients(h, weights, permutation, activation, grad_a, with_a=False):
    sums = h.new_empty(0 if weights is None else weights.shape, dtype=accumulator(h))
    return h.new_empty(h.shape), sums, h.new_empty(grad_a.shape if with_a else 0)


_glu = _autograd.differentiable("glu", backward_fake=_gradients)


@explained
def glu(
    h: Tensor, *, activation: str = "silu", weights: Tensor | None = None, permutation: Tensor | None = None
) -> Tensor:
    """`act(gate) up` of rows that hold gate and up, times the row's weight if there are weights.

    Args:
        h: (..., 2 I) float32, bfloat16, float16 or float64: the gates, then the ups; of swiglu_oai interleaved, a gate
            before its up.
        activation: silu, gelu, gelu_tanh, relu; or swiglu_oai, gpt-oss's `gate sigmoid(1.702 gate) (1 + up)`, the gate
            at most 7, the up in [-7, 7].
        weights: (C,) floating, one for each copy of a token, h then being (S, 2 I).
        permutation: (S,) int64, beside weights: the copy in each row as in `MoEPlan`, each once; a row with -1 gives 0.

    Returns:
        (..., I) of h's dtype, computed in float32 (float64 for float64). Gradients reach h and weights.

    Raises:
        ValueError: a shape, dtype, device or name does not fit, or (CPU only) a copy is out of range.
    """
    if h.dim() < 1 or (weights is not None and h.dim() != 2):
        raise ValueError(f"glu: h must be (..., 2 I), beside weights (S, 2 I), got {tuple(h.shape)}")
    rows = (h.flatten(0, -2) if h.dim() > 1 else h.unsqueeze(0)).contiguous()
    if weights is not None:
        weights = weights.to(accumulator(h)).contiguous()
    a = _glu(rows, weights, permutation, activation)
    return a.view(*h.shape[:-1], a.shape[-1])
