"""Writes docs/operators.md: for every public function, what runs it and where its kernels, tests and benchmark are.

    python tools/operators.py            write it
    python tools/operators.py --check    exit 1 if it is not up to date (tests/test_operators.py does the same)

Everything is read off the sources, nothing is listed by hand and nothing is imported: public names from
`__init__.pyi`; from each function the raw ops that it can reach, through the functions it calls, the results of
`_autograd.differentiable("name")` and `_op.short("name")`, and the bodies of `_op.composite` ops; for each raw op the
file csrc/<family>/<stem>.h that declares its kernel `<name>_cpu`. `warpup info NAME` prints a row of the result.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python/warpup"
PAGE = ROOT / "docs/operators.md"
# Calls that a library makes a matrix product of, beside the operator @.
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "conv1d", "conv2d", "conv_transpose2d", "_grouped_mm"}
OPENING = """\
# Operators

Where each public function of `warpup` is: written by `tools/operators.py`, do not edit. Curly braces stand for several
files: `name{.h,_cpu.cpp}` is `name.h` and `name_cpu.cpp`. In a kernel's files, `.h` is the contract (start there),
`_cpu.cpp` and `_cuda.cu` the kernels, `_math.h` the formulas that both share, `_check.cpp` the check of the arguments,
`_torch.cpp` and `_arrays.cpp` the two bindings. `warpup info NAME` prints the same on the command line.
"""


# ---- Python: from a function to the raw ops it reaches --------------------------------------------------------------


class Module:
    """The top-level names of a file, and what they are made of."""

    def __init__(self, path: Path):
        self.path = path
        self.package = ("warpup", *path.relative_to(PACKAGE).parts[:-1])
        self.nodes: dict[str, list[ast.AST]] = {}
        self.imports: dict[str, tuple[Path, str | None]] = {}  # local name -> (file, name in it; None: the module)
        self.composites: dict[str, ast.AST] = {}  # raw op -> the function that is its body
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):  # those within functions too
            if isinstance(node, ast.ImportFrom):
                self._import(node)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.nodes.setdefault(node.name, []).append(node)
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and _last(decorator.func) == "composite":
                        schema = _text(decorator.args[0])
                        self.composites[schema.partition("(")[0]] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    for name in ast.walk(target):
                        if isinstance(name, ast.Name):
                            self.nodes.setdefault(name.id, []).append(node)

    def _import(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else ()
        parts = (*base, *(node.module.split(".") if node.module else ()))
        if parts[:1] != ("warpup",):
            return
        for alias in node.names:
            local = alias.asname or alias.name
            if inner := module_file((*parts, alias.name)):
                self.imports[local] = (inner, None)
            elif outer := module_file(parts):
                self.imports[local] = (outer, alias.name)


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _text(node: ast.AST) -> str:
    """A string, or the beginning of one that is formatted."""
    node = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def module_file(parts: tuple[str, ...]) -> Path | None:
    place = PACKAGE.joinpath(*parts[1:])
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


@cache
def module(path: Path) -> Module:
    return Module(path)


@cache
def composites() -> dict[str, tuple[Path, ast.AST]]:
    """Raw op that is made of other ops -> where its body is."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found |= {name: (path, node) for name, node in module(path).composites.items()}
    return found


