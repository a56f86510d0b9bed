"""What a model does to the product of its output layer before that is a logit: a scale, a soft cap.

Contract: csrc/core/logit_form.h.
"""

from __future__ import annotations

import torch
from torch import Tensor


def form_of(op: str, scale: float, softcap: float | None, prefix: str = "") -> tuple[float, float]:
    """(scale, softcap) as the raw ops take them, softcap 0 for none. ValueError unless what is given is above 0;
    `prefix` of the names in it."""
    if not (scale > 0 and (softcap is None or softcap > 0)):
        name, value = ("softcap", softcap) if scale > 0 else ("scale", scale)
        raise ValueError(f"{op}: {prefix}{name} must be above 0, got {value}")
    return float(scale), 0.0 if softcap is None else float(softcap)


def formed(x: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """softcap * tanh(scale * x / softcap), or scale * x, in plain torch; -inf, a token that is ruled out, stays."""
    z = x if scale == 1 else scale * x
    return torch.where(x == -torch.inf, x, softcap * torch.tanh(z / softcap)) if softcap else z
