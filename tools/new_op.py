"""Makes the skeleton of an operator: it builds, and passes its contract tests, before you have written a line.

    python tools/new_op.py FAMILY NAME        for example: python tools/new_op.py moe moe_permute

The skeleton computes `scale * x`, forward and backward, for every dtype, on CPUs and GPUs. Its ten places are listed in
CONTRIBUTING.md; they come from tools/new_op_template/, where `new_op` and `new_family` stand for the two names.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = Path(__file__).parent / "new_op_template"
ROOMS = {"spec_": "tests/{family}", "fuzz_": "tests/cpp", ".py": "python/warpup/{family}", "": "csrc/{family}"}


def main() -> int:
    if len(sys.argv) != 3 or not all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in sys.argv[1:]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    family, name = sys.argv[1:]
    known = sorted(p.name for p in (ROOT / "csrc").iterdir() if p.name not in ("core", "torch", "arrays"))
    if family not in known:
        print(f"new_op: no family {family!r}, expected one of: {', '.join(known)}", file=sys.stderr)
        return 2
    written = {place(source, family, name): filled(source, family, name) for source in sorted(TEMPLATE.iterdir())}
    if taken := [path for path in written if path.exists()]:
        print(f"new_op: {taken[0].relative_to(ROOT)} exists already", file=sys.stderr)
        return 2
    for path, text in written.items():
        path.write_text(text)
    listed = [list_public_name(family, name)]
    for path in [*written, *listed]:
        print(path.relative_to(ROOT))
    written = [str(path) for path in written]
    subprocess.run(["clang-format", "-i", *(p for p in written if not p.endswith(".py"))], check=False)
    python = [p for p in written if p.endswith(".py")] + [str(listed[0])]
    subprocess.run(["ruff", "check", "-q", "--fix", "--select", "I,RUF022", *python], check=False)
    subprocess.run([sys.executable, str(ROOT / "tools/operators.py")], check=True)
    print("docs/operators.md")
    print(f"\nNow build, then: pytest tests/test_contract.py -k {name}")
    return 0


def place(source: Path, family: str, name: str) -> Path:
    room = next(room for mark, room in ROOMS.items() if source.name.startswith(mark) or source.suffix == mark)
    return ROOT / room.format(family=family) / source.name.replace("new_op", name)


def filled(source: Path, family: str, name: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("_"))
    text = source.read_text().replace("NewOp", camel).replace("new_family", family)
    return re.sub(r"new_op", name, text)


def list_public_name(family: str, name: str) -> Path:
    """In `__init__.pyi`: the import, and the name in __all__ (ruff puts both in order)."""
    path = ROOT / "python/warpup/__init__.pyi"
    text = path.read_text()
    text = text.replace("\n\n__all__ = [", f'\nfrom .{family}.{name} import {name}\n\n__all__ = [\n    "{name}",', 1)
    path.write_text(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
