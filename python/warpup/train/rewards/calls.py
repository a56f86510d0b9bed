"""How a reward function is called, and how what it returns is read.

A reward is an ordinary function. Two forms are told apart by the name of the first parameter:

    def reward(completion, example): ...       one call a completion; the first two are given by position
    def reward(completions, examples): ...     one call a group, the completions of one prompt; all given by name

Beside these a parameter is filled if it has one of the names of `ONE` or `GROUP`. Which names a function asks for is
looked up once, before anything is sampled.
"""

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import TrainError


@dataclass(frozen=True)
class Completion:
    """What a reward can know of a completion. text: without special tokens; raw_text: with them, end token included;
    token_ids: as sampled, the end token counted; finished: False where the length limit cut it off."""

    text: str
    raw_text: str
    token_ids: Sequence[int]
    finished: bool

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)


def completions_of(tokenizer, rollouts) -> list[Completion]:
    """The completions of `Rollouts`, in their order."""
    found = []
    for row, finished in enumerate(rollouts.finished.tolist()):
        ids = rollouts.completion(row)
        text, raw_text = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
        found.append(Completion(text, raw_text, ids, finished))
    return found


ONE: dict[str, Callable[[Completion], Any]] = {
    "raw_completion": lambda completion: completion.raw_text,
    "token_ids": lambda completion: completion.token_ids,
    "length": lambda completion: completion.length,
    "finished": lambda completion: completion.finished,
}
GROUP: dict[str, Callable[[Sequence[Completion], Sequence[Mapping]], Any]] = {
    "completions": lambda completions, examples: [completion.text for completion in completions],
    "raw_completions": lambda completions, examples: [completion.raw_text for completion in completions],
    "token_ids": lambda completions, examples: [completion.token_ids for completion in completions],
    "lengths": lambda completions, examples: [completion.length for completion in completions],
    "finished": lambda completions, examples: [completion.finished for completion in completions],
    "examples": lambda completions, examples: list(examples),
    "example": lambda completions, examples: examples[0],
}


OF_TRL = ("prompts", "completion_ids", "trainer_state")  # parameters of TRL's reward functions


class Call(NamedTuple):
    """One call of a reward function. lengths: tokens of each completion that it scores."""

    lengths: list[int]
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Signature:
    """What a reward function asks for. grouped: one call for the completions of a prompt; names: parameters that are
    filled by their name; asynchronous: written with `async def`."""

    grouped: bool
    names: tuple[str, ...]
    asynchronous: bool = False

    @classmethod
    def of(cls, function: Callable, name: str = "") -> "Signature":
        """TrainError if no reward can be called like this; `name` is what it calls the function, if not its own."""
        name = name or name_of(function)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # written in C: it is called with completion and example
            return cls(False, ())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        grouped = bool(parameters) and parameters[0].name == "completions"
        known: Mapping[str, Callable] = GROUP if grouped else ONE
        if asked := [p.name for p in parameters if p.name in OF_TRL]:
            raise TrainError(
                f"reward {name}: TRL fills {', '.join(asked)}. Here a function for the completions of a "
                "prompt takes (completions, examples), and asks for token_ids by name; prompts and columns are in the "
                "examples: [example['answer'] for example in examples]"
            )
        rest = parameters if grouped else [p for p in parameters if p not in positional[:2]]
        if not grouped and len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise TrainError(
                f"reward {name}: expected the parameters (completion, example), or (completions, "
                f"examples) for the completions of a prompt together, got {inspect.signature(function)}"
            )
        for parameter in rest:
            unfilled = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            if unfilled and (parameter.name not in known or parameter.kind is parameter.POSITIONAL_ONLY):
                raise TrainError(
                    f"reward {name}: nothing fills its parameter {parameter.name!r}; a "
                    f"{'group ' if grouped else ''}reward may ask for {', '.join(known)} by name, and finds the data's "
                    f"columns in {'examples' if grouped else 'example'}"
                )
        asynchronous = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        return cls(grouped, tuple(p.name for p in rest if p.name in known), asynchronous)

    def calls(self, completions: Sequence[Completion], examples: Sequence[Mapping], group: int) -> Iterator[Call]:
        """The calls that score N completions, of which `group` in a row belong to one prompt, with N examples."""
        size = group if self.grouped else 1
        for start in range(0, len(completions), size):
            part, of_part = completions[start : start + size], examples[start : start + size]
            lengths = [completion.length for completion in part]
            if self.grouped:
                yield Call(lengths, (), {name: GROUP[name](part, of_part) for name in self.names})
            else:
                yield Call(lengths, (part[0].text, of_part[0]), {name: ONE[name](part[0]) for name in self.names})


