"""The most memory that a call holds at once, beyond what was there before it; its results count, its inputs do not.

CUDA: the caching allocator's own peak. CPU: the system's high-water mark of resident memory (VmHWM), reset before
the call by writing 5 to /proc/self/clear_refs. It sees what torch's allocator, a kernel's own scratch and NumPy
take alike, in pages really touched. It is blind below some pages; what the heap holds free is given back first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.harness.timing import Candidate


def peak_memory(candidate: Candidate, device: str) -> int | None:
    """Bytes, or None where the system does not tell (not Linux with glibc)."""
    arguments = candidate.arguments()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidate.run(*arguments)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        candidate.run(*arguments)
        return max(0, status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@contextmanager
def kept_memory(touched: int = 0) -> Iterator[None]:
    """Within, freed memory stays with the process, as with a caching allocator; each candidate alike finds pages that
    are there: `touched` bytes of them from the start, or the first rounds would time the system that gives them, which
    takes seconds where results have gigabytes.

    By default glibc gives large blocks back at once, and the next has new pages: half of a large result's time, and on
    a virtual machine whose host takes free pages back up to ten times as much, by chance.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim, mappings = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX
    libc.mallopt(trim, -1), libc.mallopt(mappings, 0)
    torch.ones(touched, dtype=torch.uint8)
    try:
        yield
    finally:
        libc.mallopt(trim, 128 << 10), libc.mallopt(mappings, 1 << 16)
        libc.malloc_trim(0)
