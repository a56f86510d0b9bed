"""Stage two, RLVR: reinforcement learning with verifiable rewards on few prompts.

Group-relative policy gradient (GRPO, arXiv 2402.03300) in the variant of "Warm Up Before You Train" (arXiv 2505.13718):
advantage r - mean without division by the deviation, mean over tokens, no KL term unless asked for.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from warpup.advantage import ESTIMATORS
from warpup.data import Sampler
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions

from ..checks import check_not_negative, check_positive, check_unused
from ..errors import TrainError
from ..examples import Data, RewardName, TemplateArguments, check_columns
from ..model.heads import Head
from ..model.optim import RateSchedule, adamw, learning_rate
from ..model.precision import without_dropout
from ..model.reference import Snapshot
from ..model.routers import check_balance
from ..model.tokens import check_length, encode_prompt, end_tokens
from ..rewards.reward_set import VERIFIER, RewardSet, Scores
from ..run import StageRun
from ..sampling.decoding import DecodingStrategy, split_words
from ..sampling.episodes import first_prompts, load_environment
from ..sampling.groups import Groups, mean, parts
from ..sampling.prompts import SAMPLERS, Prompts, make_sampler
from ..sampling.rounds import advantages_of, complete, play_some
from .policy_step import Experience, policy_step, score_tokens


@dataclass
class RLVR:
    """Settings of the reinforcement stage."""

    FREE: ClassVar = ("max_tokens", "rows", "save_every", "patience", "reward_workers", "reward_timeout")

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
    credit: Literal["episode", "turn"] = "episode"
    """What a token of an episode is rewarded for: the whole, or what came from its turn on."""
    steps: int = 100
    """Batches of rollouts."""
    prompts: int = 8
    """Prompts a step."""
    samples: int = 16
    """Completions of each prompt: the group of the advantage."""
    max_new_tokens: int = 256
    """Completions are cut off at this many tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
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
    """What the rate does after the rise."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's betas."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    baseline: str = "mean"
    """What is taken from a reward: baseline of `group_advantage`."""
    scale: str = "none"
    """What the rest is divided by: scale of `group_advantage`."""
    advantage: str | None = None
    """An estimator of `warpup.advantage` by name, such as rloo or opo, in place of baseline and scale."""
    loss: str = "grpo"
    """Kind of `policy_loss`."""
    normalizer: Literal["token", "sequence", "constant"] | None = None
    """What the step's loss is divided by: its tokens, its sequences (each its mean over tokens), or all completions
    times max_new_tokens; none takes the loss's own. Groups that are left out count in the constant only."""
    clip_ratio: tuple[float, float] | None = None
    """How far below and above 1 the probability ratio counts; none takes the loss's own."""
    dual_clip: float | None = None
    """Where the advantage is below 0, bound of the ratio (above 1) that the clip leaves open."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    entropy_quantile: float = 0.0
    """Learn from the tokens whose entropy is at least this quantile of the step's: .8 keeps the uncertain fifth."""
    mask_truncated: bool = False
    """Learn nothing from completions that the length limit cut off."""
    kl_coef: float = 0.0
    """Weight of the KL to the model as it was before this stage; 0 keeps no copy of it."""
    kl: str = "k3"
    """How that KL is estimated, as `policy_loss` names it."""
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
    sampler: Literal["uniform", "sec", "dump"] = "uniform"
    """Which prompts come next: each once an epoch, or a curriculum over the examples' `category`."""
    category: str = "category"
    """Column that the curricula read."""
    max_tokens: int = 16384
    """Padded tokens that go through the model at once: less memory, same result."""
    rows: int = 256
    """Completions sampled at once: less memory, same distribution."""
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
        """Raise TrainError on settings that no run can have, and on those that nothing would read."""
        names = ("steps", "prompts", "max_new_tokens", "temperature", "lr", "inner_epochs", "minibatches", "max_tokens")
        check_positive(self, *names, "rows", "save_every", "patience", place="rlvr")
        check_not_negative(self, "lr_warmup", "clip", "kl_coef", "balance", "refill", "entropy_coef", place="rlvr")
        check_columns(self, "prompt", "answer", place="rlvr")
        self.reward_set()
        if self.environment:
            why = "an environment gives the rewards"
            check_unused(self, "reward", "reward_weights", "reward_timeout", "reward_workers", place="rlvr", why=why)
            check_unused(self, "schedule", place="rlvr", why="schedules are not followed over turns")
            check_positive(self, "turns", place="rlvr")
            load_environment(self.environment)
        else:
            why = "there is no environment; set rlvr.environment or leave it out"
            check_unused(self, "turns", "credit", place="rlvr", why=why)
        if self.credit == "turn" and self.advantage is not None:
            raise TrainError(f"rlvr.credit: turns have baseline and scale, not advantage {self.advantage!r}")
        if self.samples < 2:
            raise TrainError(f"rlvr.samples: a group needs at least 2 completions, got {self.samples}")
        if self.minibatches > self.prompts:
            raise TrainError(f"rlvr.minibatches: expected at most prompts, {self.prompts}, got {self.minibatches}")
        if not 0 <= self.entropy_quantile < 1:
            raise TrainError(f"rlvr.entropy_quantile: expected 0 (all tokens) to below 1, got {self.entropy_quantile}")
        if self.schedule == "plain" or self.schedule.endswith(".json"):
            why = "no schedule acts on words" if self.schedule == "plain" else "a schedule's file has its own words"
            check_unused(self, "words", place="rlvr", why=f"with schedule {self.schedule!r} {why}; leave it out")
        if self.sampler == "uniform":
            why = "the uniform sampler reads no category; leave it out or choose sampler sec or dump"
            check_unused(self, "category", place="rlvr", why=why)
        if self.reference_sync is not None:
            check_positive(self, "reference_sync", place="rlvr")
        if self.kl_coef == 0:
            why = "kl_coef is 0 and there is no reference; set kl_coef"
            check_unused(self, "kl", "reference_sync", place="rlvr", why=why)
        if self.advantage is not None:
            check_unused(self, "baseline", "scale", place="rlvr", why=f"advantage {self.advantage!r} has its own")
        for name, known in (("sampler", SAMPLERS), ("loss", POLICY_KINDS), ("advantage", ESTIMATORS)):
            value = getattr(self, name)
            if value not in known and value is not None:
                raise TrainError(f"rlvr.{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.clip_ratio is not None and POLICY_KINDS[self.loss].clip is None:
            raise TrainError(f"rlvr.clip_ratio: loss {self.loss!r} clips no ratio; leave it out, got {self.clip_ratio}")
        if self.inner_epochs * self.minibatches == 1:
            why = (
                "the one step on each batch is taken where every ratio is 1, nothing is clipped; leave it out or raise "
            )
            check_unused(self, "clip_ratio", "dual_clip", place="rlvr", why=why + "inner_epochs or minibatches")
        try:  # the operators themselves say what they refuse
            self.policy_options()
            some = [float(n) for n in range(self.samples)]
            advantages_of(self, Scores(rewards=some, columns={"one": some}), torch.ones(len(some), 1).bool())
        except ValueError as error:
            raise TrainError(f"rlvr: {error}") from error

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> Prompts:
        """Prompts as tokens, and the schedule of their sampling."""
        check_balance(model, self.balance, "rlvr")
        opened = [example["prompt"] for example in examples]
        if self.environment:
            opened = first_prompts(load_environment(self.environment), examples)
        ids = [encode_prompt(tokenizer, prompt, e) for prompt, e in zip(opened, examples, strict=True)]
        check_length(model, max(map(len, ids)) + self.max_new_tokens, "the longest prompt with max_new_tokens")
        decoding = DecodingStrategy.parse(self.schedule, tokenizer, split_words(self.words))
        if decoding.times:
            raise TrainError("rlvr.schedule: s1 writes tokens that no sampler drew, their log-probs cannot be replayed")
        make_sampler(self.sampler, examples, self.category, 0)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        used = decoding if decoding.schedule else None
        return Prompts(examples, ids, end_tokens(model, tokenizer), used, limit)

    def train(self, run: StageRun, prompts: Prompts) -> None:
        """Reinforce `run.model` on these prompts."""
        # Dropout stays off throughout: the loss compares log-probs with those of sampling, so both have to be of the
        # same function.
        model = without_dropout(run.model)
        head, rewards = Head(model), None if self.environment else self.reward_set()
        sampler = make_sampler(self.sampler, prompts.examples, self.category, run.seed)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        # The KL term holds the model to what it was before this stage, so its weights are kept if it is asked for.
        reference = Snapshot(model) if self.kl_coef else None
        kept = reference.values if reference and self.reference_sync else []  # what a checkpoint has to hold as well
        empty = 0  # steps in a row that had nothing to learn from

        for i in run.steps(self.steps, self.save_every, optimizer, sampler, kept):
            # Sample: a group of completions for each prompt, with the log-probs they were drawn at, and score each by a
            # function that checks it. A group whose rewards are all alike teaches nothing; with `refill`, others are
            # sampled in its place.
            groups = self.sample(run, prompts, sampler, rewards)
            used = groups.used.tolist()
            empty = 0 if any(used) else empty + 1
            if empty == self.patience:
                raise TrainError(
                    f"{run.name}: no usable group in {empty} steps in a row, every group's rewards are all alike (mean "
                    f"{mean(groups.scores.rewards):.3g}): the prompts are too hard, too easy, or the reward is constant"
                )

            # The reference's log-probs of the same tokens, once a step.
            rows = [g * self.samples + n for g, use in enumerate(used) if use for n in range(self.samples)]
            rows = [n for n in rows if groups.rolls.finished[n] or not self.mask_truncated]
            experience = Experience(groups.pairs, groups.rolls, groups.advantages, self.temperature)
            if reference and rows:
                if self.reference_sync and i and i % self.reference_sync == 0:
                    reference.take()
                with reference.restored():
                    (ref_logp,) = score_tokens(run, head, experience, rows, self.max_tokens)
                experience = replace(experience, ref_logp=ref_logp)

            # Loss and step: raise the log-prob of a completion by its advantage. Several times on the same completions
            # if asked for; then the clipped ratio of new to old probabilities keeps the policy from running away from
            # the one that was sampled.
            numbers: dict[str, Any] = {}
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule)
            for _ in range(self.inner_epochs):
                for part in parts(rows, self.minibatches, self.samples):
                    numbers = policy_step(
                        run, head, optimizer, experience, part, self.policy_options(), lr=lr, clip=self.clip,
                        max_tokens=self.max_tokens, entropy_quantile=self.entropy_quantile, balance=self.balance,
                        constant=len(groups.pairs) * self.max_new_tokens / self.minibatches,
                    )  # fmt: skip
            if not rows:
                run.count("skipped")
            run.record(numbers | groups.numbers())

    def sample(self, run: StageRun, prompts: Prompts, sampler: Sampler, rewards: RewardSet | None) -> Groups:
        """Groups of completions of the next prompts, scored, with their advantages."""
        groups = Groups(self.samples)
        for _ in range(1 + self.refill):
            missing = self.prompts - int(groups.used.sum())
            picked = sampler.next(missing)
            sampled = (play_some if self.environment else complete)(self, run, prompts, picked, rewards)
            for error in sampled.scores.errors:
                run.count("reward_errors", message=error)
            if sampled.scores.abstained:
                run.count("abstained", sampled.scores.abstained)
            groups.add(sampled, run.tokenizer.pad_token_id)
            # A curriculum prefers prompts whose rewards differ.
            by_group = sampled.advantages.reshape(len(picked), self.samples, -1).mean(-1)
            sampler.observe(picked, by_group)
            run.count("dropped_groups", int((by_group == 0).all(1).sum()))
            if groups.used.sum() == self.prompts:
                break
        return groups

    def reward_set(self) -> RewardSet:
        """The rewards with their weights; TrainError on what cannot be."""
        return RewardSet(self.reward, self.reward_weights, timeout=self.reward_timeout, workers=self.reward_workers)

    def policy_options(self) -> PolicyOptions:
        """Those of the loss, without the number that its sum is divided by; ValueError on what they refuse."""
        return PolicyOptions(
            kind=self.loss, clip=self.clip_ratio, dual_clip=self.dual_clip, kl_coef=self.kl_coef, kl=self.kl,
            entropy_coef=self.entropy_coef, normalizer=self.normalizer,
        )  # fmt: skip
