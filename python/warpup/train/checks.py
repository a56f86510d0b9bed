"""Settings that cannot be, and settings that nothing would read: refused by name before any work."""

from dataclasses import fields

from .errors import TrainError


def check_positive(settings, *names: str, place: str) -> None:
    """Raise TrainError unless the named settings are above 0 or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise TrainError(f"{place}.{name}: expected more than 0, got {value!r}")


def check_not_negative(settings, *names: str, place: str) -> None:
    """Raise TrainError unless the named settings are at least 0 or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= 0:
            raise TrainError(f"{place}.{name}: expected at least 0, got {value!r}")


def check_unused(settings, *names: str, place: str, why: str) -> None:
    """Raise TrainError if a named setting was given, that is, differs from its default; `why` nothing reads it."""
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise TrainError(f"{place}.{name}: got {getattr(settings, name)!r}, but {why}")
