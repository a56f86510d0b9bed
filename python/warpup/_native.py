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
torch.ops.load_library(OPS_LIBRARY)


def has_cuda() -> bool:
    """Whether the CUDA kernels are in this build and torch sees a GPU to run them on."""
    return arrays.build_info()["cuda_archs"] is not None and torch.cuda.is_available()