@dataclass
class Reach:
    """What a function can call."""

    ops: set[str] = field(default_factory=set)  # raw ops
    products: bool = False  # a library's matrix product
    triton: bool = False
    seen: set[tuple[Path, str]] = field(default_factory=set)

    def name(self, path: Path, name: str) -> None:
        """Follow a top-level name of a file. The plain references, `reference_*`, are not what runs."""
        if (path, name) in self.seen or "reference" in name:
            return
        self.seen.add((path, name))
        self.triton |= "triton" in path.stem
        here = module(path)
        if name in here.imports:
            where, there = here.imports[name]
            if there is not None and where.name not in ("_op.py", "_autograd.py"):
                self.name(where, there)
        for node in here.nodes.get(name, ()):
            self.body(path, node)

    def body(self, path: Path, node: ast.AST) -> None:
        here = module(path)
        for inner in ast.walk(node):
            if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.MatMult):
                self.products = True
            elif isinstance(inner, ast.Attribute):
                if ast.unparse(inner.value) in ("ops", "_op.ops", "torch.ops.warpup"):
                    self.op(inner.attr)
                elif isinstance(inner.value, ast.Name) and here.imports.get(inner.value.id, ("", ""))[1] is None:
                    self.name(here.imports[inner.value.id][0], inner.attr)  # module.function
                elif inner.attr in PRODUCTS:
                    self.products = True
            elif isinstance(inner, ast.Call) and _last(inner.func) == "differentiable" and inner.args:
                name = _text(inner.args[0])
                others = [_text(k.value) for k in inner.keywords if k.arg == "backward"]
                for op in (name, *(others or [f"{name}_backward"])):
                    self.op(op)
            elif isinstance(inner, ast.Call) and _last(inner.func) == "short" and inner.args:
                self.op(_text(inner.args[0]))
            elif isinstance(inner, ast.Name):
                self.name(path, inner.id)

    def op(self, name: str) -> None:
        if not name or name in self.ops:
            return
        self.ops.add(name)
        if name in composites():
            path, node = composites()[name]
            self.body(path, node)


# ---- C++: from a raw op to its files --------------------------------------------------------------------------------


@cache
def kernels() -> dict[str, str]:
    """Raw op -> "family/stem" of the contract that declares its kernel."""
    found = {}
    for header in sorted((ROOT / "csrc").glob("*/*.h")):
        for name in re.findall(r"^void (\w+)_cpu\(", header.read_text(), re.MULTILINE):
            found[name] = f"{header.parent.name}/{header.stem}"
    return found


@cache
def registered() -> dict[str, str]:
    """Raw op -> "family/stem" of the <stem>_torch.cpp with its schema."""
    found = {}
    for path in sorted((ROOT / "csrc").glob("*/*_torch.cpp")):
        for name in re.findall(r'm\.def\(\s*"(\w+)[("]', path.read_text()):
            found[name] = f"{path.parent.name}/{path.name.removesuffix('_torch.cpp')}"
    return found


def kernel_of(op: str) -> str | None:
    """ "family/stem" of the kernel behind a raw op: by its own name, or without what a variant adds to it."""
    if op in composites():
        return None
    name = op.rstrip("_")
    while name:
        if name in kernels():
            return kernels()[name]
        name = name.rpartition("_")[0]
    return registered().get(op)


def files_of(stem: str, endings: str = r"(_check\.h|_\w+\.cpp|_math\.h|_cpu\w*\.h|_cuda\w*\.cuh?|\.h)") -> list[str]:
    """Files of a kernel, and of the check and the bindings that carry its stem."""
    family, name = stem.split("/")
    found = [p.name for p in (ROOT / "csrc" / family).iterdir() if re.fullmatch(re.escape(name) + endings, p.name)]
    return [f"csrc/{family}/{file}" for file in sorted(found)]


def has_cuda(stem: str) -> bool:
    return any(file.endswith("_cuda.cu") for file in files_of(stem))


# ---- A public function ----------------------------------------------------------------------------------------------


