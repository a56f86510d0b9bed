#!/usr/bin/env python3
"""Fails if a CUDA kernel spills registers, but for the exceptions below: .ci/spills.py BUILD_FOLDER

The folder was configured with CUDAFLAGS="-Xptxas -v". Its compile commands run once more for what ptxas says; the
compiler cache has that, so nothing is compiled twice.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

EXCEPTIONS = {  # demangled name: reason
    r"_kernel<double\b": "float64 serves gradient checks and references, not a hot path",
}


def compile_log(entry: dict) -> str:
    done = subprocess.run(entry["command"], shell=True, cwd=entry["directory"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{entry['file']} does not compile:\n{done.stderr}")
    return subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True).stdout


def main(folder: str) -> None:
    database = subprocess.run(["ninja", "-C", folder, "-t", "compdb"], capture_output=True, text=True, check=True)
    entries = [entry for entry in json.loads(database.stdout) if entry["file"].endswith(".cu")]
    spilled, kernels = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for entry, log in zip(entries, pool.map(compile_log, entries), strict=True):
            for name, stores, loads in re.findall(
                r"Function properties for (.*)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", log
            ):
                kernels += 1
                if int(stores) + int(loads) and not any(re.search(pattern, name) for pattern in EXCEPTIONS):
                    spilled.append(f"{entry['file']}: {name}: {stores} bytes of spill stores, {loads} of loads")
    print("\n".join(spilled) or f"{kernels} kernels in {len(entries)} files, none spills")
    sys.exit(1 if spilled or not kernels else 0)


if __name__ == "__main__":
    main(sys.argv[1])
