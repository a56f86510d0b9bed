"""Finds and loads the ops library, `libwarpup_ops.so`: torch custom ops on the stable ABI."""

from __future__ import annotations

from pathlib import Path

import torch

MINIMUM_TORCH = (2, 10)

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < MINIMUM_TORCH:
    raise ImportError(
        f"warpup needs torch 2.10 or newer, found {torch.__version__}: pip install --upgrade 'torch>=2.10'"
    )

try:
    from warpup import arrays
except ImportError as error:
    raise ImportError(
        "warpup's compiled module is missing or does not load on this machine; build it with `pip install .` in the "
        f"repository ({error})"
    ) from error

# Beside `arrays`, not beside this file: in an editable install they are in different places.
OPS_LIBRARY = Path(arrays.__file__).with_name("libwarpup_ops.so")
if not OPS_LIBRARY.exists():
    raise ImportError(f"{OPS_LIBRARY} is missing, the installation is incomplete: pip install --force-reinstall .")


def other_copies(library: Path) -> list[Path]:
    """Files of the library's name that this process has loaded from elsewhere: the ops can be registered once."""
    loaded, maps = set(torch.ops.loaded_libraries), Path("/proc/self/maps")
    if maps.exists():  # also what was not loaded through torch
        loaded |= {line[line.index("/") :].rstrip() for line in maps.read_text().splitlines() if "/" in line}
    paths = {Path(name).resolve() for name in loaded if Path(name).name == library.name}
    return sorted(paths - {library.resolve()})


if others := other_copies(OPS_LIBRARY):
    raise ImportError(
        f"two copies of warpup's operators in one process: {others[0]} is loaded, and {OPS_LIBRARY} would register the "
        "same names; uninstall one, or import one only (an editable install beside a wheel, most often)"
    )
torch.ops.load_library(OPS_LIBRARY)


def has_cuda() -> bool:
    """Whether the CUDA kernels are in this build and torch sees a GPU to run them on."""
    return arrays.build_info()["cuda_archs"] is not None and torch.cuda.is_available()
