"""In which precision a run computes, and what of a model's layers must not be computed in it.

Weights, gradients and moments are float32. Under dtype "bfloat16" the products inside the model are made in it (torch's
autocast), for which GPUs, and CPUs with AMX or AVX512-BF16, have instructions of their own. With weights "bfloat16" the
weights themselves are, and the moments; gradients are summed in float32 (see optim.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from ..._products import library_has
from ..errors import TrainError
from ..settings import Precision
from .fsdp import is_sharded

WORTH_IT = 20_000_000  # parameters; of smaller models the casts of weights may cost more than products gain (a guess)


def products_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices; without, they are slower than float32."""
    if device.type == "cpu":
        return library_has(torch.bfloat16, device)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_dtype(precision: str, model) -> torch.dtype | None:
    """What the products of a run are made in: torch.bfloat16, or None for the weights' own. "auto" is bfloat16 where
    the device is made for it and the model large enough to gain from it."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise TrainError(f"dtype: expected auto, float32 or bfloat16, got {precision!r}")
    if precision == "auto" and any(p.dtype == torch.bfloat16 for p in model.parameters() if p.requires_grad):
        return None  # they are made in the weights' own
    if precision == "auto":
        device = next(model.parameters()).device
        large = sum(p.numel() for p in model.parameters()) >= WORTH_IT
        precision = "bfloat16" if large and products_in_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def slow_products(precision: Precision, model) -> str | None:
    """What to tell whoever trains on a CPU without fast products in bfloat16: why "auto" is float32, or that what was
    asked for is slow. None where there is nothing to tell."""
    device, parameters = next(model.parameters()).device, list(model.parameters())
    if device.type != "cpu" or precision == "float32" or products_in_bfloat16(device):
        return None
    why = "this CPU has no instructions for products of bfloat16 matrices (AMX or AVX512-BF16)"
    if precision == "bfloat16" or any(p.dtype == torch.bfloat16 and p.requires_grad for p in parameters):
        return f"{why}: they take 3 to 100 times as long as those of float32, which dtype and weights float32 make"
    return f"dtype: float32, since {why}" if sum(p.numel() for p in parameters) >= WORTH_IT else None


@contextlib.contextmanager
def computing(model, dtype: torch.dtype | None) -> Iterator[None]:
    """Computes in `dtype` while open."""
    if dtype is None:
        yield
        return
    # Autocast keeps every weight's cast until it is left: of a sharded model that would be the whole of it.
    with torch.autocast(next(model.parameters()).device.type, dtype, cache_enabled=not is_sharded(model)):
        yield


def in_bfloat16(model) -> nn.Module:
    """The model with its weights in bfloat16. Not its buffers: rotary frequencies must keep their digits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


# ---- Sums that torch makes in 16 bits -------------------------------------------------------------------------------


@contextlib.contextmanager
def exact_sums(model) -> Iterator[None]:
    """While open, gradients that torch would sum in 16 bits on a CPU, where a sum of ones stops at 256, are summed in
    float32: those of LayerNorm (GPT-2, OPT, Phi; RMSNorm, as in Llama or Qwen, is right) under bfloat16 products, and
    of an embedding whose weights are bfloat16.

    Not in `computing`: with checkpointed layers, part of the forward pass comes again in the backward pass.
    """
    changed = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not weight.requires_grad or weight.device.type != "cpu":
            continue
        if isinstance(module, nn.LayerNorm):
            changed.append((module, type(module), _Norm))
        elif isinstance(module, nn.Embedding) and weight.dtype == torch.bfloat16:
            if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
                raise TrainError(
                    "weights in bfloat16: an embedding with max_norm, scale_grad_by_freq or sparse gradients cannot be "
                    "summed exactly on a CPU; train in float32"
                )
            changed.append((module, type(module), _Embedding))
    for module, kind, exact in changed:
        # What a model's own kind adds, such as a scale, stays: its `super()` is the exact one then.
        module.__class__ = exact if issubclass(exact, kind) else type(kind.__name__, (kind, exact), {})
    try:
        yield
    finally:
        for module, kind, _ in changed:
            module.__class__ = kind


class _Norm(nn.LayerNorm):
    """In float32, and so is what it returns, unless its weights are 16 bits."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        out = layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)
        return out if self.weight.dtype == torch.float32 else out.to(self.weight.dtype)


class _Embedding(nn.Embedding):
    """By `index_select`, whose gradient is rounded once."""

    def forward(self, input: Tensor) -> Tensor:
        out = self.weight.index_select(0, input.reshape(-1)).view(*input.shape, -1)
        if self.padding_idx is not None:  # that row gets no gradient
            out = torch.where((input == self.padding_idx).unsqueeze(-1), out.detach(), out)
        return out


def checkpoint_layers(model) -> None:
    """Keep of each layer its input alone, and make the rest again backward: one forward pass more, for the memory of
    one layer. TrainError where the model has no such layers."""
    layers = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    if not layers or not getattr(model, "supports_gradient_checkpointing", False):
        raise TrainError(f"gradient_checkpointing: {type(model).__name__} does not support it; leave it out")
    if hasattr(model, "activation_checkpointing_enable"):  # its name from transformers 5.24 on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads") and not model.get_input_embeddings().weight.requires_grad:
        model.enable_input_require_grads()


def without_dropout(model, until: contextlib.ExitStack) -> nn.Module:
    """The model in `eval()`, but for the layers that are checkpointed: transformers asks a layer's `training` whether
    to, and what is inside a layer asks its own whether to drop out. What a layer itself drops is set to nothing until
    that stack closes: another stage may drop it again."""
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    until.callback(setattr, module, name, value)
                    setattr(module, name, 0.0)
    return model
