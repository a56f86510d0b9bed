"""The settings of `StepReward`, and what of them no run can have: its loop is in step_reward.py."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..checks import check_not_negative, check_positive, check_rate, check_unused, check_values
from ..errors import TrainError
from ..examples import Data, TemplateArguments, check_columns
from ..settings import RateSchedule

OF_PAIRS = ("chosen", "rejected", "margin", "label_smoothing", "center_coef")
OF_STEPS = ("completions", "labels", "separator", "last_only")


@dataclass
class StepRewardSettings:
    """Settings of the reward model's stage."""

    FREE: ClassVar = ("max_tokens", "save_every")

    data: Data = ""
    """Examples with "prompt", and steps with labels or pairs of completions: a path or `hub:name`, or a list."""
    loss: Literal["bce", "progress", "bradley_terry"] = "bce"
    """bce: of steps, each right or wrong; progress: of steps whose sum is to be what the whole got; bradley_terry: of
    pairs of completions, one preferred to the other."""
    separator: str = "\n"
    """What stands between steps. It is read behind each of them."""
    last_only: bool = False
    """Learn from the label of the last step alone."""
    margin: float = 0.0
    """How far apart the scores of a pair should be."""
    label_smoothing: float = 0.0
    """Share of the pairs taken to be the wrong way round."""
    center_coef: float = 0.0
    """Weight of the square of a pair's summed scores, which holds scores around 0 (.01 in arXiv 2312.09244)."""
    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Examples a step."""
    lr: float = 1e-5
    """Highest learning rate."""
    value_lr: float = 1e-3
    """Highest learning rate of the value head."""
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
    chat_template_kwargs: TemplateArguments = None
    """Arguments of the tokenizer's chat template, such as {"enable_thinking": false}; an example's own win."""
    completions: str = "completions"
    """Column of the steps: a list of texts, or one text with separators."""
    labels: str = "labels"
    """Column of their labels: a list of true and false, or of numbers from 0 to 1; of progress one number, what the
    whole got."""
    chosen: str = "chosen"
    """Column of the preferred completions."""
    rejected: str = "rejected"
    """Column of the others."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have."""
        place = "step_reward"
        check_values(self, place=place)
        check_positive(self, "steps", "batch_size", "lr", "value_lr", "max_tokens", "save_every", place=place)
        check_not_negative(self, "lr_warmup", "clip", "center_coef", place=place)
        check_rate(self, place=place)
        check_columns(self, "prompt", place=place)
        unread = {"bce": OF_PAIRS, "progress": (*OF_PAIRS, "last_only"), "bradley_terry": OF_STEPS}[self.loss]
        check_unused(self, *unread, place=place, why=f"loss {self.loss!r} does not read it; leave it out")
        if not self.separator:
            raise TrainError("step_reward.separator: expected a text, got an empty one")
        if not 0 <= self.label_smoothing < 0.5:
            raise TrainError(f"step_reward.label_smoothing: expected 0 to below .5, got {self.label_smoothing}")
