"""The published policy losses by name, and `PolicyOptions`: everything about a policy loss that is not a tensor.

What a formula and a level are: csrc/policy/policy_loss_math.h. In words: docs/policy.md. Nothing here imports torch, so
that the trainer checks a config before that is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_CONSTANTS: Mapping[str, float] = {}


class PolicyKind(NamedTuple):
    """What a published loss fixes: a formula, whose ratio it takes (level), and the defaults of three options."""

    formula: str
    level: str
    clip: tuple[float, float] | None  # None: it clips nothing
    normalizer: str
    constants: Mapping[str, float] = NO_CONSTANTS
    # "around 1": the ratio in [1 - low, 1 + high]; "above": at most high; "log": its log in [-low, high];
    # "trust region": the token's probability moved by -low to high.
    bounds: str = "around 1"


SAPO = {"tau_positive": 1.0, "tau_negative": 1.05}  # for A > 0, and for the others
TRUST_REGION = {"cap": 20.0, "proximal": 0.0}  # the ratio's bound; adds proximal / 2 log^2 ratio
VESPO = {"k_positive": 2.0, "lambda_positive": 3.0, "k_negative": 3.0, "lambda_negative": 2.0}  # A >= 0, A < 0

POLICY_KINDS = {
    "ppo": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # Schulman 2017
    "grpo": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # TRL 1.16's "bnpo"; the paper: normalizer="sequence"
    "dapo": PolicyKind("clip", "token", (0.2, 0.28), "token"),  # clip-higher, Yu 2025 (arXiv 2503.14476)
    "dr_grpo": PolicyKind("clip", "token", (0.2, 0.2), "constant"),  # Liu 2025 (arXiv 2503.20783)
    "gspo": PolicyKind("clip", "sequence", (3e-4, 4e-4), "sequence"),  # Zheng 2025 (arXiv 2507.18071)
    "gspo_token": PolicyKind("clip", "sequence_token", (3e-4, 4e-4), "sequence"),  # its section 4.3
    "luspo": PolicyKind("clip", "sequence", (3e-4, 4e-4), "sequence_sum"),  # mean(loss * length)
    "cispo": PolicyKind("weighted", "token", (math.inf, 5.0), "token", bounds="above"),  # TRL 1.16, Liger 0.8.5
    "cispo_verl": PolicyKind("weighted", "token", (0.2, 0.2), "token"),  # both, around 1: verl 0.9.1
    "sapo": PolicyKind("sapo", "token", None, "sequence", SAPO),  # arXiv 2511.20347
    "vespo": PolicyKind("weighted", "gamma", None, "token", VESPO),  # TRL 1.16
    "gpg": PolicyKind("weighted", "one", None, "token"),  # Chu 2025 (arXiv 2504.02546)
    "gmpo": PolicyKind("geometric", "geometric", (0.4, 0.4), "sequence", bounds="log"),  # Zhao 2025 (arXiv 2507.20673)
    "a_lol": PolicyKind("weighted", "product", (0.9, 0.9), "sequence_sum"),  # Baheti 2023 (arXiv 2305.14718)
    "a_lol_seq": PolicyKind("weighted", "token", (0.9, 0.9), "sequence_sum"),  # its variant with each token's ratio
    "a_lol_ref_free": PolicyKind("weighted", "one", None, "sequence_sum"),  # its variant with ratio 1
    "clip_cov": PolicyKind("clip", "token", (0.2, 0.2), "token"),  # Cui 2025 (arXiv 2505.22617)
    "kl_cov": PolicyKind("clip", "token", None, "token", {"penalty": 1.0}),  # the same; the weight of |log ratio|
    # DPPO (arXiv 2602.04879), as in verl 0.9.1: a token that has left the trust region has no gradient.
    "dppo_tv": PolicyKind("tv", "token", (0.2, 0.2), "token", TRUST_REGION, bounds="trust region"),
    "dppo_kl": PolicyKind("kl", "token", (0.05, 0.05), "token", TRUST_REGION, bounds="trust region"),
    # prime-rl's, whose weight of log^2 ratio is 1e-3
    "ipo": PolicyKind(
        "tv_both", "token", (0.1, 0.1), "token", {"cap": math.inf, "proximal": 2e-3}, bounds="trust region"
    ),
    "dro": PolicyKind("weighted", "one", None, "token", {"proximal": 0.1}),  # verl 0.9.1, which has no default for it
}
# k1, k2, k3: Schulman, "Approximating KL divergence", 2020; "+": with the gradient of k2; full: the caller's own KL.
KL_ESTIMATORS = ("k1", "k2", "k3", "k1+", "k3+", "k3_verl", "full")
UNHELD = (math.inf, math.inf)
NORMALIZERS = ("token", "sequence", "constant", "sequence_sum")
METRICS = (
    "tokens", "clip_fraction_low", "clip_fraction_high", "clip_fraction_dual", "ratio_mean", "ratio_max", "approx_kl",
    "ref_kl", "entropy",
)  # fmt: skip


def is_tensor(value: object) -> bool:
    """Whether a denominator is a tensor. torch is imported for one that is given, not with this module."""
    from torch import Tensor

    return isinstance(value, Tensor)


@dataclass(frozen=True)
class PolicyOptions:
    """The options of a policy loss, checked when they are put together. What each does: `warpup.policy_loss`.

    Raises:
        ValueError: an unknown name, a number out of its range, an option that the kind does not have.
    """

    kind: str = "grpo"
    """A name of `POLICY_KINDS`."""
    clip: tuple[float, float] | None = None
    """(low, high), both at least 0; None takes the kind's. "cispo" has no lower bound: its low is infinite."""
    delta: float | None = None
    """Bound of the ratio in the branch that the clip leaves open, above 1 (two-sided clip)."""
    dual_clip: float | None = None
    """c, above 1: where A < 0 the term is at most -c A (dual clip)."""
    constants: tuple[float, ...] | None = None
    """Those of the kind, in the order of its table; None takes the published ones."""
    kl_coef: float = 0.0
    """Weight of the KL to the reference. With 0 a KL that is given is a metric only."""
    kl: str = "k3"
    """A name of `KL_ESTIMATORS`."""
    kl_clamp: tuple[float, float] | None = None
    """(input, output), both above 0, of "k1", "k2" and "k3": log ref / pi is held in +- input, the KL in +- output."""
    kl_corrected: bool = False
    """Multiply the KL by the ratio, its gradient included."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    normalizer: str | float | Tensor | tuple | None = None
    """What the sum over tokens is divided by: a name of `NORMALIZERS`, a denominator, or a pair of both; None takes the
    kind's name."""
    reduction: str = "mean"
    """"mean": the sum over tokens, divided by the normalizer; "none": a loss for each token, which nothing divides."""

    def __post_init__(self) -> None:
        if self.kind not in POLICY_KINDS:
            raise ValueError(f"policy_loss: kind must be one of {tuple(POLICY_KINDS)}, got {self.kind!r}")
        if self.kl not in KL_ESTIMATORS:
            raise ValueError(f"policy_loss: kl must be one of {KL_ESTIMATORS}, got {self.kl!r}")
        published = POLICY_KINDS[self.kind]
        if self.clip is not None:
            self._check_clip(published, self.clip)
        for name, value in (("delta", self.delta), ("dual_clip", self.dual_clip)):
            if value is None:
                continue
            if published.formula != "clip":
                raise ValueError(
                    f"policy_loss: {name} belongs to the kinds that clip as PPO does, not to {self.kind!r}"
                )
            if not value > 1:
                raise ValueError(f"policy_loss: {name} must be above 1, got {value}")
        if self.constants is not None and len(self.constants) != len(published.constants):
            raise ValueError(
                f"policy_loss: kind {self.kind!r} has {len(published.constants)} constants, got {self.constants}"
            )
        if self.kl_clamp is not None:
            if self.kl not in ("k1", "k2", "k3"):
                raise ValueError(f"policy_loss: kl_clamp belongs to kl 'k1', 'k2' and 'k3', not to {self.kl!r}")
            if not (len(self.kl_clamp) == 2 and all(limit > 0 for limit in self.kl_clamp)):
                raise ValueError(f"policy_loss: kl_clamp must be two numbers above 0, got {self.kl_clamp}")
        if self.reduction not in ("mean", "none"):
            raise ValueError(f"policy_loss: reduction must be 'mean' or 'none', got {self.reduction!r}")
        if self.reduction == "none" and self.normalizer is not None:
            raise ValueError("policy_loss: reduction 'none' divides by nothing, so it takes no normalizer")
        self.division()

    def _check_clip(self, published: PolicyKind, clip: tuple[float, float]) -> None:
        if published.clip is None:
            raise ValueError(f"policy_loss: kind {self.kind!r} has no clip, got {clip}")
        if not (len(clip) == 2 and clip[0] >= 0 and clip[1] >= 0):
            raise ValueError(f"policy_loss: clip must be two numbers >= 0, got {clip}")
        if published.bounds == "above" and clip[0] != math.inf:
            raise ValueError(
                f"policy_loss: kind {self.kind!r} holds the ratio from above only, so clip must be (math.inf, high), "
                f"got {clip}; 'cispo_verl' has both bounds"
            )

    def clip_range(self) -> tuple[float, float]:
        """(low, high): the caller's, else the kind's; infinite for a kind that clips nothing."""
        return self.clip or POLICY_KINDS[self.kind].clip or (math.inf, math.inf)

    def bounds(self) -> tuple[float, float, float]:
        """The ratio's floor and ceiling, and its ceiling where A < 0: the clip, delta and dual clip in one."""
        low, high = self.clip_range()
        form = POLICY_KINDS[self.kind].bounds
        floor, ceiling = (
            (1 - low, 1 + high) if form == "around 1" else (-math.inf, high) if form == "above" else (-low, high)
        )
        delta = math.inf if self.delta is None else self.delta
        dual_clip = math.inf if self.dual_clip is None else self.dual_clip
        return float(floor), float(min(ceiling, delta)), float(min(max(ceiling, delta), dual_clip))

    def named_constants(self) -> Mapping[str, float]:
        """The constants of the kind by name."""
        published = POLICY_KINDS[self.kind].constants
        return published if self.constants is None else dict(zip(published, map(float, self.constants), strict=True))

    def division(self) -> tuple[str, float | Tensor | None]:
        """(a name of `NORMALIZERS`, the denominator, or None: what that name counts)."""
        given = self.normalizer
        name, denominator = given if isinstance(given, tuple) else (given, None)
        if name is None:
            name = POLICY_KINDS[self.kind].normalizer
        if not isinstance(name, str):
            name, denominator = "token", name
        if name not in NORMALIZERS:
            raise ValueError(f"policy_loss: normalizer must be one of {NORMALIZERS}, a number or a pair, got {name!r}")
        if denominator is not None and not is_tensor(denominator) and not denominator > 0:
            raise ValueError(f"policy_loss: normalizer must be above 0, got {denominator}")
        return name, denominator

    def raw(self) -> dict[str, str | float | bool]:
        """The options of the raw op by name (csrc/policy/policy_loss_check.h), without a denominator on the device."""
        published = POLICY_KINDS[self.kind]
        floor, ceiling, ceiling_negative = self.bounds()
        normalizer, denominator = self.division()
        raw: dict[str, str | float | bool] = {
            **SAPO,
            **VESPO,
            **TRUST_REGION,
            **self.named_constants(),
            "formula": published.formula,
            "level": published.level,
            "floor": floor,
            "ceiling": ceiling,
            "ceiling_negative": ceiling_negative,
            "kl": self.kl,
            "kl_input_limit": float((self.kl_clamp or UNHELD)[0]),
            "kl_output_limit": float((self.kl_clamp or UNHELD)[1]),
            "kl_coef": float(self.kl_coef),
            "kl_corrected": bool(self.kl_corrected),
            "entropy_coef": float(self.entropy_coef),
            "normalizer": normalizer,
            "denominator_scalar": 0.0 if denominator is None or is_tensor(denominator) else float(denominator),
        }
        raw.pop("penalty", None)  # goes in as a tensor
        return raw
