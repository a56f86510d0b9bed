"""A reflection schedule: what is added to the logits of some tokens, as a function of how far the generation is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from dataclasses import replace as replaced
from itertools import pairwise

import numpy as np

from warpup.reflection.apply_schedule import ANCHORS, PHASES, SCHEDULE, WAVES
from warpup.reflection.tokens import ReflectionTokens

UNITS = ("logit", "nat")
ACTS_IN = {  # the waves that a field has an effect on
    "amplitude": ("triangle", "cosine", "constant"),
    "period": ("triangle", "cosine"),
    "shift": ("triangle", "cosine", "table"),
}
LARGEST = 3.4028234663852886e38  # what is added to a logit is a float32
LEAST_PERIOD = 2.0**-22  # a shorter wave has no phase left after 2^31 tokens, in float64
PAPER_TOKENS = ("wait", "Wait", "but", "But", "Alternatively")


@dataclass(frozen=True)
class ReflectionSchedule:
    """delta(t), added to the logits of `tokens` before the division by the temperature.

    wave: "triangle", 0 -> amplitude at period / 4 -> 0 -> -amplitude at 3 period / 4 -> 0 (CyclicReflex); "cosine",
        with the same turning points; "constant", the amplitude (negative: TIP; -inf: a ban); "table", linear between
        the (t, delta) knots of `table`, held beyond; "off".
    amplitude: logits, or nats after the temperature where `unit` is "nat". period: tokens. What has no effect on a wave
        (the period and shift of a constant, the amplitude of a table) must be left at its default.
    tokens: ids or a `ReflectionTokens`, whose markers separate the phases.
    anchor: t counts generated tokens from the generation's start, the start of thinking, or the last token of the set
        (before the first one: the start of thinking).
    phase: where it acts: "think" (from the start, unless the prompt ended the thinking, to `</think>`), "answer",
        "code", "prompt", several of them, or "any".
    window: (begin, end) in t, end may be None; outside delta is 0. shift: of the wave, in periods.
    start_offset: tokens that were generated before this request began, as in a beam step that starts a new one.
    """

    wave: str = "triangle"
    amplitude: float = 5.0
    period: float = 1200
    _: KW_ONLY
    tokens: ReflectionTokens | Sequence[int]
    anchor: str = "generation"
    phase: str | Sequence[str] = "think"
    window: tuple[float, float | None] | None = None
    shift: float = 0.0
    start_offset: int = 0
    unit: str = "logit"
    table: Sequence[tuple[float, float]] = ()

    def __post_init__(self):
        for name, allowed in (("wave", WAVES), ("anchor", ANCHORS), ("unit", UNITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, got {getattr(self, name)!r}")
        phases = (self.phase,) if isinstance(self.phase, str) else tuple(self.phase)
        if not phases or not set(phases) <= {*PHASES, "any"}:
            raise ValueError(f"phase: expected some of {(*PHASES, 'any')}, got {self.phase!r}")
        if not LEAST_PERIOD <= self.period < math.inf:
            raise ValueError(f"period: expected tokens, at least {LEAST_PERIOD:.2g}, got {self.period!r}")
        banned = self.amplitude == -math.inf and self.wave == "constant" and self.unit == "logit"  # never drawn
        if not (abs(self.amplitude) <= LARGEST or banned):
            raise ValueError(
                "amplitude: expected a finite float32, or -inf with wave 'constant' and unit 'logit' (never drawn), "
                f"got {self.amplitude!r}"
            )
        table = tuple((float(t), float(v)) for t, v in self.table)
        rising = all(a[0] < b[0] for a, b in pairwise(table))
        if (self.wave == "table") != bool(table) or not rising:
            raise ValueError(f"table: expected (t, delta) knots by rising t with wave 'table' only, got {table}")
        if not all(math.isfinite(t) and abs(v) <= LARGEST for t, v in table):
            raise ValueError(f"table: expected knots of finite float32 numbers, got {table}")
        for name in ("shift", "start_offset"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)!r}")
        defaults = {f.name: f.default for f in fields(self)}
        for name, waves in ACTS_IN.items():
            acts = self.wave in (*waves, "off") or (name == "period" and self.wave == "table" and self.shift != 0)
            if not acts and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}: has no effect on wave {self.wave!r}, leave it at {defaults[name]!r}, got "
                    f"{getattr(self, name)!r}"
                )
        window = None if self.window is None else tuple(self.window)
        if window is not None:
            begin, end = window if len(window) == 2 else (None, None)
            if begin is None or not begin < (math.inf if end is None else end):
                raise ValueError(f"window: expected (begin, end) with begin < end, got {self.window!r}")
        tokens = ReflectionTokens.of(self.tokens)
        if not tokens.ids and self.wave != "off":
            raise ValueError("tokens: expected at least one id")
        phase = phases[0] if len(phases) == 1 else phases
        for name, value in (("table", table), ("window", window), ("tokens", tokens), ("phase", phase)):
            object.__setattr__(self, name, value)

    def delta(self, t):
        """delta at t tokens since the anchor (a number, or an array), by the closed form in float64, inside of the
        phase. `start_offset` is added to t."""
        t = np.asarray(t, dtype=np.float64) + self.start_offset
        u, a, c = t + self.shift * self.period, self.amplitude, self.period
        wave = {
            "off": lambda: np.zeros_like(u),
            "triangle": lambda: a * np.abs(4 * np.mod(u - c / 4, c) / c - 2) - a,
            "cosine": lambda: a * np.cos(2 * np.pi * (u - c / 4) / c),
            "constant": lambda: np.full_like(u, a),
            "table": lambda: np.interp(u, *np.array(self.table).T),
        }[self.wave]()
        begin, end = self.bounds
        delta = np.where((t >= begin) & (t < end), wave, 0.0)
        return float(delta) if delta.ndim == 0 else delta

    @property
    def bounds(self) -> tuple[float, float]:
        begin, end = self.window or (-math.inf, None)
        return begin, math.inf if end is None else end

    def replace(self, **changes) -> ReflectionSchedule:
        """The same with other fields: a request's own amplitude, period or offset."""
        return replaced(self, **changes)

    def row(self, set_begin: int = 0, knots_begin: int = 0) -> list[float]:
        """Its row of the kernels' table."""
        phases = (self.phase,) if isinstance(self.phase, str) else self.phase
        begin, end = self.bounds
        values = {
            "wave": WAVES.index(self.wave), "amplitude": self.amplitude, "period": self.period, "shift": self.shift,
            "offset": self.start_offset, "begin": begin, "end": end, "anchor": ANCHORS.index(self.anchor),
            "phases": 15 if "any" in phases else sum(1 << PHASES.index(p) for p in set(phases)),
            "unit": UNITS.index(self.unit), "set": set_begin,
            "set_size": len(ReflectionTokens.of(self.tokens).ids), "knots": knots_begin,
            "knots_size": len(self.table), "spare_0": 0, "spare_1": 0,
        }  # fmt: skip
        return [float(values[name]) for name in SCHEDULE]

    def to_json(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, "tokens": ReflectionTokens.of(self.tokens).as_dict()})

    @classmethod
    def from_json(cls, text: str) -> ReflectionSchedule:
        """Raises ValueError on what is no schedule."""
        try:
            values = {**json.loads(text)}
            if "tokens" in values:
                values["tokens"] = ReflectionTokens(**values["tokens"])
            return cls(**values)
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not the JSON of a ReflectionSchedule: {error}") from None

    @classmethod
    def paper_exact(cls, tokenizer, *, amplitude: float = 5.0, period: float = 1200) -> ReflectionSchedule:
        """CyclicReflex with the ids that it published (wait, Wait, but, But, Alternatively, no other variant) and the
        settings of its 7B runs. Raises ValueError where one is not a token; the released code then shifts all
        logits."""
        return cls(amplitude=amplitude, period=period, tokens=ReflectionTokens.exactly(tokenizer, PAPER_TOKENS))

    def plot(self, traces: Iterable[Sequence[int]] = (), *, length: int | None = None, ax=None):
        """The wave over t, and under it where generated `traces` (token ids) have tokens of the set. Returns the
        matplotlib axes."""
        import matplotlib.pyplot as plt

        traces = [list(trace) for trace in traces]
        length = length or max([len(trace) for trace in traces] or [int(2 * self.period)])
        ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
        t = np.arange(length)
        ax.plot(t, self.delta(t), label=f"{self.wave}, A={self.amplitude:g}, C={self.period:g}")
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.set(xlabel="generated tokens", ylabel=f"delta ({self.unit}s)", xlim=(0, max(length - 1, 1)))
        if traces:
            ids = set(ReflectionTokens.of(self.tokens).ids)
            at = [i for trace in traces for i, token in enumerate(trace) if token in ids]
            count = ax.twinx()
            count.hist(at, bins=min(60, length), range=(0, length), color="C1", alpha=0.4)
            count.set_ylabel("reflection tokens")
        ax.legend(loc="upper right")
        return ax
