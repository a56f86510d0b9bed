"""Checks of the precision: products in bfloat16, and what torch sums in 16 bits."""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..model.precision import computing, exact_sums, products_in_bfloat16
from .findings import Patient, Result, check, fault, fine, note

ROWS = 4096  # a sum of so many ones in bfloat16 stops at 256
WRONG = 0.02  # of a gradient: more than rounding once to bfloat16


@check
@torch.no_grad()
def products(patient: Patient) -> Iterator[Result]:
    """what matrix products are made in on this device, and what that does to log-probs"""
    model, dtype = patient.model, patient.products
    fast = products_in_bfloat16(model.device)
    if dtype is None:
        has = "which has instructions for bfloat16" if fast else "which has none for bfloat16"
        yield fine(f"float32 on {model.device.type}, {has}")
        return
    if not fast:
        yield fault(f"bfloat16, for which this {model.device.type} has no instructions: it is slower", 'dtype = "auto"')
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(3, 35, device=model.device) % vocab).unsqueeze(0)
    exact = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    with computing(model, dtype):
        rounded = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    moved = (rounded - exact).gather(2, ids[:, 1:, None].expand(-1, -1, 1)).abs().max()
    yield note(
        f"bfloat16: a token's log-prob moves by up to {float(moved):.2g}",
        "sample and learn in one precision (warpup does); ratios between engines move as much",
    )


@check
def sums(patient: Patient) -> Iterator[Result]:
    """gradients over 4,096 rows of each kind of norm and embedding in bfloat16, beside float64"""
    kinds = {type(m): m for m in patient.model.modules() if _is_probed(m)}
    for kind, module in kinds.items():
        embedding = isinstance(module, nn.Embedding)
        alone, ours = _error(module, exact=False), _error(module, exact=True)
        in_use = patient.config.weights == "bfloat16" or (patient.products is not None and not embedding)
        where = "its weights in bfloat16" if embedding else "under autocast"
        if alone <= WRONG:
            yield fine(f"{kind.__name__}, {where}: right to {alone:.1%}")
        elif ours <= WRONG:
            yield note(
                f"{kind.__name__}, {where}: torch's are off by {alone:.0%}, the trainer's by {ours:.1%}",
                "nothing: the trainer sums them in float32 (elsewhere: this layer in float32)",
            )
        else:
            found = f"{kind.__name__}, {where}: off by {ours:.0%}"
            yield fault(found, 'dtype = "float32"') if in_use else note(found, "stay with float32, as it is")


def _is_probed(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not ("Norm" in type(module).__name__ or isinstance(module, nn.Embedding)):
        return False
    wanted = [
        p for p in list(inspect.signature(type(module).forward).parameters.values())[1:]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    return len(wanted) == 1


def _error(module: Any, exact: bool) -> float:
    """The largest share by which a gradient of a module like this one is off, in 16 bits; exact: summed as the trainer
    sums it."""
    device, embedding = module.weight.device, isinstance(module, nn.Embedding)
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, module.weight.shape[-1])
    upstream = torch.rand(shape, generator=generator).to(device)
    # To a norm under autocast comes what a product has rounded; an embedding is asked for one token again and again.
    rows = torch.zeros(ROWS, dtype=torch.long) if embedding else torch.randn(shape, generator=generator).bfloat16()
    rows = rows.to(device)
    want = _gradients(_copy(module, torch.float64), rows if embedding else rows.double(), upstream)
    like = nn.Sequential(_copy(module, torch.bfloat16 if embedding else torch.float32))
    with exact_sums(like) if exact else contextlib.nullcontext(), computing(like, torch.bfloat16):
        got = _gradients(like, rows, upstream)
    return max(float((g - w).norm() / w.norm()) for g, w in zip(got, want, strict=True))


def _gradients(module: nn.Module, rows: Tensor, upstream: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        out = module(rows)
        return [g.double() for g in torch.autograd.grad(out, list(module.parameters()), upstream.to(out.dtype))]


def _copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module like this one with parameters of its own; of an embedding eight rows."""
    like = copy.copy(module)
    rows = slice(8) if isinstance(module, nn.Embedding) else slice(None)
    like._parameters = {
        name: None if p is None else nn.Parameter(p.detach()[rows].to(dtype, copy=True))
        for name, p in module._parameters.items()
    }
    if isinstance(like, nn.Embedding):
        like.padding_idx = None
    return like
