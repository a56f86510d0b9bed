"""Low-rank adapters (LoRA, arXiv 2106.09685) by the peft package: checks, and what they reached."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from warpup.integrations import _peft

from ..errors import TrainError
from ..settings import LoRA


def peft():
    """The peft package, or TrainError that says how to get it."""
    try:
        return _peft.peft()
    except ImportError as error:
        raise TrainError(f"adapters need the package peft: pip install 'peft>=0.20' ({error})") from error


def add_adapters(model, settings: LoRA):
    """The model with adapters, its own weights frozen. TrainError where a target reached no layer, or would reach a
    layer whose weight another one shares (a tied output layer: peft would change both)."""
    settings.check()
    library = peft()
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]  # GPT-2 has Conv1D
    tied = tied_names(model)
    for target in settings.targets:
        if target in tied:
            raise TrainError(f"lora.targets: {target} shares its weight with {tied[target]}; leave it out")
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise TrainError(f"lora.targets: no linear layer is called {target!r}; this model has {', '.join(known)}")
    config = library.LoraConfig(
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),  # peft's own are whole, but any number will do
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        adapted = library.get_peft_model(model, config)
    except ValueError as error:  # such as layers of Mamba, whose kernels read the weights themselves
        raise TrainError(f"lora: peft refuses this model: {' '.join(str(error).split())}") from error
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in adapted.targeted_module_names):
            reached, _ = reach(adapted)
            raise TrainError(
                f"lora.targets: peft put no adapter on {target!r}, but on {', '.join(reached) or 'nothing'}; on some "
                "mixtures such a name means the fused experts alone"
            )
    return add_before_rounding(adapted)


def reach(adapted) -> tuple[Counter[str], Counter[str]]:
    """What of a model has adapters and what not: how often layers of a name, such as self_attn.q_proj, got one; and of
    the weight matrices without one, how many weights they have under each name."""

    def short(name: str) -> str:
        parts = [part for part in name.split(".") if not part.isdigit() and part not in ("base_layer", "weight")]
        return ".".join(parts[-2:])

    got = Counter(map(short, [*adapted.targeted_module_names, *getattr(adapted, "targeted_parameter_names", ())]))
    left: Counter[str] = Counter()
    for name, weight in adapted.get_base_model().named_parameters():
        if weight.ndim > 1 and "lora_" not in name and ".base_layer." not in name:
            left[short(name)] += weight.numel()
    return got, left


def describe_reach(adapted) -> str:
    """`reach` as one line."""
    got, left = reach(adapted)
    total = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" not in name)
    on = ", ".join(f"{count} x {name}" for name, count in got.items())
    return f"adapters on {on}; none on " + ", ".join(f"{name} ({n / total:.0%})" for name, n in left.items())


def add_before_rounding(model):
    """The model of peft, its adapters' products added to those of the weights before these are rounded to bfloat16.

    peft adds them afterwards, to numbers on bfloat16's grid, where what is smaller than half a step of it is lost: of
    products 1e-4 as large as the weights' some 6 % arrive. In float32 nothing changes. Those of fused experts are made
    beside the experts' own (`low_rank_experts`).
    """
    kind, wrapper = peft().tuners.lora.layer.Linear, peft().tuners.lora.layer.ParamWrapper
    wrapped = [m.get_base_layer() for m in model.modules() if type(m) is wrapper]
    if wrapped:
        from warpup.integrations.transformers_moe import computes_experts, low_rank_experts

        if any(map(computes_experts, wrapped)):
            low_rank_experts(model)
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = added_before_rounding()
    return model


@functools.cache
def added_before_rounding() -> type:
    """peft's linear layer with an adapter, with one rounding. Made when there is one: peft is optional."""

    class Linear(peft().tuners.lora.layer.Linear):
        def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            names = [name for name in self.active_adapters if name in self.lora_A]
            weight, bias = self.get_base_layer().weight, self.get_base_layer().bias
            rounds = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled(x.device.type)
            plain = len(names) == 1 and names[0] not in self.lora_variant and not (self.disable_adapters or self.merged)
            if not rounds or not plain or args or kwargs:
                return super().forward(x, *args, **kwargs)
            [name] = names
            down, up = self.lora_A[name], self.lora_B[name]
            delta = up(down(self.lora_dropout[name](x.to(down.weight.dtype)))) * self.scaling[name]
            # One product that begins with the adapter's: sums are float32 inside, and what comes out is rounded once.
            weight = weight if self.fan_in_fan_out else weight.t()
            rows = delta.to(weight.dtype).flatten(0, -2), x.to(weight.dtype).flatten(0, -2), weight
            out = torch.addmm(*rows).view(*x.shape[:-1], -1)
            return out if bias is None else out + bias.to(out.dtype)

    return Linear


def check_loaded(folder: str, config: Mapping[str, Any]) -> None:
    """Raise TrainError on the adapters of a folder, by their adapter_config.json, if the model without them is not the
    one that they were made for."""
    begun = str(config.get("init_lora_weights", "")).lower()
    if begun.startswith(("pissa", "olora", "corda", "lora_ga")):
        raise TrainError(
            f"{folder} holds adapters with init_lora_weights = {begun!r}, which changes the frozen weights: without "
            "them it is another model, and a KL to it means nothing; merge them by peft's merge_and_unload first"
        )


def tied_names(model) -> dict[str, str]:
    """Last names of the output layer and the embedding where they share one weight: each -> the other."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return {}
    names = {m: name.rpartition(".")[2] for name, m in model.named_modules() if m is head or m is embedding}
    return {names[head]: names[embedding], names[embedding]: names[head]}


def is_adapted(model) -> bool:
    """Whether adapters of peft are on this model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def merged(model):
    """A copy of the model with its adapters merged into the weights, in float32: on bfloat16's grid most of what
    adapters have learned would be rounded away."""
    return copy.deepcopy(model).float().merge_and_unload()
