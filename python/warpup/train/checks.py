"""Settings that cannot be, and settings that nothing would read: refused by name before any work."""

import contextlib
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields

from .errors import TrainError
from .settings import decay_steps


@contextlib.contextmanager
def named(place: str) -> Iterator[None]:
    """A TrainError within begins with the place of the setting that it names."""
    try:
        yield
    except TrainError as error:
        raise TrainError(f"{place}.{error}") from error


def check_values(settings, *, place: str) -> None:
    """Raise TrainError on what no setting of its kind can be, as a config's reader does, for settings from Python too:
    a word that is not one of the choices, a number that is NaN or infinite, betas or a weight decay of no AdamW."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value, options = getattr(settings, name), typing.get_args(hint) or (hint,)
        choices = [c for o in (hint, *options) if typing.get_origin(o) is typing.Literal for c in typing.get_args(o)]
        if choices and value not in choices and not (value is None and type(None) in options):
            raise TrainError(f"{place}.{name}: expected one of {', '.join(choices)}, got {value!r}")
        if float in options and isinstance(value, float) and not math.isfinite(value):
            raise TrainError(f"{place}.{name}: expected a finite number, got {value!r}")
    if len(settings.betas) != 2 or not all(0 <= beta < 1 for beta in settings.betas):
        raise TrainError(f"{place}.betas: expected two numbers from 0 to below 1, got {settings.betas}")
    check_not_negative(settings, "weight_decay", place=place)


def check_held_out(settings) -> None:
    """Raise TrainError on settings of a measurement that cannot be, from Python or from a config."""
    check_positive(settings, "points", "max_new_tokens", "stop_after", place="held_out")
    check_not_negative(settings, "samples", place="held_out")


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


def check_rate(settings, *, place: str) -> None:
    """Raise TrainError on a decay of the learning rate that does not fit into the steps, or that nothing would read."""
    if settings.lr_schedule != "wsd":
        check_unused(settings, "lr_decay", place=place, why='only lr_schedule "wsd" reads it')
        return
    if not 0 < settings.lr_decay <= 1:
        raise TrainError(
            f"{place}.lr_decay: expected a share of the steps, above 0 and at most 1, got {settings.lr_decay}"
        )
    decay = decay_steps(settings.steps, settings.lr_decay)
    if settings.lr_warmup + decay > settings.steps:
        raise TrainError(
            f"{place}.lr_decay: a rise of {settings.lr_warmup} steps and a decay of {decay} do not fit into "
            f"{place}.steps, {settings.steps}; lower lr_warmup or lr_decay"
        )


def filled(number: int | None) -> int:
    """A setting that may be left open, when `Recipe` has put what fits into memory in its place."""
    assert number is not None
    return number


def check_unused(settings, *names: str, place: str, why: str) -> None:
    """Raise TrainError if a named setting was given, that is, differs from its default; `why` nothing reads it."""
    defaults = {field.name: field.default for field in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            raise TrainError(f"{place}.{name}: got {getattr(settings, name)!r}, but {why}")


BUDGET: dict[str, type] = {  # what a thinking budget is made of
    "tokens": int, "message": str, "warn_at": int, "warning": str, "probe_every": int, "probe_below": float,
    "probe_least": int,
}  # fmt: skip


def check_budget(given, name: str) -> None:
    """Raise TrainError on what cannot be a thinking budget; `name` is that of the setting."""
    table = given if isinstance(given, dict) else {"tokens": given}
    if unknown := table.keys() - BUDGET.keys():
        raise TrainError(f"{name}: it has {', '.join(BUDGET)}, got {', '.join(map(str, unknown))}")
    if "tokens" not in table:
        raise TrainError(f"{name}: tokens is missing, how many thinking may take")
    for key, value in table.items():
        kind = BUDGET[key]
        if type(value) is not kind and not (kind is float and type(value) is int):
            wanted = {str: "a text", int: "a whole number", float: "a number"}[kind]
            raise TrainError(f"{name}: expected {wanted} for {key}, got {value!r}")


def check_stop(stop: Sequence[str], name: str) -> None:
    """Raise TrainError on what cannot be a list of stop strings; `name` is that of the setting."""
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise TrainError(f'{name}: expected a list of texts that are not empty, such as ["</answer>"], got {stop!r}')
