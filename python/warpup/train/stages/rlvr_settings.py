"""The settings of `RLVR`: its loop is in rlvr.py, and what of them cannot be in rlvr_checks.py."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from warpup.policy.kinds import POLICY_KINDS, PolicyOptions

from ..checks import check_not_negative, check_positive, check_rate, check_values, named
from ..engines.settings import EngineSettings
from ..errors import TrainError
from ..examples import Budget, Data, NamedNumbers, RewardName, SamplerName, TemplateArguments, check_columns
from ..rewards.reward_set import VERIFIER, RewardSet
from ..samplers import check_sampler
from ..settings import Advantage, Baseline, CorrectionMode, MaskMeasure, MaskOver, RateSchedule, Scale
from .rlvr_checks import check_rlvr

if TYPE_CHECKING:  # what needs torch is imported where it is used
    from .correction import Correction


@dataclass
class RLVRSettings(EngineSettings):
    """Settings of the reinforcement stage."""

    FREE: ClassVar = (
        "max_tokens", "rows", "save_every", "patience", "reward_workers", "reward_timeout", "engine_url",
        "engine_folder",
    )  # fmt: skip

    data: Data = ""
    """Examples with "prompt" and whatever the reward function reads: a path or `hub:name`, or a list."""
    reward: RewardName = VERIFIER
    """`module:function` or `file.py:function`, called with (completion, example); a function from Python; a list of
    several, of which the weighted sum counts (on the command line separated by commas)."""
    reward_weights: tuple[float, ...] | None = None
    """Weight of each reward; none: 1."""
    reward_timeout: float | None = None
    """Seconds that a call of a reward may take before it is stopped and counts as failed; it needs workers, or rewards
    written with `async def`."""
    reward_workers: int = 0
    """Processes that call the rewards; 0: they are called one after another in the training process."""
    environment: RewardName = ""
    """In place of a reward: `module:Class` or `file.py:Class` of an `Environment`, which answers after each turn."""
    turns: int = 2
    """Most turns of an episode."""
    credit: Literal["episode", "turn", "role"] = "episode"
    """What a token of an episode is rewarded for: the whole, what came from its turn on, or what the role earned in
    which it was said, over a running mean of what that role earns (self-play)."""
    roles: int = 2
    """How many roles the environment has."""
    role_decay: float = 0.95
    """How much of a role's running mean stays at each episode."""
    steps: int = 100
    """Batches of rollouts."""
    prompts: int = 8
    """Prompts a step."""
    samples: int = 16
    """Completions of each prompt: the group of the advantage."""
    max_new_tokens: int = 256
    """Completions are cut off at this many tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, such as "</answer>"; the token that completes one is its last."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this much of the probability; 1: from all. The loss replays
    it."""
    top_k: int = 0
    """Sample from so many of the likeliest tokens; 0: from all. The loss replays it."""
    min_p: float = 0.0
    """Sample from tokens of at least this share of the likeliest one's probability; 0: from all. The loss replays
    it."""
    repetition: float = 1.0
    """Divides the logits above 0 of tokens that prompt or completion have already, and multiplies the others; 1: off.
    The loss replays it."""
    presence: float = 0.0
    """Is taken from the logits of tokens that the completion has already; 0: off. The loss replays it."""
    frequency: float = 0.0
    """Is taken from a token's logit as often as the completion has it already; 0: off. The loss replays it."""
    logit_bias: NamedNumbers = None
    """What is added to logits, such as {" wait": 1.5}: each a text of one token; -inf: it is never drawn. The loss
    replays it."""
    top_h: float = 0.0
    """Sample from the likeliest of 100 tokens that together have this share of their entropy; 0: from all. The loss
    replays it."""
    typical_p: float = 1.0
    """Sample from the tokens whose log-prob is closest to the mean one, with so much of the probability together; 1:
    from all. The loss replays it."""
    epsilon_cutoff: float = 0.0
    """Sample from tokens of at least this probability; 0: from all. The loss replays it."""
    eta_cutoff: float = 0.0
    """The same where the distribution is sharp; a flat one keeps less likely tokens too. 0: from all. The loss replays
    it."""
    thinking_budget: Budget = None
    """Tokens that thinking may take before its end is written for the model, which carries no loss; none: any number.
    A table also has message, a text before that end; warning, a text once warn_at tokens are thought; probe_every and
    probe_below, which end the thinking where more of it changes nothing."""
    schedule: str = "plain"
    """What the sampler adds to the logits of reflection tokens, as `warpup eval --schedule` names it; the loss replays
    it."""
    words: str = "wait,but,alternatively"
    """The reflection words that a schedule acts on, separated by commas."""
    lr: float = 1e-6
    """Highest learning rate."""
    lr_warmup: int = 0
    """Steps over which the rate rises from 0."""
    lr_schedule: RateSchedule = "constant"
    """What the rate does after the rise: wsd stays, and falls at the end."""
    lr_decay: float = 0.1
    """Of lr_schedule wsd: share of the steps, the last ones, over which the rate falls to 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    baseline: Baseline = "mean"
    """What is taken from a reward: baseline of `group_advantage`."""
    scale: Scale = "none"
    """What the rest is divided by: scale of `group_advantage`."""
    advantage: Advantage | None = None
    """An estimator of `warpup.advantage` by name, such as rloo or opo, in place of baseline and scale; gae: against the
    values that a value head learns to expect (PPO); segment, tree: against the mean reward of what is sampled from
    places within a completion (SPO); optimal_token_baseline: each token against the group at the same place;
    hierarchical_grpo: each role against itself in the group's other episodes."""
    branches: int = 4
    """What is sampled from each such place: of advantage segment continuations, of tree branches, of whose number
    samples is a power."""
    segment_threshold: float = 0.9
    """Of advantage segment: a token of lower probability is a cut point, one of higher carries no loss."""
    segment_every: int = 5
    """Cut points of a segment."""
    edge_tokens: int | None = None
    """Of advantage tree: tokens from one branching to the next; none spreads them evenly."""
    gamma: float = 1.0
    """Discount of later rewards, a token, of advantage gae or reinforce_pp."""
    lam: float = 0.95
    """Lambda of gae: 1 for the whole of what came, 0 for the next value alone."""
    value_lr: float = 1e-3
    """Highest learning rate of gae's value head."""
    value_coef: float = 0.0
    """How much of the value loss the model's own weights learn from; 0: the value head alone does."""
    value_clip: float | None = 0.2
    """How far a value may move on one batch before it is held there; none: as far as it likes."""
    kl_in_reward: bool = False
    """Take the KL from each token's reward, with weight kl_coef, in place of a term of the loss."""
    loss: str = "grpo"
    """Kind of `policy_loss`."""
    loss_constants: NamedNumbers = None
    """Constants of the loss by name, such as {"tau_positive": 1.0} of sapo; those that are left out are the published
    ones."""
    normalizer: Literal["token", "sequence", "sequence_sum", "constant"] | None = None
    """What the step's loss is divided by: its tokens, its sequences (each its mean over tokens, or its sum), or all
    completions times max_new_tokens; none takes the loss's own. Groups that are left out count in the constant only."""
    clip_ratio: tuple[float, float] | None = None
    """How far below and above 1 the probability ratio counts; of losses dppo_tv, dppo_kl and ipo how far down and up a
    token's probability may move. None takes the loss's own."""
    delta: float | None = None
    """Bound of the ratio (above 1) where the clip leaves it open (two-sided clip)."""
    dual_clip: float | None = None
    """Where the advantage is below 0, bound of the ratio (above 1) that the clip leaves open."""
    cov_share: float | None = None
    """Share of the step's tokens that loss clip_cov drops or kl_cov holds back; none takes the published 2e-4."""
    cov_bounds: tuple[float, float] | None = None
    """Between which covariances of advantage and log-prob loss clip_cov draws them; none takes the published 1, 5."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    entropy_quantile: float = 0.0
    """Learn from the tokens whose entropy is at least this quantile of the step's: .8 keeps the uncertain fifth."""
    mask_truncated: bool = False
    """Learn nothing from completions that the length limit cut off."""
    correction: CorrectionMode | Literal["off"] | None = None
    """Weigh what was sampled by the model's own probabilities over the sampler's, which rounds otherwise: of tokens or
    of whole sequences, outside of the bounds held there (truncate) or left out (mask). None: nothing is weighed with
    the own sampler, token_truncate at 2 with another engine; off: never."""
    correction_max: float | None = None
    """Upper bound of these weights; none takes 3, or 2 where correction is none."""
    correction_min: float | None = None
    """Their lower bound; none: there is none."""
    rollout_mask: MaskMeasure | None = None
    """Learn nothing where the model's own log-probs and the sampler's are too far apart by this measure, as
    `warpup.rollout_mask` has it."""
    rollout_mask_over: MaskOver = "mean"
    """What it judges: each token by itself, or a completion by the mean, sum or largest of its tokens."""
    rollout_mask_cap: float | None = None
    """The largest difference that is learned from."""
    rollout_mask_floor: float | None = None
    """Of measure ratio, the smallest; none: there is none."""
    off_policy_mask_threshold: float | None = None
    """Learn nothing from completions with a negative advantage to whose tokens the model gives log-probs that have
    fallen by more than this on average since they were sampled."""
    kl_coef: float = 0.0
    """Weight of the KL to the model as it was before this stage; 0 keeps no copy of it."""
    kl: str = "k3"
    """How that KL is estimated, as `policy_loss` names it; full: over the whole vocabulary, not by the sampled token
    alone."""
    kl_clamp: tuple[float, float] | None = None
    """Limits of that KL, where kl is k1, k2 or k3: of the difference of log-probs that it is made of, and of itself.
    Beyond them nothing is learned from it."""
    kl_corrected: bool = False
    """Multiply that KL by the ratio of probabilities, its gradient included, which makes it unbiased."""
    reference_sync: int | None = None
    """Take the model of now as the reference every so many steps; none: never."""
    balance: float | None = None
    """Weight of the balance loss of a model with routed experts; none takes its config's, as transformers means it."""
    inner_epochs: int = 1
    """How often each batch of rollouts is learned from."""
    minibatches: int = 1
    """Optimizer steps in each of these, each on its share of the batch's groups."""
    refill: int = 0
    """Where groups teach nothing, because their rewards are all alike, sample others in their place up to so many times
    a step (dynamic sampling)."""
    sampler: SamplerName = "uniform"
    """Which prompts come next: uniform, each once an epoch; or a curriculum by name with options, such as
    sec:alpha=.5, over the examples' `category` or a column of scores."""
    category: str = "category"
    """Column that the samplers over categories read."""
    max_tokens: int | None = None
    """Padded tokens that go through the model at once: less memory, same result; none: as many as half of the free
    memory holds, at most 16384."""
    rows: int | None = None
    """Completions sampled at once: less memory, same distribution; none: as many as half of the free memory holds, at
    most 256."""
    patience: int = 50
    """Steps in a row without one usable group before the run gives up."""
    save_every: int = 20
    """Steps between checkpoints."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    chat_template_kwargs: TemplateArguments = None
    """Arguments of the tokenizer's chat template, such as {"enable_thinking": false}; an example's own win."""
    answer: str | None = "answer"
    """Column of the answers; "none" if there is none."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, and on those that nothing would read, as far as that can
        be told without torch."""
        check_values(self, place="rlvr")
        names = ("steps", "prompts", "max_new_tokens", "temperature", "lr", "inner_epochs", "minibatches", "max_tokens")
        check_positive(self, *names, "rows", "save_every", "patience", place="rlvr")
        check_not_negative(self, "lr_warmup", "clip", "kl_coef", "balance", "refill", "entropy_coef", place="rlvr")
        check_rate(self, place="rlvr")
        check_columns(self, "prompt", "answer", place="rlvr")
        alone = self.advantage in ("gae", "segment") or (self.credit == "role" and self.advantage is None)
        if self.samples < (1 if alone else 2):
            raise TrainError(f"rlvr.samples: a group needs at least 2 completions, got {self.samples}")
        if self.minibatches > self.prompts:
            raise TrainError(f"rlvr.minibatches: expected at most prompts, {self.prompts}, got {self.minibatches}")
        check_sampler(self, place="rlvr", gives=("advantages", "rewards", "correct"))
        with named("rlvr"):
            self.reward_set()
        check_rlvr(self)

    def reward_set(self) -> RewardSet:
        """The rewards with their weights; TrainError on what cannot be."""
        return RewardSet(self.reward, self.reward_weights, timeout=self.reward_timeout, workers=self.reward_workers)

    def policy_options(self) -> PolicyOptions:
        """Those of the loss, without the number that its sum is divided by; ValueError on what they refuse."""
        return PolicyOptions(
            kind=self.loss, clip=self.clip_ratio, delta=self.delta, dual_clip=self.dual_clip,
            constants=self.constants(), kl_coef=0.0 if self.kl_in_reward else self.kl_coef, kl=self.kl,
            kl_clamp=self.kl_clamp, kl_corrected=self.kl_corrected, entropy_coef=self.entropy_coef,
            normalizer=self.normalizer,
        )  # fmt: skip

    def importance(self) -> "Correction | None":
        """How what was sampled is weighted, and what of it left out."""
        from .correction import Correction

        mode = self.correction_mode()
        if mode is None and self.rollout_mask is None:
            return None
        cap = self.correction_max or (2.0 if self.correction is None else 3.0)
        mask = self.mask_options() if self.rollout_mask else None
        return Correction(mode, cap, self.correction_min, mask)

    def correction_mode(self) -> CorrectionMode | None:
        """How weights are made: as it is set, else truncated ones (TIS) of another engine's tokens."""
        if self.correction is None:
            return None if self.engine == "own" else "token_truncate"
        return None if self.correction == "off" else self.correction

    def mask_options(self) -> dict[str, Any]:
        """Those of `warpup.rollout_mask`."""
        bounds = {"cap": self.rollout_mask_cap, "floor": self.rollout_mask_floor}
        return {"measure": self.rollout_mask, "over": self.rollout_mask_over, **bounds}

    def constants(self) -> tuple[float, ...] | None:
        """Those of the loss in its own order; None where none is given. ValueError on a name that it does not have."""
        if self.loss_constants is None:
            return None
        published = POLICY_KINDS[self.loss].constants
        if unknown := self.loss_constants.keys() - published.keys():
            raise ValueError(
                f"loss_constants: loss {self.loss!r} has {', '.join(published) or 'none'}, got {', '.join(unknown)}"
            )
        return tuple({**published, **self.loss_constants}.values())
