"""What the machine itself does: copy bandwidth and matrix-product rate, measured in the run that they judge.

The copy is a candidate like any other. Each case times it in the same rounds as its own candidates (`measure.py`), so
that on a shared machine a percentage of the copy bandwidth compares like with like.
"""

from __future__ import annotations

from functools import cache

import torch

from bench.harness.timing import Candidate, CudaClock, HostClock, Samples, interleave

COPY = "copy"
SIZES = {"cpu": (64 << 20, 1024), "cuda": (1 << 30, 8192)}  # bytes to copy, far over the last cache; matrix size


@cache
def clock(device: str) -> HostClock | CudaClock:
    return CudaClock() if device == "cuda" else HostClock(device)


@cache
def _buffers(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(0, 255, (SIZES[device][0],), dtype=torch.uint8, device=device).view(torch.float32)
    return source, torch.zeros_like(source)


def copy(device: str) -> tuple[Candidate, int]:
    """A copy between two resident buffers, and the bytes that it reads plus those that it writes."""
    source, target = _buffers(device)
    return Candidate(lambda: target.copy_(source), result=None), 2 * source.nbytes


@cache
def bandwidths(device: str) -> dict[str, float]:
    """bytes/s of the copy, and of one into memory that it allocates: the most for an op that returns a new tensor."""
    resident, moved = copy(device)
    source, _ = _buffers(device)
    candidates = {"copy": resident, "copy to new memory": Candidate(source.clone)}
    return {name: moved / s.median for name, s in interleave(candidates, clock(device), budget=1.0).items()}


@cache
def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product through the library, on random data (zeros run faster)."""
    n = SIZES[device][1]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    samples: Samples = interleave({"gemm": Candidate(lambda: a @ b)}, clock(device), budget=1.0)["gemm"]
    return 2 * n**3 / samples.median
