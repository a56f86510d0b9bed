"""The settings of `Warmup`, and what of them no run can have: its loop is in warmup.py."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..checks import check_not_negative, check_positive, check_rate, check_unused, check_values
from ..errors import TrainError
from ..examples import Data, SamplerName, TemplateArguments, check_columns
from ..samplers import check_sampler
from ..settings import RateSchedule

Objective = Literal["nll", "dco", "weighted", "exp_weighted", "a_lol"]
SCORED = ("weighted", "exp_weighted", "a_lol")  # objectives that read a score of each example
BY_SEQUENCE = ("dco", "a_lol")  # those whose factor is one of the whole completion's log-prob


@dataclass
class WarmupSettings:
    """Settings of the warm-up stage."""

    FREE: ClassVar = ("max_tokens", "save_every")

    data: Data = ""
    """Examples with "prompt" and "completion": a path or `hub:name` (see `warpup.data.load_examples`), or a list."""
    objective: Objective = "nll"
    """What is minimized: nll, -log p of the tokens; dco, pass@n; weighted, exp_weighted and a_lol, nll times a factor
    that comes of the example's score."""
    attempts: int = 1
    """Of dco: attempts at test time, one of which should be right."""
    score: str | None = None
    """Of weighted, exp_weighted and a_lol: column of the scores (weights, rewards or advantages)."""
    tau: float = 1.0
    """Of exp_weighted: an example counts exp(score / tau)."""
    ratio_clip: float = 0.9
    """Of a_lol: how far from 1 a completion's probability counts, relative to that before the stage."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over the vocabulary."""
    soft_labels: str | None = None
    """Column of a teacher's distributions: {"ids": [[...], ...], "logprobs": [[...], ...]}, a list of each a token."""
    spans: str | None = None
    """Column of the spans of the completion that are learned, [begin, end) in characters; none: all of it."""
    markers: tuple[str, str] | None = None
    """Texts between which a completion is learned, such as ["<learn>", "</learn>"]; they are taken out."""
    turns: Literal["last", "all"] = "last"
    """Which turns of the assistant are learned in a conversation."""
    max_length: int | None = None
    """Longest example, in tokens; none: as many as the model has positions for."""
    too_long: Literal["refuse", "drop", "cut", "split"] = "refuse"
    """What becomes of longer ones; split is for plain text."""
    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 32
    """Examples a step."""
    sampler: SamplerName = "uniform"
    """Which examples come next: uniform, each once an epoch, in batches of similar length; or a curriculum by name with
    options, such as paced:score=difficulty, whose batches are of any lengths."""
    category: str = "category"
    """Column that the samplers over categories read."""
    lr: float = 1e-5
    """Highest learning rate."""
    lr_warmup: int = 25
    """Steps over which the rate rises from 0."""
    lr_schedule: RateSchedule = "cosine"
    """What the rate does after the rise: wsd stays, and falls at the end."""
    lr_decay: float = 0.1
    """Of lr_schedule wsd: share of the steps, the last ones, over which the rate falls to 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    packing: bool = False
    """Put several examples into a row, each by itself, so that there is next to no padding; batches are then drawn
    whatever the examples' lengths are."""
    balance: float | None = None
    """Weight of the balance loss of a model with routed experts; none takes its config's, as transformers means it."""
    max_tokens: int | None = None
    """Padded tokens that go through the model at once: less memory, same result; none: as many as half of the free
    memory holds, at most 16384."""
    save_every: int = 100
    """Steps between checkpoints."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    chat_template_kwargs: TemplateArguments = None
    """Arguments of the tokenizer's chat template, such as {"enable_thinking": false}; an example's own win."""
    completion: str = "completion"
    """Column of the completions."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, and on those that nothing would read."""
        check_values(self, place="warmup")
        check_positive(self, "steps", "batch_size", "lr", "tau", "max_tokens", "save_every", place="warmup")
        check_not_negative(self, "lr_warmup", "clip", "balance", place="warmup")
        check_rate(self, place="warmup")
        check_columns(self, "prompt", "completion", place="warmup")
        check_sampler(self, place="warmup", gives=("losses",))
        self._check_objective()
        self._check_targets()
        if self.max_length is None:
            check_unused(self, "too_long", place="warmup", why="nothing is too long; set warmup.max_length")
        elif self.max_length < 2:
            raise TrainError(f"warmup.max_length: expected at least 2, got {self.max_length}")

    def _check_objective(self) -> None:
        objective = self.objective
        if objective != "dco":
            check_unused(self, "attempts", place="warmup", why='the objective is not "dco"')
        elif self.attempts < 2:
            raise TrainError(f"warmup.attempts: dco needs at least 2, got {self.attempts}")
        if objective not in SCORED:
            check_unused(self, "score", place="warmup", why=f"the objective {objective!r} reads no score")
        elif not self.score:
            raise TrainError(f"warmup.score: the objective {objective!r} needs the name of a column of scores")
        if objective != "exp_weighted":
            check_unused(self, "tau", place="warmup", why='the objective is not "exp_weighted"')
        if objective != "a_lol":
            check_unused(self, "ratio_clip", place="warmup", why='the objective is not "a_lol"')
        elif not 0 <= self.ratio_clip < 1:
            raise TrainError(f"warmup.ratio_clip: expected at least 0 and less than 1, got {self.ratio_clip}")
        if objective in BY_SEQUENCE:
            why = f"the objective {objective!r} is one of whole completions and their own tokens"
            check_unused(self, "label_smoothing", "soft_labels", place="warmup", why=why)

    def _check_targets(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise TrainError(f"warmup.label_smoothing: expected a share from 0 to less than 1: {self.label_smoothing}")
        which = [name for name, on in (("spans", self.spans), ("markers", self.markers), ("turns", self.turns == "all"))
                 if on]  # fmt: skip
        if len(which) > 1:
            raise TrainError(f"warmup.{which[0]}: {which[1]} says already what is learned; leave one of them out")
        if self.markers and (len(self.markers) != 2 or not all(self.markers) or self.markers[0] == self.markers[1]):
            raise TrainError(f"warmup.markers: expected two different texts, got {list(self.markers)}")
        if self.turns == "all":
            check_unused(self, "soft_labels", place="warmup", why="there are soft labels of the last turn alone")
