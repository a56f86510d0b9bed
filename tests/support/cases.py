"""One table of the operators, for tests and benchmarks: how to call each op, on what, and what it must equal.

Each `tests/<family>/spec_<op>.py` has a list CASES, found here by its name; `test_contract.py` then holds the op to
everything that every op promises.
"""

import importlib
from pathlib import Path

from tests.support.case import Case, Inputs, agree, gradients_of, leaves, name_of, nudged, upcast

__all__ = ["CASES", "OPS", "Case", "Inputs", "agree", "gradients_of", "leaves", "name_of", "nudged", "upcast"]

SPECS = sorted(Path(__file__).parent.parent.glob("*/spec_*.py"))
CASES: list[Case] = [
    case for spec in SPECS for case in importlib.import_module(f"tests.{spec.parent.name}.{spec.stem}").CASES
]
OPS = {case.op: case for case in CASES}
