"""Every op on small shapes against float64, for `compute-sanitizer --tool memcheck python bench/sanitize.py`.

Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: inside of a block of the caching allocator an overrun is not seen.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch

from tests.support.cases import CASES, Case, name_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["grad", "small"], help="names in the case table's `sizes`")
    arguments = parser.parse_args()
    grid = itertools.product(CASES, arguments.sizes)
    runs = [(case, size, dtype, variant) for case, size in grid for dtype in case.dtypes for variant in case.variants]
    failed = 0
    for case, size, dtype, variant in runs:
        try:
            check(case, case.make(size, dtype, variant=variant), arguments.device)
        except Exception as error:
            failed += 1
            print(f"FAILED: {case.op}, {variant}, {name_of(dtype)}, {size}: {error!r}", flush=True)
    print(f"{len(runs) - failed} of {len(runs)} calls, both ways, of {len(CASES)} ops agree with float64")
    return int(failed > 0)


def check(case: Case, inputs: dict, device: str) -> None:
    """As `Case.check`, but only our op runs on the device: the sanitizer has our kernels to watch, not torch's."""
    there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    case.compare([result.cpu() for result in case.run(there)], inputs)


if __name__ == "__main__":
    sys.exit(main())
