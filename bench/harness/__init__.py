"""How operators are timed: `measure` runs a comparison, `report` prints it; what is compared is in bench/<family>."""

import importlib
from pathlib import Path


def modules() -> list:
    """Every bench/<family>/bench_<op>.py, imported."""
    found = sorted(Path(__file__).parent.parent.glob("*/bench_*.py"))
    return [importlib.import_module(f"bench.{path.parent.name}.{path.stem}") for path in found]