class Outcome(NamedTuple):
    """What a reward says of one completion. reward: NaN where it failed (`error` says how) or abstained. correct,
    format_ok: 1.0, 0.0 or NaN where it does not tell. token_rewards: one number a token, whose sum is `reward`."""

    reward: float = math.nan
    correct: float = math.nan
    format_ok: float = math.nan
    token_rewards: list[float] | None = None
    error: str | None = None

    @property
    def abstained(self) -> bool:
        """Whether it returned None."""
        return math.isnan(self.reward) and self.error is None


def attempt(function: Callable, signature: Signature, call: Call) -> list[Outcome]:
    """The outcomes of one call here and now, whatever it raises or returns."""
    try:
        return outcomes(function(*call.args, **call.kwargs), call, signature)
    except Exception as error:  # a user's function may raise anything
        return failed(call, error)


def attempt_together(
    function: Callable, signature: Signature, calls: Sequence[Call], timeout: float | None
) -> list[list[Outcome]]:
    """The outcomes of an `async def` reward's calls, all awaited at once, for at most `timeout` seconds each."""

    async def one(call: Call) -> list[Outcome]:
        try:
            async with asyncio.timeout(timeout):
                return outcomes(await function(*call.args, **call.kwargs), call, signature)
        except TimeoutError as error:
            return failed(call, TimeoutError(str(error) or f"no answer within {timeout} s"))
        except Exception as error:
            return failed(call, error)

    async def all_of_them() -> list[list[Outcome]]:
        return await asyncio.gather(*map(one, calls))

    return asyncio.run_coroutine_threadsafe(all_of_them(), _event_loop()).result()


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    # One for the whole process: a client that a reward keeps open between its calls belongs to the loop it began in.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def failed(call: Call, error: BaseException) -> list[Outcome]:
    """A failure for each completion of a call."""
    return [Outcome(error=f"{type(error).__name__}: {error}")] * len(call.lengths)


def outcomes(result: Any, call: Call, signature: Signature) -> list[Outcome]:
    """What a call returned, read for each of its completions; ValueError if that is not one entry for each."""
    if not signature.grouped or result is None:
        return [read(result, length) for length in call.lengths]
    if len(result) != len(call.lengths):
        raise ValueError(f"a group reward returns one entry for each of {len(call.lengths)} completions: {result!r}")
    return [read(entry, length) for entry, length in zip(result, call.lengths, strict=True)]


def read(result: Any, length: int) -> Outcome:
    """An entry: a number; None; an object with .reward and optionally .correct and .format_ok; or one number a token,
    where a row of a padded table may be longer than the completion. What is not finite is a failure."""
    try:
        value, tokens = getattr(result, "reward", result), None
        correct, format_ok = (float(getattr(result, name, math.nan)) for name in ("correct", "format_ok"))
        if value is None:
            return Outcome(correct=correct, format_ok=format_ok)
        if isinstance(value, list | tuple) or (getattr(value, "ndim", 0) == 1 and len(value) > 1):
            if len(value) < length:
                raise ValueError(f"{len(value)} rewards for the {length} tokens of a completion")
            tokens = [float(number) for number in value[:length]]
            value = math.fsum(tokens)
        value = float(value)
        if not math.isfinite(value):
            return Outcome(error=f"reward is {value}")
        return Outcome(value, correct, format_ok, tokens)
    except Exception as error:  # a user's function may return anything
        return Outcome(error=f"{type(error).__name__}: {error}")


def name_of(function: Callable) -> str:
    """`module:function`, as a reward is written into a run's config."""
    while isinstance(function, functools.partial):
        function = function.func
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"
