"""Packages that only some functions need. Nothing here imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(name: str, package: str, install: str) -> Iterator[None]:
    """Around the import of an optional package: where it fails, a ModuleNotFoundError says that `name` needs it, to
    `pip install` what is given, and why: a package that is there may be too old, or broken."""
    try:
        yield
    except ImportError as error:
        told = f"{name} needs {package}: pip install {install} ({error})"
        raise ModuleNotFoundError(told, name=error.name) from error