@dataclass
class Operator:
    name: str
    path: Path  # of the Python module

    @property
    def family(self) -> str:
        return self.path.parent.relative_to(PACKAGE).parts[0]

    @cached_property
    def reach(self) -> Reach:
        reach = Reach()
        reach.name(self.path, self.name)
        return reach

    @cached_property
    def kernels(self) -> list[str]:
        """Stems of the kernels that it reaches, its own first."""
        stems = {stem for stem in map(kernel_of, self.reach.ops) if stem}
        return sorted(stems, key=lambda stem: (not self._own(stem), stem))

    def _own(self, stem: str) -> bool:
        ops = {op for op, at in kernels().items() if at == stem} | {stem.split("/")[1]}
        return self.name.rstrip("_") in ops

    @property
    def runs(self) -> str:
        """What runs it, in words."""
        reach = self.reach
        if not self.kernels:
            return "library products" if reach.products else "torch operations"
        own = [stem for stem in self.kernels if self._own(stem)]
        if own and reach.products and reach.triton:
            return "CPU kernel or library products; on CUDA library products or a Triton kernel"
        if reach.products:
            return f"library products + fused {'epilogue' if len(self.kernels) == 1 else 'kernels'}"
        where = "CPU kernel, CUDA kernel" if has_cuda(self.kernels[0]) else "CPU kernel; on CUDA torch operations"
        return where if own else f"{where} ({', '.join(stem.split('/')[1] for stem in self.kernels)})"

    def files(self, stem: str) -> list[list[str]]:
        """The files of one of its kernels, and the check and torch binding where they carry another stem."""
        shared = {registered()[op] for op in self.reach.ops if op in registered() and kernel_of(op) == stem}
        shared -= {*self.kernels}
        return [files_of(stem), *(files_of(other, r"_(check\.h|check\.cpp|torch\.cpp)") for other in sorted(shared))]

    def _named(self, folder: str, *patterns: str) -> list[str]:
        """Files of the family that carry its name, or its module's or kernel's, or else mention it."""
        stems = dict.fromkeys([self.name.rstrip("_"), self.path.stem, *(s.split("/")[1] for s in self.kernels[:1])])
        room = ROOT / folder / self.family
        mention = re.compile(rf"\b{re.escape(self.name)}\b")
        found = []
        for pattern in patterns:
            files = sorted(room.rglob(pattern.format("*")))
            named = [p for stem in stems for p in files if p.name == pattern.format(stem)]
            named = [p for p in named if mention.search(p.read_text())] or named
            named = named[:1] or [p for p in files if mention.search(p.read_text())][:1]
            found += [str(p.relative_to(ROOT)) for p in named]
        return found

    @property
    def tests(self) -> list[str]:
        return self._named("tests", "test_{}.py", "spec_{}.py")

    @property
    def bench(self) -> list[str]:
        return self._named("bench", "bench_{}.py")


@cache
def operators() -> list[Operator]:
    """The public functions, in the order of `__init__.pyi`."""
    found = []
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            path = module_file(("warpup", *node.module.split(".")))
            names = [alias.name for alias in node.names]
            found += [Operator(name, path) for name in names if _is_function(path, name)]
    return found


def _is_function(path: Path, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.Assign) for node in module(path).nodes.get(name, ()))


# ---- The page -------------------------------------------------------------------------------------------------------


def braces(files: list[str]) -> str:
    """`a/name{.h,_cpu.cpp}` of files with one beginning."""
    if len(files) < 2:
        return "".join(files)
    start = files[0]
    while not all(file.startswith(start) for file in files):
        start = start[:-1]
    start = start.rstrip("_")
    return start + "{" + ",".join(file[len(start) :] for file in files) + "}"


def link(files: list[str]) -> str:
    first = next((f for f in files if f.endswith(".h") and not f.endswith(("_check.h", "_math.h"))), *files[:1] or [""])
    return f"[`{braces(files)}`](../{first})" if files else "-"


def page() -> str:
    text = [OPENING]
    for family in dict.fromkeys(o.family for o in operators()):
        there = (ROOT / f"docs/{family}.md").is_file()
        text.append(f"## {family}\n")
        text.append(f"Page: [{family}.md]({family}.md)\n" if there else "Page: -\n")
        text.append("| function | what runs it | kernel | tests | benchmark |\n|---|---|---|---|---|")
        for o in (o for o in operators() if o.family == family):
            cells = [
                f"[`{o.name}`](../{o.path.relative_to(ROOT)})",
                o.runs,
                "<br>".join(link(files) for stem in o.kernels for files in o.files(stem)) or "none",
                "<br>".join(link([f]) for f in o.tests) or "-",
                "<br>".join(link([f]) for f in o.bench) or "-",
            ]
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return int(not PAGE.is_file() or PAGE.read_text() != page())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
