"""Stage two, RLVR: reinforcement learning with verifiable rewards on few prompts.

Group-relative policy gradient (GRPO, arXiv 2402.03300) in the variant of "Warm Up Before You Train" (arXiv 2505.13718):
advantage r - mean without division by the deviation, mean over tokens, no KL term unless asked for.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from warpup import group_advantage
from warpup.data import DUMPSampler, Sampler, SECSampler, UniformSampler
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.policy_loss import policy_loss_of

from .batch import Batch, TokenPair, check_length, completion_logprob, encode_prompt, micro_batches
from .checks import check_not_negative, check_positive, check_unused
from .decoding import DecodingStrategy, split_words
from .errors import TrainError
from .evaluation import mean
from .examples import Data, RewardName, check_columns
from .optim import RateSchedule, adamw, learning_rate
from .reward_calls import completions_of
from .rewards import VERIFIER, RewardSet
from .rollouts import Rollouts, rollout
from .routers import Routers, check_balance
from .run import StageRun


@dataclass
class RLVR:
    """Settings of the reinforcement stage."""

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
    """Baseline of `group_advantage`."""
    scale: str = "none"
    """Scale of `group_advantage`."""
    loss: str = "grpo"
    """Kind of `policy_loss`."""
    normalizer: Literal["token", "sequence", "constant"] | None = None
    """What the step's loss is divided by: its tokens, its sequences (each its mean over tokens), or all completions
    times max_new_tokens; none takes the loss's own. Groups that are left out count in the constant only."""
    clip_ratio: tuple[float, float] | None = None
    """How far below and above 1 the probability ratio counts; none takes the loss's own."""
    kl_coef: float = 0.0
    """Weight of the KL to the model as it was before this stage; 0 keeps no copy of it."""
    balance: float | None = None
    """Weight of the balance loss of a model with routed experts; none takes its config's, as transformers means it."""
    inner_epochs: int = 1
    """Optimizer steps on each batch of rollouts."""
    sampler: Literal["uniform", "sec", "dump"] = "uniform"
    """Which prompts come next: each once an epoch, or a curriculum over the examples' `category`."""
    category: str = "category"
    """Column that the curricula read."""
    max_tokens: int = 16384
    """Padded tokens that go through the model at once."""
    patience: int = 50
    """Steps in a row without one usable group before the run gives up."""
    save_every: int = 20
    """Steps between checkpoints."""
    limit: int | None = None
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    answer: str | None = "answer"
    """Column of the answers; null if there is none."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, and on those that nothing would read."""
        names = ("steps", "prompts", "max_new_tokens", "temperature", "lr", "inner_epochs", "max_tokens", "save_every")
        check_positive(self, *names, "patience", place="rlvr")
        check_not_negative(self, "lr_warmup", "clip", "kl_coef", "balance", place="rlvr")
        check_columns(self, "prompt", "answer", place="rlvr")
        if self.samples < 2:
            raise TrainError(f"rlvr.samples: a group needs at least 2 completions, got {self.samples}")
        if self.schedule == "plain" or self.schedule.endswith(".json"):
            why = "no schedule acts on words" if self.schedule == "plain" else "a schedule's file has its own words"
            check_unused(self, "words", place="rlvr", why=f"with schedule {self.schedule!r} {why}; leave it out")
        if self.sampler not in SAMPLERS:
            raise TrainError(f"rlvr.sampler: expected one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.sampler == "uniform":
            why = "the uniform sampler reads no category; leave it out or choose sampler sec or dump"
            check_unused(self, "category", place="rlvr", why=why)
        if self.loss not in POLICY_KINDS:
            raise TrainError(f"rlvr.loss: expected one of {', '.join(POLICY_KINDS)}, got {self.loss!r}")
        if self.clip_ratio is not None and POLICY_KINDS[self.loss].clip is None:
            raise TrainError(f"rlvr.clip_ratio: loss {self.loss!r} clips no ratio; leave it out, got {self.clip_ratio}")
        if self.clip_ratio is not None and self.inner_epochs == 1:
            raise TrainError(
                "rlvr.clip_ratio: the one step on each batch is taken where every ratio is 1, nothing is clipped; "
                "leave it out or raise inner_epochs"
            )
        self.reward_set()
        try:  # the operators themselves say what they refuse
            self.policy_options()
            group_advantage(torch.tensor([0.0, 1.0]), 2, baseline=self.baseline, scale=self.scale)
        except ValueError as error:
            raise TrainError(f"rlvr: {error}") from error

    def train(self, run: StageRun, examples: Sequence[dict]) -> None:
        """Reinforce `run.model` on examples with "prompt"."""
        # Dropout stays off throughout: the loss compares log-probs with those of sampling, so both have to be of the
        # same function.
        model, tokenizer, rewards = run.model.eval(), run.tokenizer, self.reward_set()
        prompts = [encode_prompt(tokenizer, example["prompt"]) for example in examples]
        check_length(model, max(map(len, prompts)) + self.max_new_tokens, "the longest prompt with max_new_tokens")
        check_balance(model, self.balance, "rlvr")
        sampler = make_sampler(self.sampler, examples, self.category, run.seed)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        # The KL term holds the model to what it was before this stage, so a copy of that is kept if it is asked for.
        reference = copy.deepcopy(model).requires_grad_(False) if self.kl_coef else None
        decoding = DecodingStrategy.parse(self.schedule, tokenizer, split_words(self.words))
        if decoding.times:
            raise TrainError("rlvr.schedule: s1 writes tokens that no sampler drew, their log-probs cannot be replayed")
        empty = 0  # steps in a row that had nothing to learn from

        for i in run.steps(self.steps, self.save_every, optimizer, sampler):
            # Sample: a group of completions for each prompt, with the log-probs they were drawn at.
            picked = sampler.next(self.prompts)
            began = time.perf_counter()
            rolls = rollout(
                model,
                [prompts[k] for k in picked],
                eos=tokenizer.eos_token_id,
                pad=tokenizer.pad_token_id,
                max_new_tokens=self.max_new_tokens,
                copies=self.samples,
                temperature=self.temperature,
                decoding=decoding if decoding.schedule else None,
                generator=run.generator,
            )
            sampled_in = time.perf_counter() - began

            # Score: one reward a completion, by a function that checks it. A call that failed gives NaN, is counted,
            # and takes part in nothing that follows; so does one that abstained.
            completions = completions_of(tokenizer, rolls)
            asked = [examples[k] for k in picked for _ in range(self.samples)]
            scores = rewards.score(completions, asked, group=self.samples)
            for error in scores.errors:
                run.count("reward_errors", message=error)
            if scores.abstained:
                run.count("abstained", scores.abstained)

            # Advantage: each reward against those of the same prompt. The group is its own baseline, so no value model
            # is needed. A group whose rewards are all alike teaches nothing and is left out.
            advantages = group_advantage(
                torch.tensor(scores.rewards), self.samples, baseline=self.baseline, scale=self.scale
            )
            by_group = advantages.view(len(picked), self.samples)
            sampler.observe(picked, by_group)  # a curriculum prefers prompts whose rewards differ
            used = (by_group != 0).any(1)
            run.count("dropped_groups", int((~used).sum()))
            empty = 0 if used.any() else empty + 1
            if empty == self.patience:
                raise TrainError(
                    f"{run.name}: no usable group in {empty} steps in a row, every group's rewards are all alike (mean "
                    f"{mean(scores.rewards):.3g}): the prompts are too hard, too easy, or the reward is constant"
                )

            # Loss and step, several times on the same completions if asked for; then the clipped ratio of new to old
            # probabilities keeps the policy from running away from the one that was sampled.
            rows = used.repeat_interleave(self.samples).nonzero().squeeze(1).tolist()
            numbers = {}
            if rows:
                lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule)
                pairs = [(prompts[picked[n // self.samples]], rolls.completion(n)) for n in range(len(completions))]
                for _ in range(self.inner_epochs):
                    numbers = self.update(run, optimizer, reference, pairs, rolls, advantages, rows, lr)
            else:
                run.count("skipped")

            generated = int(rolls.lengths.sum())
            run.record(
                numbers
                | {
                    "reward": mean(scores.rewards),
                    **{
                        f"reward/{name}": mean(column)
                        for name, column in scores.columns.items()
                        if len(scores.columns) > 1
                    },
                    "accuracy": mean(scores.correct),
                    "format_ok": mean(scores.format_ok),
                    "length": generated / len(completions),
                    "unfinished": 1 - mean(rolls.finished.tolist()),
                    "groups": int(used.sum()),
                    "advantage": float(advantages.abs().mean()),
                    "tokens_per_s": generated / sampled_in,
                    "sample": {
                        "prompt": asked[0]["prompt"],
                        "completion": completions[0].text,
                        "reward": scores.rewards[0],
                    },
                }
            )

    def reward_set(self) -> RewardSet:
        """The rewards with their weights; TrainError on what cannot be."""
        return RewardSet(self.reward, self.reward_weights, timeout=self.reward_timeout, workers=self.reward_workers)

    def policy_options(self) -> PolicyOptions:
        """Those of the loss, without the number that its sum is divided by; ValueError on what they refuse."""
        return PolicyOptions(kind=self.loss, clip=self.clip_ratio, kl_coef=self.kl_coef, normalizer=self.normalizer)

    def update(
        self,
        run: StageRun,
        optimizer,
        reference,
        pairs: Sequence[TokenPair],
        rolls: Rollouts,
        advantages: torch.Tensor,
        rows: Sequence[int],
        lr: float,
    ) -> dict[str, Any]:
        """One optimizer step on the given rows of the rollouts; returns its numbers, means over tokens but the loss.

        pairs: prompt and completion of each of the N rollouts. advantages (N,). rows: which of the N to learn from.
        """
        # The denominator is that of the whole step, so that its micro-batches add up.
        tokens = int(rolls.lengths[rows].sum())
        options = self.policy_options()
        normalizer, _ = options.division()
        counted = {"token": tokens, "constant": len(pairs) * self.max_new_tokens}
        options = replace(options, normalizer=(normalizer, counted.get(normalizer, len(rows))))  # else of sequences
        total: dict[str, float] = {}
        routers = Routers(run.model, self.balance)
        for batch in micro_batches(pairs, rows, run.tokenizer.pad_token_id, self.max_tokens, run.model.device):
            # Log-probs of the sampled tokens: as they were drawn, under the model now (with gradient), and under the
            # reference. What a schedule added to the logits is added again, so that a fresh sample's ratio is 1.
            old = at_targets(batch, rolls.logp, rolls.lengths)
            replay = {}
            if rolls.delta is not None:
                replay = {"delta": at_targets(batch, rolls.delta, rolls.lengths), "token_set": rolls.token_set}
            with routers.watch(batch.attention):
                logp = completion_logprob(run.model, batch, self.temperature, **replay)
            ref = None
            if reference is not None:
                with torch.no_grad():
                    ref = completion_logprob(reference, batch, self.temperature, **replay)
            # Raise the log-prob of a completion by its advantage: every token of it carries the same one.
            advantage = advantages[batch.rows].to(logp)
            loss, metrics = policy_loss_of(options, logp, old, advantage, batch.mask, ref_logp=ref)
            share = int(batch.mask.sum()) / tokens
            (loss + routers.loss(share)).backward()
            # Metrics are means over this piece's tokens, weighted by its share of the step's; a maximum stays one.
            total["loss"] = total.get("loss", 0.0) + float(loss.detach())
            for name, value in metrics.items():
                value = float(value)
                before = total.get(name, 0.0)
                total[name] = max(before, value) if name == "ratio_max" else before + value * share
        norm = run.optimizer_step(optimizer, total["loss"], lr, self.clip)
        return total | routers.numbers() | {"grad_norm": norm, "lr": lr, "tokens": tokens}


def at_targets(batch: Batch, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, T): the values (N, L) of the rollouts' tokens where the batch has these tokens as targets, else 0."""
    mask = batch.mask
    out = torch.zeros(mask.shape, device=mask.device)
    out[mask] = torch.cat([values[n, : lengths[n]] for n in batch.rows])
    return out


SAMPLERS = {"uniform": UniformSampler, "sec": SECSampler, "dump": DUMPSampler}


def make_sampler(kind: str, examples: Sequence[dict], category: str, seed: int) -> Sampler:
    """The prompt sampler of a name; the curricula need `category` in every example."""
    if kind == "uniform":
        return UniformSampler(len(examples), seed=seed)
    missing = sum(category not in example for example in examples)
    if missing:
        raise TrainError(f"sampler {kind}: {missing} of {len(examples)} examples have no {category!r} column")
    return SAMPLERS[kind]([example[category] for example in examples], seed=seed)
