"""Finds and loads the two binaries: `_core` (pybind11) and `libwarpup_ops.so` (torch custom ops, stable ABI)."""

from __future__ import annotations

from pathlib import Path

import torch

MINIMUM_TORCH = (2, 10)

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < MINIMUM_TORCH:
    raise ImportError(
        f"warpup needs torch 2.10 or newer, found {torch.__version__}: pip install --upgrade 'torch>=2.10'"
    )

try:
    from warpup import _core as core
except ImportError as error:
    raise ImportError(
        "warpup's compiled module is missing or does not load on this machine; build it with `pip install .` in the "
        f"repository ({error})"
    ) from error

# Beside `_core`, not beside this file: in an editable install they are in different places.
OPS_LIBRARY = Path(core.__file__).with_name("libwarpup_ops.so")
if not OPS_LIBRARY.exists():
    raise ImportError(f"{OPS_LIBRARY} is missing, the installation is incomplete: pip install --force-reinstall .")
torch.ops.load_library(OPS_LIBRARY)


def build_info() -> dict:
    """What the binaries were built for: version, compiler, CPU capability in use, CUDA architectures, torch headers."""
    return core.build_info()


def has_cuda() -> bool:
    """Whether the CUDA twins are in this build and torch sees a GPU to run them on."""
    return core.build_info()["cuda_archs"] is not None and torch.cuda.is_available()


_fallthroughs = torch.library.Library("warpup", "IMPL")


def load_ops(*names: str):
    """The `torch.ops.warpup` namespace, after `names` are made to fall through autograd: a result of a raw op never
    requires a gradient, so that backward through it fails loudly. The public functions carry the autograd (an autograd
    kernel inside the op would double its call overhead)."""
    for name in names:
        _fallthroughs.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return torch.ops.warpup
