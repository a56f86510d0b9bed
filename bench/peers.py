"""Which peers run on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from warpup._products import library_has

SLOW = "WARPUP_BENCH_SLOW" in os.environ
WHY = "left out: minutes without 16-bit instructions (WARPUP_BENCH_SLOW=1 adds it)"


def slow_products(
    peers: dict[str, Callable | None], dtype: torch.dtype, device: str, flops: float
) -> tuple[dict[str, Callable], dict[str, str]]:
    """Of the peers that are installed those that do so many operations here in reasonable time, and the others with the
    reason."""
    there = {name: peer for name, peer in peers.items() if peer is not None}
    if SLOW or flops < 1e9 or library_has(dtype, torch.device(device)):
        return there, {}
    return {}, dict.fromkeys(there, WHY)
