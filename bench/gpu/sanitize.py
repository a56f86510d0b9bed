"""Every op on small shapes against float64, for `compute-sanitizer --tool memcheck python -m bench.gpu.sanitize`.

Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: inside of a block of the caching allocator an overrun is not seen.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys

import torch

from tests.support.cases import CASES, Case, name_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["grad", "small"], help="names in the case table's `sizes`")
    parser.add_argument("-k", dest="pattern", default="", help="only ops whose name this regular expression finds")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if re.search(arguments.pattern, case.op)]
    grid = itertools.product(chosen, arguments.sizes)
    runs = [(case, size, dtype, variant) for case, size in grid for dtype in case.dtypes for variant in case.variants]
    failed = 0
    for case, size, dtype, variant in runs:
        try:
            check(case, case.make(size, dtype, variant=variant), arguments.device)
        except Exception as error:
            failed += 1
            print(f"FAILED: {case.op}, {variant}, {name_of(dtype)}, {size}: {error!r}", flush=True)
    print(f"{len(runs) - failed} of {len(runs)} calls, both ways, of {len(chosen)} ops agree with float64")
    return int(failed > 0)


def check(case: Case, inputs: dict, device: str) -> None:
    """As `Case.check`, but only our op runs on the device: the sanitizer has our kernels to watch, not torch's."""
    there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    case.compare([result.cpu() for result in case.run(there)], inputs)


if __name__ == "__main__":
    sys.exit(main())
