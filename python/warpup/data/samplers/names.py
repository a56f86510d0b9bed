"""Samplers by name, with options: `"sec:alpha=.5"`, `"paced:score=loss,order=anti"`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from .aioli import AioliSampler
from .arms import ArmSampler, BalancedSampler, DUMPSampler, RecencySampler, SECSampler, WeaknessSampler
from .protocol import Sampler, UniformSampler
from .subsets import (
    CyclicalSampler,
    PacedSampler,
    PassRateSampler,
    RS2Sampler,
    SubsetSampler,
    ViewsSampler,
    WeightedSampler,
)

SAMPLERS: dict[str, type] = {
    "uniform": UniformSampler,
    "sec": SECSampler,
    "dump": DUMPSampler,
    "weakness": WeaknessSampler,
    "aioli": AioliSampler,
    "recency": RecencySampler,
    "balanced": BalancedSampler,
    "cyclical": CyclicalSampler,
    "rs2": RS2Sampler,
    "paced": PacedSampler,
    "views": ViewsSampler,
    "weighted": WeightedSampler,
    "pass_rate": PassRateSampler,
}
ARMS = [name for name, kind in SAMPLERS.items() if issubclass(kind, ArmSampler)]  # those that read a category
GIVEN = ("self", "size", "categories", "seed", "scores")  # what the data and the run give, not the name


def parse_sampler(text: str) -> tuple[type, dict[str, Any]]:
    """The class and the options of a sampler's name; `score` among them is the column of the scores. ValueError on what
    it does not know."""
    name, _, rest = text.partition(":")
    if name not in SAMPLERS:
        raise ValueError(f"expected one of {', '.join(SAMPLERS)}, with options as in `sec:alpha=.5`, got {name!r}")
    kind = SAMPLERS[name]
    parts = [part.partition("=") for part in rest.split(",") if part.strip()]
    keys = [key.strip() for key, _, _ in parts]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{text!r}: {twice[0]} is given twice")
    options = {key.strip(): _value(value.strip()) for key, _, value in parts}
    if wrong := [key for key, equals, value in parts if not equals or not value.strip()]:
        raise ValueError(f"{text!r}: expected key=value after the name, got {wrong[0]!r}")
    signature = inspect.signature(kind).parameters
    known = [key for key in signature if key not in GIVEN] + ["score"] * ("scores" in signature)
    if unknown := options.keys() - set(known):
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}, it has {', '.join(known) or 'none'}")
    for key, value in options.items():
        default = signature[key].default if key in signature else ""
        if isinstance(default, bool) and value not in (True, False):
            raise ValueError(f"{key}: expected true or false, got {value!r}")
        if isinstance(default, float | int) and isinstance(value, str):
            raise ValueError(f"{key}: expected a number, got {value!r}")
    required = [key for key in known if key != "score" and signature[key].default is inspect.Parameter.empty]
    required += ["score"] * (issubclass(kind, SubsetSampler) and kind.needs_scores)
    if missing := [key for key in required if key not in options]:
        raise ValueError(f"{name} needs {missing[0]}, as in `{name}:{missing[0]}=...`")
    return kind, options


def make_sampler(
    sampler: str | Sampler, examples: Sequence[Mapping[str, Any]], *, category: str = "category", seed: int = 0
) -> Sampler:
    """The sampler of a name over these examples, or the one that is given.

    category: the column that samplers over arms read. Raises ValueError on an unknown name or option, and on columns
    that examples do not have.
    """
    if not isinstance(sampler, str):
        return sampler
    kind, options = parse_sampler(sampler)
    if issubclass(kind, ArmSampler):
        return kind(_column(sampler, examples, category), seed=seed, **options)
    if column := options.pop("score", None):
        options["scores"] = _column(sampler, examples, column)
    return kind(len(examples), seed=seed, **options)


def _column(sampler: str, examples: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    values = [example.get(name) for example in examples]
    if missing := sum(value is None for value in values):
        raise ValueError(f"sampler {sampler}: {missing} of {len(examples)} examples have no {name!r} column")
    return values


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)
