"""In which precision a run computes, and what of a model's layers must not be computed in it.

Weights, gradients and moments are float32 always. Under "bfloat16" the products inside the model are made in it
(torch's autocast), for which GPUs, and CPUs with AMX or AVX512-BF16, have instructions of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import TrainError

Precision = Literal["auto", "float32", "bfloat16"]
WORTH_IT = 20_000_000  # parameters; of smaller models the casts of weights may cost more than products gain (a guess)


def products_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16 matrices; without, they are slower than float32."""
    if device.type == "cpu":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, bool)() for name in names)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_dtype(precision: Precision, model: nn.Module) -> torch.dtype | None:
    """What the products of a run are made in: torch.bfloat16, or None for the weights' own. "auto" is bfloat16 where
    the device is made for it and the model large enough to gain from it."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise TrainError(f"dtype: expected auto, float32 or bfloat16, got {precision!r}")
    if precision == "auto":
        device = next(model.parameters()).device
        large = sum(p.numel() for p in model.parameters()) >= WORTH_IT
        precision = "bfloat16" if large and products_in_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


@contextlib.contextmanager
def computing(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Computes in `dtype` while open.

    LayerNorm stays in float32 on a CPU: there torch adds the gradients of its weight and bias up in 16 bits, where a
    sum of ones stops at 256 (GPT-2, OPT, Phi; RMSNorm, as in Llama or Qwen, is right).
    """
    if dtype is None:
        yield
        return
    device = next(model.parameters()).device.type
    hooks = []
    if device == "cpu":
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        hooks = [m.register_forward_pre_hook(in_float32) for m in norms]
    try:
        with torch.autocast(device, dtype=dtype):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def in_float32(module: nn.LayerNorm, arguments: tuple) -> tuple:
    """A hook before LayerNorm; one whose weights are 16 bits and frozen stays as it is."""
    weight = module.weight
    return arguments if weight is None or weight.dtype != torch.float32 else (arguments[0].float(), *arguments[1:])


def checkpoint_layers(model: nn.Module) -> None:
    """Keep of each layer its input alone, and make the rest again backward: one forward pass more, for the memory of
    one layer. TrainError where the model has no such layers."""
    layers = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    if not layers or not getattr(model, "supports_gradient_checkpointing", False):
        raise TrainError(f"gradient_checkpointing: {type(model).__name__} does not support it; leave it out")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if hasattr(model, "enable_input_require_grads") and not model.get_input_embeddings().weight.requires_grad:
        model.enable_input_require_grads()


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in `eval()`, but for the layers that are checkpointed: transformers asks a layer's `training` whether
    to, and what is inside a layer asks its own whether to drop out. What a layer itself drops is set to nothing."""
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
    return model
