"""Packages that only some functions need. Nothing here imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def needs(name: str, package: str, install: str) -> Iterator[None]:
    """Around the import of an optional package: where it fails, a ModuleNotFoundError says that `name` needs it, to
    `pip install` what is given, and why: a package that is there may be too old, or broken."""
    try:
        yield
    except ImportError as error:
        told = f"{name} needs {package}: pip install {install} ({error})"
        raise ModuleNotFoundError(told, name=error.name) from error


def peft() -> ModuleType:
    """The package peft. Raises ImportError without it, or below 0.20: until 0.19.0 the factors of an adapter on fused
    experts have each other's widths, and 0.19.1 finds no "all-linear" on models that have such experts."""
    import peft
    from packaging.version import Version

    if Version(peft.__version__) < Version("0.20"):
        raise ImportError(f"version {peft.__version__} is here, 0.20 is the first that fits", name="peft")
    return peft
