"""One number for each hidden state: the value of a critic, or the score of a reward model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """`hidden @ weight / sqrt(H) + bias`, in float32 whatever the model computes in.

    Begins as 0 everywhere. Hidden states behind a norm have entries of about 1, so the division makes one learning rate
    do for narrow and wide models.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, device=device))
        self.bias = nn.Parameter(torch.zeros((), device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(...) float32 of hidden states (..., H)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight * self.weight.shape[0] ** -0.5 + self.bias
