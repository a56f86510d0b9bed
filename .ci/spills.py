#!/usr/bin/env python3
"""Compiles CUDA sources with nvcc and fails if a kernel spills registers, but for the exceptions below."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

EXCEPTIONS = {  # demangled name: reason
    r"_kernel<double\b": "float64 serves gradient checks and references, not a hot path",
}
FLAGS = [
    "-std=c++20",
    "-O3",
    "-arch=sm_90",
    "-Icsrc",
    "--expt-relaxed-constexpr",
    "--extended-lambda",
    "-Xptxas",
    "-v",
    "-c",
]


def compile_log(source: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".o") as output:
        ccache = [shutil.which("ccache")] if shutil.which("ccache") else []
        done = subprocess.run([*ccache, "nvcc", *FLAGS, source, "-o", output.name], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{source} does not compile:\n{done.stderr}")
    return subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True).stdout


def main(sources: list[str]) -> None:
    spilled, kernels = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, log in zip(sources, pool.map(compile_log, sources), strict=True):
            for name, stores, loads in re.findall(
                r"Function properties for (.*)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", log
            ):
                kernels += 1
                if int(stores) + int(loads) and not any(re.search(pattern, name) for pattern in EXCEPTIONS):
                    spilled.append(f"{source}: {name}: {stores} bytes of spill stores, {loads} of loads")
    print("\n".join(spilled) or f"{kernels} kernels in {len(sources)} files, none spills")
    sys.exit(1 if spilled or not kernels else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
