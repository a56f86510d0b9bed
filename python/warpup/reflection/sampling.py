"""`sampling_row`: how a request samples, checked, as `sample_step` reads it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping

from warpup._numbers import DIVISORS, LARGEST

SAMPLING: tuple[str, ...] = (
    "think", "answer", "code", "top_k", "top_p", "min_p", "repetition", "presence", "seed", "beta", "frequency",
    "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "spare",
)  # fmt: skip
FILTERS: dict[str, float] = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def sampling_row(
    temperature: float | Mapping[str, float] = 1.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    top_h: float = 0.0,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
    seed: int = 0,
    beta: float = 1.0,
) -> list[float]:
    """A row of `ReflectionTables.sampling`.

    temperature: a number, or one by phase: {"think": 1.0, "answer": 1.0, "code": 0.0}; 0 takes the likeliest token.
    top_k: 0 off. top_p: 1 off. min_p: 0 off. repetition: divides positive logits of seen tokens and multiplies the
    others, 1 off. presence: taken from the logits of generated tokens; frequency: the same times how often they were.
    top_h, typical_p, epsilon_cutoff, eta_cutoff: as in transformers, 0 (typical_p: 1) off. seed: of the request, 0 to
    2^53 - 1. beta: of emulated fine-tuning. Raises ValueError on a value out of range, and on a filter where every
    temperature is 0.
    """
    phases = dict(temperature) if isinstance(temperature, Mapping) else dict.fromkeys(SAMPLING[:3], temperature)
    least, most = DIVISORS
    if set(phases) != set(SAMPLING[:3]) or not all(t == 0 or least <= t <= most for t in phases.values()):
        raise ValueError(
            f"temperature: expected 0 or a number from {least:.3g} to {most:.3g}, or one each of {SAMPLING[:3]}, got "
            f"{temperature}"
        )
    for name, value, ok, expected in (
        ("top_k", top_k, top_k >= 0 and float(top_k).is_integer(), "0 (off) or a whole number above"),
        ("top_p", top_p, 0 <= top_p <= 1, "0 to 1 (off)"),
        ("min_p", min_p, 0 <= min_p <= 1, "0 (off) to 1"),
        ("repetition", repetition, least <= repetition <= most, f"a number from {least:.3g} to {most:.3g}"),
        ("presence", presence, abs(presence) <= LARGEST, "a finite float32"),
        ("frequency", frequency, abs(frequency) <= LARGEST, "a finite float32"),
        ("top_h", top_h, 0 <= top_h <= 1, "0 (off) to 1"),
        ("typical_p", typical_p, 0 < typical_p <= 1, "above 0 to 1 (off)"),
        ("epsilon_cutoff", epsilon_cutoff, 0 <= epsilon_cutoff < 1, "0 (off) to below 1"),
        ("eta_cutoff", eta_cutoff, 0 <= eta_cutoff < 1, "0 (off) to below 1"),
        ("seed", seed, 0 <= seed < 2**53 and seed == int(seed), "an integer from 0 to 2^53 - 1"),
        ("beta", beta, abs(beta) <= LARGEST, "a finite float32"),
    ):
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
    filters = dict(zip(FILTERS, (top_k, top_p, min_p, top_h, typical_p, epsilon_cutoff, eta_cutoff), strict=True))
    if not any(phases.values()) and filters != FILTERS:
        raise ValueError(
            f"{', '.join(FILTERS)}: temperature 0 takes the likeliest token, so they have no effect: leave them out"
        )
    given = {**phases, **filters, "repetition": repetition, "presence": presence, "frequency": frequency}
    given |= {"seed": seed, "beta": beta, "spare": 0.0}
    return [float(given[name]) for name in SAMPLING]
