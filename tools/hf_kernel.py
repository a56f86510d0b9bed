"""The operators as a kernel of Hugging Face's Hub, for whoever loads them by the `kernels` package instead of pip.

    python tools/hf_kernel.py FOLDER          # of the warpup that this Python imports: an installed wheel, or this tree

    from kernels import get_local_kernel
    warpup = get_local_kernel(Path("FOLDER"))
    warpup.token_logprob(logits, targets)

FOLDER/build/<variant>/ has the libraries, the families' Python files as they are, and a `metadata.json`. A variant is
for one backend, on torch's stable ABI, and serves every torch from 2.10 and every Python from 3.11 on:
`torch-stable-abi210-cpu-x86_64-linux`, and one like `torch-stable-abi210-cu128-...` where the build has CUDA kernels.

A kernel may import torch and the standard library alone. So `warpup.arrays`, which is made for one Python,
`reflection`, which stands on NumPy, and all that is no operator (trainer, data, metrics) are only in the wheel. Two
things that the Hub asks for are not met: the operators are `torch.ops.warpup` in each version, so a process has one
copy, and a second is refused by name; and libraries that were built here need this system's glibc, which is printed.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import warpup
from warpup import _native

FAMILIES = ("advantage", "logprob", "divergence", "policy", "moe", "interval")
LEFT_OUT = ("_command_line.py",)  # of the modules beside them: what the commands need
ALLOWED = {*sys.stdlib_module_names, "torch", "triton", "warpup"}  # torch for GPUs brings triton
HUB_GLIBC = 28  # 2.28: manylinux_2_28
OPENING = '''\
"""warpup's operators, as a kernel of Hugging Face's Hub: see the functions' docstrings."""

import sys
from pathlib import Path

import torch  # first: it brings the OpenMP runtime that the kernels link

_here = Path(__file__).parent
for _name, _module in list(sys.modules.items()):
    _file = getattr(_module, "__file__", None)
    if _name.startswith("warpup.") and _file and _here not in Path(_file).parents:
        raise ImportError(f"warpup is imported already, from {_file}: a process can have one copy")

from warpup._cpu import load_kernels

load_kernels()
'''
BUILD = '''\
"""In the place of the wheel's `arrays`: where the libraries are (beside this file), and how they were built."""


def build_info() -> dict:
    return {info!r}
'''


def make(folder: Path) -> list[Path]:
    """Writes all variants of this build, and returns their folders."""
    info = _native.arrays.build_info()
    backends = {"cpu": {"type": "cpu"}}
    if info["cuda_toolkit"]:
        major, minor = info["cuda_toolkit"].split(".")[:2]
        backends[f"cu{major}{minor}"] = {"type": "cuda", "archs": [arch(a) for a in info["cuda_archs"].split(", ")]}
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    abi = "".join(map(str, _native.MINIMUM_TORCH))
    found = []
    for name, backend in backends.items():
        variant = folder / "build" / f"torch-stable-abi{abi}-{name}-{machine}-{platform.system().lower()}"
        if variant.exists():
            shutil.rmtree(variant)
        write_files(variant, info)
        metadata = {
            "id": "warpup",  # the module's name and the operators' namespace, torch.ops.warpup
            "name": "warpup",
            "version": int(info["version"].split(".")[0]),  # 0: what may still change
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": backend,
            "digest": {"algorithm": "sha256", "files": digest(variant)},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        found.append(variant)
    return found


def arch(cmake: str) -> str:
    """An architecture as the Hub writes it: 80 of CMake is 8.0 and PTX for what comes later, 80-real is 8.0 alone."""
    number, _, kind = cmake.partition("-")
    return f"{number[:-1]}.{number[-1]}" + ("" if kind == "real" else "+PTX")


def write_files(variant: Path, info: dict) -> None:
    package, libraries = Path(warpup.__file__).parent, _native.OPS_LIBRARY.parent
    for family in FAMILIES:
        shutil.copytree(package / family, variant / family, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
        if (stub := package / family / "__init__.pyi").exists():
            (variant / family / "__init__.py").write_text(imports(stub))
    for module in package.glob("_[a-z]*.py"):
        if module.name not in LEFT_OUT:
            shutil.copy2(module, variant)
    for library in (*libraries.glob("libwarpup_*.so"), *libraries.glob("glibc-hwcaps/*/libwarpup_cpu.so")):
        target = variant / library.relative_to(libraries)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    fixed = {key: value for key, value in info.items() if key not in ("cpu", "threads")}  # these are the process's own
    (variant / "arrays.py").write_text(BUILD.format(info=fixed))
    (variant / "__init__.py").write_text(OPENING + imports(package / "__init__.pyi"))


def imports(stub: Path) -> str:
    """The imports of a package's stub that a variant has, as code; the wheel makes them when a name is first used."""
    lines, names = [], []
    for node in ast.parse(stub.read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        top = stub.parent == Path(warpup.__file__).parent
        if top and node.module:
            node.names = node.names if node.module.split(".")[0] in FAMILIES else []
        elif top:
            node.names = [alias for alias in node.names if alias.name in FAMILIES]
        if node.names:
            lines.append(ast.unparse(node))
            names += [alias.name for alias in node.names]
    return "\n".join([*lines, "", f"__all__ = {sorted(names)!r}", ""])


def digest(variant: Path) -> dict[str, str]:
    files = sorted(path for path in variant.rglob("*") if path.is_file())
    sums = {path: hashlib.sha256(path.read_bytes()).digest() for path in files}
    return {path.relative_to(variant).as_posix(): base64.b64encode(sums[path]).decode() for path in files}


# ---- The check ------------------------------------------------------------------------------------------------------


def wrong(variant: Path) -> Iterator[str]:
    """What would keep a variant from being loaded elsewhere: imports that a kernel may not make or that lead nowhere,
    and files that are not those of the digest."""
    for path in variant.rglob("*.py"):
        for module in imported(path):
            if module.split(".")[0] not in ALLOWED:
                yield f"{path.relative_to(variant)} imports {module}"
            inside = variant.joinpath(*module.split(".")[1:])
            if module.startswith("warpup.") and not (inside.is_dir() or inside.with_suffix(".py").exists()):
                yield f"{path.relative_to(variant)} imports {module}, which is not there"
    told = json.loads((variant / "metadata.json").read_text())["digest"]["files"]
    there = digest(variant)
    there.pop("metadata.json")
    yield from (
        f"{name} is not what the digest says" for name in told.keys() | there if told.get(name) != there.get(name)
    )


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports by their whole names, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            if node.module == "warpup":
                yield from (f"warpup.{alias.name}" for alias in node.names)


def glibc(variant: Path) -> int:
    """The newest glibc, 2.x, that a library asks for."""
    libraries = (path.read_bytes() for path in variant.rglob("*.so"))
    return max(int(x) for data in libraries for x in re.findall(rb"GLIBC_2\.(\d+)", data))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where `build/` is written")
    failed = False
    for variant in make(parser.parse_args().folder):
        size = sum(path.stat().st_size for path in variant.rglob("*") if path.is_file())
        newest = glibc(variant)
        older = "" if newest <= HUB_GLIBC else f" (the Hub asks for 2.{HUB_GLIBC}: build it in a manylinux container)"
        print(f"{variant}: {size / 1e6:.1f} MB, needs glibc 2.{newest}{older}")
        for line in wrong(variant):
            failed = True
            print(f"  {line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
