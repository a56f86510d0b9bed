"""The tables of `policy_loss`: what a kind, a KL estimator and a normaliser of a name mean to the kernels.

Enums and formulas: csrc/policy/policy_loss_math.h.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

FORMULAS = ("clip", "weighted", "sapo", "geometric")
LEVELS = ("one", "token", "sequence", "sequence_token", "product", "geometric", "gamma")


class PolicyKind(NamedTuple):
    """What a published loss fixes: formula, level of the ratio, clip range, what its sum is divided by, constants."""

    formula: str
    level: str
    clip: tuple[float, float] | None
    normalizer: str
    constants: tuple[float, ...] = ()
    bounds: str = "around 1"  # the ratio in [1 - low, 1 + high]; "above": at most high; "log": its log in [-low, high]


POLICY_KINDS = {
    "ppo": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # Schulman 2017
    "grpo": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # verl, TRL's "bnpo"; the paper: normalizer="sequence"
    "dapo": PolicyKind("clip", "token", (0.2, 0.28), "token"),  # clip-higher, Yu 2025 (arXiv 2503.14476)
    "dr_grpo": PolicyKind("clip", "token", (0.2, 0.2), "constant"),  # Liu 2025 (arXiv 2503.20783)
    "gspo": PolicyKind("clip", "sequence", (3e-4, 4e-4), "sequence"),  # Zheng 2025 (arXiv 2507.18071)
    "gspo_token": PolicyKind("clip", "sequence_token", (3e-4, 4e-4), "sequence"),  # its section 4.3, as verl
    "luspo": PolicyKind("clip", "sequence", (3e-4, 4e-4), "sequence_sum"),  # mean(loss * length), as TRL
    "cispo": PolicyKind("weighted", "token", (math.inf, 5.0), "token", bounds="above"),  # as TRL, Liger
    "cispo_verl": PolicyKind("weighted", "token", (0.2, 0.2), "token"),  # both bounds, around 1: verl, NeMo-RL
    "sapo": PolicyKind("sapo", "token", None, "sequence", (1.0, 1.05)),  # arXiv 2511.20347; tau for A > 0, for others
    "vespo": PolicyKind("weighted", "gamma", None, "token", (2.0, 3.0, 3.0, 2.0)),  # TRL; k, lambda for A >= 0, A < 0
    "gpg": PolicyKind("weighted", "one", None, "token"),  # Chu 2025 (arXiv 2504.02546)
    "gmpo": PolicyKind("geometric", "geometric", (0.4, 0.4), "sequence", bounds="log"),  # Zhao 2025 (arXiv 2507.20673)
    "a_lol": PolicyKind("weighted", "product", (0.9, 0.9), "sequence_sum"),  # Baheti 2023 (arXiv 2305.14718)
    "a_lol_seq": PolicyKind("weighted", "token", (0.9, 0.9), "sequence_sum"),  # its variant with each token's ratio
    "a_lol_ref_free": PolicyKind("weighted", "one", None, "sequence_sum"),  # its variant with ratio 1
    "clip_cov": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # Cui 2025 (arXiv 2505.22617), as verl
    "kl_cov": PolicyKind("clip", "token", None, "token", (1.0,)),  # the same; the weight of |log ratio|
}

# Weights of k1, k2, k3 in the value and in the gradient.
KL_ESTIMATORS = {
    "k1": ((1, 0, 0), (1, 0, 0)),
    "k2": ((0, 1, 0), (0, 1, 0)),
    "k3": ((0, 0, 1), (0, 0, 1)),
    "k1+": ((1, 0, 0), (0, 1, 0)),
    "k3+": ((0, 0, 1), (0, 1, 0)),
    "k3_verl": ((0, 0, 1), (0, 0, 1)),  # d held in +-20, the estimate at 10
    "full": ((0, 0, 0), (0, 0, 0)),
}
NORMALIZERS = ("token", "sequence", "constant", "sequence_sum")
METRICS = (
    "tokens", "clip_fraction_low", "clip_fraction_high", "clip_fraction_dual", "ratio_mean", "ratio_max", "approx_kl",
    "ref_kl",
)  # fmt: skip
STATE = 4  # columns of row_state
TOKENS, SEQUENCES, ELEMENTS, GIVEN = range(4)  # the kernel's Denominator


def normalizer_of(normalizer, kind: str, packed: bool = False) -> tuple[bool, int, float | Tensor]:
    """(each sequence counts once, the kernel's Denominator, its value where it is given)."""
    name, value = normalizer if isinstance(normalizer, tuple) else (normalizer, None)
    if name is None:
        name = POLICY_KINDS[kind].normalizer
    if not isinstance(name, str):
        name, value = "token", name
    if name not in NORMALIZERS:
        raise ValueError(f"policy_loss: normalizer must be one of {NORMALIZERS}, a number or a pair, got {name!r}")
    if value is None:
        if name == "constant" and packed:
            raise ValueError(
                "policy_loss: normalizer 'constant' needs a number beside cu_seqlens: ('constant', number)"
            )
        return name == "sequence", (TOKENS, SEQUENCES, ELEMENTS, SEQUENCES)[NORMALIZERS.index(name)], 0.0
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"policy_loss: normalizer must be above 0, got {value}")
    return name == "sequence", GIVEN, value


