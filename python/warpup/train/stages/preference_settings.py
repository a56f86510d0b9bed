"""The settings of `Preference`, and what of them no run can have: its loop is in preference.py."""

from dataclasses import dataclass
from typing import ClassVar

from ..checks import check_not_negative, check_positive, check_rate, check_values
from ..examples import Data, check_columns
from ..settings import PreferenceLoss, RateSchedule


@dataclass
class PreferenceSettings:
    """Settings of the preference stage."""

    FREE: ClassVar = ("max_tokens", "save_every")

    data: Data = ""
    """Examples with "prompt", "chosen" and "rejected": a path or `hub:name`, or a list."""
    loss: PreferenceLoss = "dpo"
    """Kind of `preference_loss`."""
    beta: float | None = None
    """Strength of its hold on the reference, or its scale; none takes the loss's own."""
    margin: float = 0.0
    """How far apart a pair should be, of the losses that have one."""
    label_smoothing: float | None = None
    """Share of the pairs taken to be the wrong way round; none takes the loss's own."""
    nll_coef: float = 0.0
    """Weight of the mean -log p of the chosen completions' tokens, as CPO and ORPO have it (1)."""
    reference: bool = True
    """Compare with the model as it was before this stage, where the loss can do without too."""
    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs a step."""
    lr: float = 1e-6
    """Highest learning rate."""
    lr_warmup: int = 10
    """Steps over which the rate rises from 0."""
    lr_schedule: RateSchedule = "linear"
    """What the rate does after the rise: wsd stays, and falls at the end."""
    lr_decay: float = 0.1
    """Of lr_schedule wsd: share of the steps, the last ones, over which the rate falls to 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    max_tokens: int | None = None
    """Padded tokens that go through the model at once: less memory, same result; none: as many as half of the free
    memory holds, at most 16384."""
    save_every: int = 50
    """Steps between checkpoints."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    chosen: str = "chosen"
    """Column of the preferred completions."""
    rejected: str = "rejected"
    """Column of the others."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, as far as that can be told without torch."""
        check_values(self, place="preference")
        check_positive(self, "steps", "batch_size", "lr", "max_tokens", "save_every", place="preference")
        check_not_negative(self, "lr_warmup", "clip", "nll_coef", place="preference")
        check_rate(self, place="preference")
        check_columns(self, "prompt", "chosen", "rejected", place="preference")
