"""`warpup info`: what is installed and what runs each op; `warpup info NAME`: where one function is to be found."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# ---- Where a function is --------------------------------------------------------------------------------------------

PACKAGE = Path(__file__).parent
# Written by tools/operators.py; the build puts a copy into the installed package.
INDEX = next((p for p in (PACKAGE / "operators.md", PACKAGE.parents[1] / "docs/operators.md") if p.is_file()), None)


@dataclass(frozen=True)
class Place:
    """A row of docs/operators.md. Paths are those of the repository."""

    name: str
    runs: str
    module: str
    kernel: tuple[str, ...]
    tests: tuple[str, ...]
    benchmark: tuple[str, ...]
    page: str

    @property
    def line(self) -> int:
        """Where its `def` is in the installed module."""
        text = (PACKAGE / Path(self.module).relative_to("python/warpup")).read_text()
        lines = [n.lineno for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == self.name]
        return lines[-1] if lines else 1


def places() -> dict[str, Place]:
    """Every public function of the index, by name; none where the index was not installed."""
    found, page = {}, ""
    for text in INDEX.read_text().splitlines() if INDEX else ():
        if text.startswith("Page: "):
            page = "".join(f"docs/{name}" for name in re.findall(r"\((.*)\)", text))
        elif row := re.match(r"\| \[`(\w+)`\]\(\.\./(.*?)\) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", text):
            name, module, runs, *cells = row.groups()
            kernel, tests, bench = (tuple(p for g in re.findall("`(.*?)`", c) for p in expand(g)) for c in cells)
            found[name] = Place(name, runs, module, kernel, tests, bench, page)
    return found


def expand(path: str) -> list[str]:
    """`a{.h,_cpu.cpp}` as `a.h` and `a_cpu.cpp`."""
    start, brace, endings = path.rstrip("}").partition("{")
    return [start + ending for ending in endings.split(",")] if brace else [path]


def find(name: str) -> int:
    """Print the places of one public function; returns the exit status."""
    known = places()
    name = name.removeprefix("warpup.")
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5) or [k for k in known if name in k][:3]
        hint = f"; near: {', '.join(near)}" if near else ""
        print(f"warpup info: no operator {name!r}{hint} (`warpup info` lists what is installed)", file=sys.stderr)
        return 2
    place = known[name]
    rows = {
        "function": [f"{place.module}:{place.line}"],
        "runs as": [place.runs],
        "kernel": list(place.kernel) or ["none of its own"],
        "tests": list(place.tests) or ["-"],
        "benchmark": list(place.benchmark) or ["-"],
        "page": [place.page or "-"],
    }
    print(f"warpup.{name}")
    for label, lines in rows.items():
        for line in lines:
            print(f"  {label:10} {line}")
            label = ""
    return 0


# ---- What is installed ----------------------------------------------------------------------------------------------


def describe() -> dict[str, str]:
    """Facts about the installation, in the order in which they are printed."""
    import torch

    from warpup import _cpu, _native

    build = _native.arrays.build_info()
    archs = build["cuda_archs"]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "warpup": build["version"],
        "torch": f"{torch.__version__} (built against {build['torch_headers']}; any from 2.10 on works)",
        "compiler": build["compiler"],
        "CPU kernels": f"{build['cpu']} (WARPUP_CPU forces one of: {', '.join(_cpu.levels()) or 'no other was built'})",
        **cpu_products(),
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads holds for the ops)",
        "CUDA archs built": f"{archs} with nvcc {build['cuda_toolkit']}" if archs else "none",
        "GPU": ", ".join(gpus) or "none seen by torch",
        "ops library": str(_native.OPS_LIBRARY),
        "pybind11 module": str(_native.arrays.__file__),
    }


def cpu_products() -> dict[str, str]:
    """What makes the products of each dtype on this CPU: those of `linear_logprob` and its kin, and `grouped_mm`'s."""
    import torch

    from warpup._products import library_has
    from warpup.moe.grouped_mm import cpu_kernels

    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = "the library's" if library_has(dtype, torch.device("cpu")) else "the library's in float32, by pieces"
        kernel = cpu_kernels[dtype]
        grouped = f"own kernel ({kernel})" if kernel else "the library's, one an expert"
        found[f"CPU {str(dtype).removeprefix('torch.')}"] = f"products {plain}; grouped_mm {grouped}"
    return found


def kernels() -> list[tuple[str, str]]:
    """(op, what runs it here) of every warpup op that is registered with torch."""
    import torch

    import warpup
    from warpup import _native

    for name in warpup.__all__:  # importing a module registers the ops that it composes in Python
        getattr(warpup, name)
    known = places()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    with_cuda = _native.arrays.build_info()["cuda_archs"] is not None
    rows = []
    for full in sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith("warpup::")):
        name = full.removeprefix("warpup::").partition(".")[0]
        if has(full, "CompositeExplicitAutograd"):
            public = known.get(name.removesuffix("_backward"))
            rows.append((name, public.runs if public else "library products and the ops in this list"))
            continue
        words = ["CPU kernel"] * has(full, "CPU")
        if has(full, "CUDA"):
            words.append("CUDA kernel" if with_cuda else "CUDA kernel not in this build")
        rows.append((name, ", ".join(words)))
    return rows


def main(arguments: Sequence[str] = ()) -> int:
    """Print what is installed, or where one function is; returns the exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print("usage: warpup info [NAME]\n\nPrint versions, devices and what runs each operator, or of one function,")
        print("such as grouped_mm, where its kernels, tests, benchmark and page are.")
        return 0
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        return find(arguments[0])
    if arguments:
        print(f"warpup info: expected at most one name, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for key, value in describe().items():
        console.print(f"[bold]{key:16}[/] {value}", soft_wrap=True, highlight=False)
    ops = Table("op", "what runs it", title="ops (`warpup info NAME` tells where to find one)", title_justify="left")
    for row in kernels():
        ops.add_row(*row)
    console.print(ops)
    return 0