def clip_of(kind: str, clip: tuple[float, float] | None) -> tuple[float, float]:
    """The kind's clip range, or the caller's; infinite for a kind that clips nothing."""
    published = POLICY_KINDS[kind].clip
    if clip is None:
        return (math.inf, math.inf) if published is None else published
    if published is None:
        raise ValueError(f"policy_loss: kind {kind!r} has no clip, got {clip}")
    if not (len(clip) == 2 and clip[0] >= 0 and clip[1] >= 0):
        raise ValueError(f"policy_loss: clip must be two numbers >= 0, got {clip}")
    return clip


def constants_of(kind: str, constants: tuple[float, ...] | None) -> tuple[float, ...]:
    published = POLICY_KINDS[kind].constants
    if constants is not None and len(constants) != len(published):
        raise ValueError(f"policy_loss: kind {kind!r} has {len(published)} constants, got {constants}")
    return published if constants is None else tuple(constants)


def bounds_of(
    kind: str, clip: tuple[float, float] | None, delta: float | None, dual_clip: float | None
) -> tuple[float, float, float]:
    """floor, ceiling, and the ceiling where A < 0, as the kernels take them."""
    low, high = clip_of(kind, clip)
    floor, ceiling = {"around 1": (1 - low, 1 + high), "above": (-math.inf, high), "log": (-low, high)}[
        POLICY_KINDS[kind].bounds
    ]
    for name, value in (("delta", delta), ("dual_clip", dual_clip)):
        if value is not None and POLICY_KINDS[kind].formula != "clip":
            raise ValueError(f"policy_loss: {name} belongs to the kinds that clip as PPO does, not to {kind!r}")
        if value is not None and not value > 1:
            raise ValueError(f"policy_loss: {name} must be above 1, got {value}")
    delta = math.inf if delta is None else delta
    return floor, min(ceiling, delta), min(max(ceiling, delta), math.inf if dual_clip is None else dual_clip)


def options_of(
    kind: str,
    *,
    clip: tuple[float, float] | None = None,
    delta: float | None = None,
    dual_clip: float | None = None,
    constants: tuple[float, ...] | None = None,
    kl: str = "k3",
    kl_coef: float = 0.0,
    kl_corrected: bool = False,
    entropy_coef: float = 0.0,
    normalizer: str | float | Tensor | tuple | None = None,
    packed: bool = False,
) -> tuple[list[int], list[float]]:
    """The raw op's `choices` and `numbers`: the members of PolicyOptions (csrc/policy/policy_loss_check.h) in order."""
    formula, level, *_ = POLICY_KINDS[kind]
    per_sequence, denominator, value = normalizer_of(normalizer, kind, packed)
    gate = constants_of(kind, constants) if kind != "kl_cov" else ()
    value_weights, slope_weights = KL_ESTIMATORS[kl]
    choices = [FORMULAS.index(formula), LEVELS.index(level), int(bool(kl_coef) and kl_corrected), int(per_sequence)]
    numbers = [
        *bounds_of(kind, clip, delta, dual_clip),
        *gate,
        *(0.0,) * (4 - len(gate)),
        *(kl_coef * w for w in (*value_weights, *slope_weights)),
        *((20.0, 10.0 * kl_coef) if kl == "k3_verl" else (math.inf, math.inf)),
        kl_coef if kl == "full" else 0.0,
        -entropy_coef,
        0.0 if isinstance(value, Tensor) else value,
    ]
    return [*choices, denominator], [float(x) for x in numbers]
