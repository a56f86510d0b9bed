"""scikit-build-core's hooks, with one addition: where the target Python has no torch, torch is asked for as a build
requirement, so that `pip install .` works on a bare machine and downloads nothing twice where torch is there."""

import os
import sysconfig

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403


def _torch_if_missing() -> list[str]:
    include = os.path.join(sysconfig.get_path("platlib"), "torch", "include")
    return [] if os.path.exists(include) else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    return [*_build.get_requires_for_build_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings=None):
    return [*_build.get_requires_for_build_editable(config_settings), *_torch_if_missing()]
