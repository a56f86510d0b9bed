"""The package peft, in a version that fits."""

from types import ModuleType


def peft() -> ModuleType:
    """The package. ImportError without it, or below 0.20: until 0.19.0 the factors of an adapter on fused experts
    have each other's widths, and 0.19.1 finds no "all-linear" on models that have such experts."""
    import peft
    from packaging.version import Version

    if Version(peft.__version__) < Version("0.20"):
        raise ImportError(f"version {peft.__version__} is here, 0.20 is the first that fits", name="peft")
    return peft
