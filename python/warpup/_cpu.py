"""Which of the CPU kernels' libraries is loaded.

`libwarpup_cpu.so` is built once for each x86-64 level. glibc from 2.33 on takes the best that the CPU can run: it looks
into the folders `glibc-hwcaps` by itself. What is loaded here first is what the other libraries get when they ask for
that name: so an older loader gets the right one too, and the environment variable `WARPUP_CPU` forces one.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path  # imported where it is used: most processes only ask for the C library's version

# The flags of /proc/cpuinfo that a level needs beyond the one before it.
LEVELS = {
    "x86-64": set(),
    "x86-64-v3": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def _loader_chooses() -> bool:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, AttributeError):  # another C library, or another system
        return sys.platform != "linux"
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 33)


def _folder() -> Path | None:
    """Where the libraries are: beside `arrays`, which in an editable install is not beside this file."""
    from importlib.util import find_spec
    from pathlib import Path

    arrays = find_spec("warpup.arrays")
    return Path(arrays.origin).parent if arrays and arrays.origin else None


def levels() -> dict[str, Path]:
    """The libraries that this build has and this CPU can run, by level, lowest first; none but on x86-64 Linux."""
    folder = _folder()
    if folder is None or sys.platform != "linux" or os.uname().machine != "x86_64":
        return {}
    with open("/proc/cpuinfo") as file:
        flags = set(next((line for line in file if line.startswith("flags")), "").split())
    found = {}
    for level, needed in LEVELS.items():
        library = folder / ("" if level == "x86-64" else f"glibc-hwcaps/{level}") / "libwarpup_cpu.so"
        if not needed <= flags or not library.exists():
            break
        found[level] = library
    return found


def load_kernels() -> None:
    """Loads the CPU kernels of the level that `WARPUP_CPU` names, or of the best one where glibc would not find it.

    Raises ImportError for a level that is unknown, that was not built, or that this CPU cannot run.
    """
    asked = os.environ.get("WARPUP_CPU")
    if not asked and _loader_chooses():
        return
    import ctypes

    found = levels()
    if asked and asked not in found:
        there = f"this CPU and this build have {', '.join(found)}" if found else "nothing to choose from here, unset it"
        raise ImportError(f"WARPUP_CPU={asked}: {there}")
    if found:
        ctypes.CDLL(str(found[asked or list(found)[-1]]))
