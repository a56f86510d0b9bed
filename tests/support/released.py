"""Code of other projects as they released it: a wheel's Python files, fetched by pip when a test asks for them, and
imported without what they import.

A protocol is what its owner's code does, so adapters and "as in NAME VERSION" are held against that code, not against a
memory of it. Nothing of it is kept in this repository. A wheel of vLLM has 330 MB, so they are fetched where
WARPUP_DOWNLOADS=1 asks for it, as CI does; without, or where pip cannot reach an index, the test is skipped.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.abc
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@functools.cache
def _fetched(project: str, version: str, folder: str) -> tuple[Path, str]:
    """The place of the files, and why they are not there."""
    # The user's own folder: what lies there is run, and a common temporary folder is open to others.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "warpup-released" / f"{project}-{version}"
    place.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f"{place.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers wait for the one that fetches
        if (place / folder).is_dir():
            return place, ""
        if os.environ.get("WARPUP_DOWNLOADS") != "1":
            return place, "WARPUP_DOWNLOADS=1 would fetch it"
        with tempfile.TemporaryDirectory(dir=place.parent) as wheels:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "download"]
            options = ["-q", "--no-deps", "--only-binary=:all:", "--retries=0", "--timeout=20", "-d", wheels]
            done = subprocess.run([*pip, *options, f"{project}=={version}"], capture_output=True, text=True)
            found = list(Path(wheels).glob("*.whl"))
            if not found:
                return place, done.stderr.strip().rpartition("\n")[2] or "pip gave no wheel"
            with zipfile.ZipFile(found[0]) as wheel:
                for member in wheel.infolist():
                    member.filename = member.filename.rpartition(".data/purelib/")[2]  # of a wheel with a compiled tag
                    if member.filename.startswith(f"{folder}/") and member.filename.endswith(".py"):
                        wheel.extract(member, wheels)
            (Path(wheels) / folder).rename(place / folder)  # whole or not at all
    return place, ""


def released(project: str, version: str, package: str | None = None) -> Path:
    """The folder in which a release's `package` lies, its .py files alone."""
    place, missing = _fetched(project, version, package or project)
    if missing:
        pytest.skip(f"{project} {version}: {missing}")
    return place


class _Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub()


class Stub(metaclass=_Anything):
    """Stands for what a module imports and a test does not run: a base class, an annotation, a decorator, a call, a
    context; as a condition it is False."""

    def __init__(self, *arguments, **options):
        pass

    def __call__(self, function=None, *arguments, **options):
        return function

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub()

    def __class_getitem__(cls, item):
        return cls

    def __bool__(self):
        return False

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        return None


class _StubModule(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (Stub,), {})
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, place: Path, real: Sequence[str], stubs: Sequence[str], given: dict[str, dict]):
        self.place, self.real, self.stubs, self.given = place, set(real), tuple(stubs), given

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.stubs:
            return None
        file = self.place.joinpath(*name.split("."))
        if name in self.real:
            package = file.is_dir()
            file = file / "__init__.py" if package else file.with_suffix(".py")
            where = [str(file.parent)] if package else None
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=where)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        return _StubModule(spec.name)

    def exec_module(self, module):
        vars(module).update(self.given.get(module.__name__, {}))


@contextmanager
def imported(place: Path, real: Sequence[str], stubs: Sequence[str], *ours: str, given: dict[str, dict] | None = None):
    """While it lasts, the modules `real` come from `place`, and everything else below the packages `stubs` is a Stub,
    but for what `given` has by module and name. `ours`, modules of warpup, are imported anew in there, since they look
    at what is installed. Gives a dict of modules by name.
    """
    before = dict(sys.modules)
    for name in list(sys.modules):
        if name.partition(".")[0] in stubs or name in ours:
            del sys.modules[name]
    finder = _Finder(place, real, stubs, given or {})
    sys.meta_path.insert(0, finder)
    try:
        yield {name: importlib.import_module(name) for name in (*real, *ours)}
    finally:
        sys.meta_path.remove(finder)
        for name in list(sys.modules):
            if name.partition(".")[0] in stubs or name in ours:
                del sys.modules[name]
        sys.modules |= {n: m for n, m in before.items() if n not in sys.modules}
