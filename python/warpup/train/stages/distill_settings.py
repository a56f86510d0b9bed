"""The settings of `Distill`, and what of them no run can have: its loop is in distill.py."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..checks import check_not_negative, check_positive, check_rate, check_values
from ..errors import TrainError
from ..examples import Data, check_columns
from ..settings import Divergence, RateSchedule


@dataclass
class DistillSettings:
    """Settings of the distillation stage."""

    FREE: ClassVar = ("max_tokens", "rows", "save_every")

    data: Data = ""
    """Examples with "prompt" and, unless all completions are the student's, "completion": a path or a list."""
    teacher: Any = ""
    """Folder of the teacher, a model with the student's vocabulary; the model itself from Python."""
    divergence: Divergence = "jsd"
    """What is minimized: forward, reverse, jeffreys, jsd, symmetric_ce, binary or logit_swap, as `divergence` names
    them."""
    beta: float | None = None
    """The teacher's share of jsd's mixture; none: .5."""
    nll_coef: float = 0.0
    """Weight of the mean -log p of the given completions' tokens, beside the divergence."""
    temperature: float = 1.0
    """Of both distributions, and of the student's sampling."""
    online: float = 0.0
    """Share of the steps whose completions the student writes itself."""
    max_new_tokens: int = 256
    """Its completions are cut off at this many tokens."""
    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Examples a step."""
    lr: float = 1e-5
    """Highest learning rate."""
    lr_warmup: int = 10
    """Steps over which the rate rises from 0."""
    lr_schedule: RateSchedule = "cosine"
    """What the rate does after the rise: wsd stays, and falls at the end."""
    lr_decay: float = 0.1
    """Of lr_schedule wsd: share of the steps, the last ones, over which the rate falls to 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    packing: bool = False
    """Put several examples into a row, each by itself, so that there is next to no padding; batches are then drawn
    whatever the examples' lengths are."""
    max_tokens: int | None = None
    """Padded tokens that go through the model at once: less memory, same result; none: as many as half of the free
    memory holds, at most 16384."""
    rows: int | None = None
    """Completions sampled at once: less memory, same distribution; none: as many as half of the free memory holds, at
    most 256."""
    save_every: int = 50
    """Steps between checkpoints."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    completion: str | None = "completion"
    """Column of the completions; "none" if all are the student's."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, as far as that can be told without torch."""
        check_values(self, place="distill")
        names = ("steps", "batch_size", "lr", "temperature", "max_new_tokens", "max_tokens", "rows", "save_every")
        check_positive(self, *names, place="distill")
        check_not_negative(self, "lr_warmup", "clip", "nll_coef", place="distill")
        check_rate(self, place="distill")
        check_columns(self, "prompt", "completion", place="distill")
        if not 0 <= self.online <= 1:
            raise TrainError(f"distill.online: expected a share from 0 to 1, got {self.online}")
        if self.online and (self.nll_coef or self.divergence == "logit_swap"):
            what = "nll_coef" if self.nll_coef else "divergence 'logit_swap'"
            raise TrainError(f"distill.online: {what} learns the tokens of given completions, not of the student's own")
        if not self.teacher:
            raise TrainError("distill.teacher: nothing given; set the folder of a model")
