"""The gated activation between an expert's two products.

Contract, numerics and bytes moved: csrc/moe/moe_glu.h.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _op
from warpup._op import accumulator, once_differentiable

_op.raw("moe_glu", "moe_glu_backward")
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
    if weights is None:
        return a
    w = torch.where(permutation < 0, 0, weights[permutation.clamp_min(0)]).to(h.dtype)
    return torch.where(permutation.unsqueeze(1) < 0, 0, a * w.unsqueeze(1))


@torch.library.register_fake("warpup::moe_glu")
def _(h, weights, permutation, activation):
    return h.new_empty(h.shape[0], h.shape[1] // 2)


@torch.library.register_fake("warpup::moe_glu_backward")
def _(h, weights, permutation, grad_a, activation, need_a, grad_weights):
    return h.new_empty(h.shape), h.new_empty(grad_a.shape if need_a else 0)


class GLU(torch.autograd.Function):
    @staticmethod
    def forward(h, weights, permutation, activation):
        return _op.ops.moe_glu(h, weights, permutation, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, weights, permutation = ctx.saved_tensors
        sums = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        grad_h, _ = _op.ops.moe_glu_backward(h, weights, permutation, grad.contiguous(), ctx.activation, False, sums)
        return grad_h, sums, None, None


def glu(
    h: Tensor, *, activation: str = "silu", weights: Tensor | None = None, permutation: Tensor | None = None
) -> Tensor:
    """`act(gate) up` of rows that hold gate and up, times the row's weight if there are weights.

    Args:
        h: (..., 2 I) float32, bfloat16, float16 or float64: the gates, then the ups; of swiglu_oai in turns.
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
    if torch.is_grad_enabled() and (h.requires_grad or (weights is not None and weights.requires_grad)):
        a = GLU.apply(rows, weights, permutation, activation)
    else:
        a = _op.ops.moe_glu(rows, weights, permutation, activation)
    return a.view(*h.shape[:-1], a.shape[-1])
