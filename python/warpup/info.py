"""`warpup info`: what is installed here, what it was built for, and which twin of each op exists."""

from __future__ import annotations

import sys

import torch

from warpup import _native


def describe() -> dict[str, str]:
    """Facts about the installation, in the order in which they are printed."""
    build = _native.arrays.build_info()
    archs = build["cuda_archs"]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "warpup": build["version"],
        "torch": f"{torch.__version__} (built against {build['torch_headers']}; any from 2.10 on works)",
        "compiler": build["compiler"],
        "CPU capability": build["cpu"],
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads holds for the ops)",
        "CUDA archs built": f"{archs} with nvcc {build['cuda_toolkit']}" if archs else "none",
        "GPU": ", ".join(gpus) or "none seen by torch",
        "ops library": str(_native.OPS_LIBRARY),
        "pybind11 module": _native.arrays.__file__,
    }


def twins() -> list[tuple[str, bool, bool]]:
    """(op, has a CPU kernel, has a CUDA kernel) of every warpup op that is registered with torch."""
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("warpup::"))
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    cuda = _native.arrays.build_info()["cuda_archs"] is not None
    return [(name, has(name, "CPU"), cuda and has(name, "CUDA")) for name in names]


def main(arguments: list[str] = ()) -> int:
    """Print what is installed; returns the exit status."""
    from rich.console import Console
    from rich.table import Table

    if arguments:
        print(f"warpup info: expected no arguments, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    console = Console()
    for key, value in describe().items():
        console.print(f"[bold]{key:16}[/] {value}", soft_wrap=True, highlight=False)
    ops = Table("op", "CPU", "CUDA", title="kernels", title_justify="left")
    for name, cpu, cuda in twins():
        ops.add_row(name.removeprefix("warpup::"), *("yes" if there else "-" for there in (cpu, cuda)))
    console.print(ops)
    return 0
