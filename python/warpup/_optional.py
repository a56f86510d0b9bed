"""Packages that only some functions need. Nothing here imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(name: str, package: str, install: str) -> Iterator[None]:
    """Around the import of an optional package: where it is missing, a ModuleNotFoundError says that `name` needs it,
    and to `pip install` what is given."""
    try:
        yield
    except ImportError as error:
        raise ModuleNotFoundError(f"{name} needs {package}: pip install {install}", name=error.name) from error
