"""What a check looks at, what it finds, and the list of all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple

from ..config import TrainConfig
from ..errors import TrainError
from ..model.precision import autocast_dtype
from ..rewards.reward_set import RewardSet

Verdict = Literal["fine", "note", "fault", "unknown"]
Examples = Sequence[Mapping[str, Any]]


@dataclass
class Patient:
    """What is examined: a model in float32 and in `eval()`, its tokenizer, and what the run is to be.

    config: the run's, or the defaults. data: examples by where they come from, such as "rlvr" or "held_out". rewards:
    those that score the examples of these places.
    """

    model: Any
    tokenizer: Any
    config: TrainConfig = field(default_factory=TrainConfig)
    data: Mapping[str, Examples] = field(default_factory=dict)
    rewards: Mapping[str, RewardSet] = field(default_factory=dict)

    @property
    def products(self) -> Any:
        """What the run makes its products in: torch.bfloat16, or None for float32."""
        return autocast_dtype(self.config.dtype, self.model)

    def settings(self, name: str) -> list[Any]:
        """The values of a setting in the stages that have it."""
        return [getattr(stage, name) for stage in self.config.all_stages() if hasattr(stage, name)]


class Result(NamedTuple):
    """What came out of a check: fine; note, worth knowing; fault, it would spoil the run. change: what to do."""

    verdict: Verdict
    found: str
    change: str = ""


class Finding(NamedTuple):
    """A line of the report: a result, the check's name and what it tried."""

    check: str
    verdict: Verdict
    tried: str
    found: str
    change: str


def fine(found: str) -> Result:
    """It is as it should be."""
    return Result("fine", found)


def note(found: str, change: str = "nothing") -> Result:
    """Worth knowing; the run as it is set up is not harmed."""
    return Result("note", found, change)


def fault(found: str, change: str) -> Result:
    """It would spoil the run."""
    return Result("fault", found, change)


Check = Callable[[Patient], Iterator[Result]]
CHECKS: dict[str, Check] = {}
FILES = ("tokens", "layers", "numerics", "sampling", "data", "reward", "settings")  # of checks, in the report's order


def check(function: Check) -> Check:
    """Register a check under its function's name; its docstring says what it tries, in one line."""
    CHECKS[function.__name__] = function
    return function


def examine(patient: Patient) -> Iterator[Finding]:
    """The findings of all checks, in their order. One that fails itself is a finding too: "unknown"."""
    for file in FILES:
        import_module(f"{__package__}.{file}")  # registers its checks
    for name, function in CHECKS.items():
        tried = " ".join((function.__doc__ or "").split())
        try:
            for result in function(patient):
                yield Finding(name, result.verdict, tried, result.found, result.change)
        except TrainError as error:
            yield Finding(name, "unknown", tried, f"could not be tried: {error}", "as it says")
        except Exception as error:  # a model of another kind may raise anything
            found = f"could not be tried: {type(error).__name__}: {' '.join(str(error).split())}"
            yield Finding(name, "unknown", tried, found, "look into it by hand")


def status(findings: Sequence[Finding]) -> int:
    """The exit status: 0, 1 where a fault would spoil the run, 2 where something could not be tried."""
    verdicts = {finding.verdict for finding in findings}
    return 1 if "fault" in verdicts else 2 if "unknown" in verdicts else 0
