"""Stage two, RLVR: reinforcement learning with verifiable rewards on few prompts.

Group-relative policy gradient (GRPO, arXiv 2402.03300) in the variant of "Warm Up Before You Train" (arXiv 2505.13718):
advantage r - mean without division by the deviation, mean over tokens, no KL term unless asked for.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from warpup import group_advantage, policy_loss
from warpup.policy.policy_loss import POLICY_KINDS

from .batch import Batch, check_length, completion_logprob, encode_prompt, micro_batches
from .data import Data, RewardName
from .decoding import Decoding, split_words
from .errors import TrainError
from .evaluate import decode, mean
from .experts import Experts
from .optim import Schedule, adamw, learning_rate
from .rewards import VERIFIER, load_reward, score
from .rollout import Rollouts, rollout
from .run import StageRun


@dataclass
class RLVR:
    """Settings of the reinforcement stage."""

    data: Data = ""
    """Examples with "prompt" and whatever the reward function reads: a path or `hub:name`, or a list."""
    reward: RewardName = VERIFIER
    """`module:function` or `file.py:function`, called with (completion, example); a function from Python."""
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
    lr_schedule: Schedule = "constant"
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
    limit: int | None = 100
    """Use the first so many examples only."""
    prompt: str = "prompt"
    """Column of the prompts."""
    answer: str | None = "answer"
    """Column of the answers; null if there is none."""

    def train(self, run: StageRun, examples: Sequence[dict]) -> None:
        """Reinforce `run.model` on examples with "prompt"."""
        if self.loss not in POLICY_KINDS:
            raise TrainError(f"rlvr.loss: expected one of {', '.join(POLICY_KINDS)}, got {self.loss!r}")
        model, tokenizer, reward = run.model.eval(), run.tokenizer, load_reward(self.reward)
        prompts = [encode_prompt(tokenizer, example["prompt"]) for example in examples]
        check_length(model, max(map(len, prompts)) + self.max_new_tokens, "the longest prompt with max_new_tokens")
        sampler = make_sampler(self.sampler, examples, self.category, run.seed)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        reference = copy.deepcopy(model).requires_grad_(False) if self.kl_coef else None
        options = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "max_new_tokens": self.max_new_tokens}
        decoding = Decoding.parse(self.schedule, tokenizer, split_words(self.words))
        if decoding.times:
            raise TrainError("rlvr.schedule: s1 writes tokens that no sampler drew, their log-probs cannot be replayed")
        if decoding.schedule:
            options["decoding"] = decoding
        empty = 0

        def step(i: int) -> dict[str, Any]:
            nonlocal empty
            # Sample: a group of completions for each prompt, with the log-probs they were drawn at.
            picked = sampler.next(self.prompts)
            began = time.perf_counter()
            rolls = rollout(
                model,
                [prompts[k] for k in picked],
                copies=self.samples,
                temperature=self.temperature,
                generator=run.generator,
                **options,
            )
            sampled_in = time.perf_counter() - began

            # Score.
            texts = decode(tokenizer, rolls)
            asked = [examples[k] for k in picked for _ in range(self.samples)]
            scores = score(reward, texts, asked)
            for error in scores.errors:
                run.count("reward_errors", message=error)

            # Advantage: a group whose rewards are all alike teaches nothing and is left out.
            rewards = torch.tensor(scores.rewards)
            advantages = group_advantage(rewards, self.samples, baseline=self.baseline, scale=self.scale)
            by_group = advantages.view(len(picked), self.samples)
            sampler.observe(picked, by_group)
            used = (by_group != 0).any(1)
            run.count("dropped_groups", int((~used).sum()))
            empty = 0 if used.any() else empty + 1
            if empty == self.patience:
                raise TrainError(
                    f"{run.name}: no usable group in {empty} steps in a row, every group's rewards are all alike (mean "
                    f"{mean(scores.rewards):.3g}): the prompts are too hard, too easy, or the reward is constant"
                )

            # Loss and step.
            rows = used.repeat_interleave(self.samples).nonzero().squeeze(1).tolist()
            numbers = {}
            if rows:
                lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule)
                for _ in range(self.inner_epochs):
                    numbers = self.update(run, optimizer, reference, prompts, picked, rolls, advantages, rows, lr)
            else:
                run.count("skipped")
            generated = int(rolls.lengths.sum())
            return numbers | {
                "reward": mean(scores.rewards),
                "accuracy": mean(scores.correct),
                "format_ok": mean(scores.format_ok),
                "length": generated / len(texts),
                "unfinished": 1 - mean(rolls.finished.tolist()),
                "groups": int(used.sum()),
                "advantage": float(advantages.abs().mean()),
                "tokens_per_s": generated / sampled_in,
                "sample": {"prompt": asked[0]["prompt"], "completion": texts[0], "reward": scores.rewards[0]},
            }

        run.loop(step, self.steps, self.save_every, optimizer, sampler)

    def update(
        self, run, optimizer, reference, prompts, picked, rolls: Rollouts, advantages, rows, lr
    ) -> dict[str, Any]:
        """One optimizer step on the given rows of the rollouts; returns its numbers, means over tokens but the loss."""
        pairs = [(prompts[picked[n // self.samples]], rolls.completion(n)) for n in range(rolls.tokens.shape[0])]
        tokens = int(rolls.lengths[rows].sum())
        # Divisors of the whole step, so that its micro-batches add up.
        normalizer = self.normalizer or POLICY_KINDS[self.loss].normalizer
        divisors = {"token": tokens, "constant": len(pairs) * self.max_new_tokens}
        divisor = divisors.get(normalizer, len(rows))  # the others count sequences
        total: dict[str, float] = {}
        experts = Experts(run.model, self.balance)
        for batch in micro_batches(pairs, rows, run.tokenizer.pad_token_id, self.max_tokens, run.model.device):
            mask = batch.mask
            old = at_targets(batch, rolls.logp, rolls.lengths)
            replay = {}
            if rolls.delta is not None:
                replay = {"delta": at_targets(batch, rolls.delta, rolls.lengths), "token_set": rolls.token_set}
            with experts.watch(batch.attention):
                logp = completion_logprob(run.model, batch, self.temperature, **replay)
            ref = None
            if reference is not None:
                with torch.no_grad():
                    ref = completion_logprob(reference, batch, self.temperature, **replay)
            loss, metrics = policy_loss(
                logp,
                old,
                advantages[batch.rows].to(logp),
                mask,
                kind=self.loss,
                clip=self.clip_ratio,
                ref_logp=ref,
                kl_coef=self.kl_coef,
                normalizer=(normalizer, divisor),
            )
            share = int(mask.sum()) / tokens
            (loss + experts.loss(share)).backward()
            total["loss"] = total.get("loss", 0.0) + float(loss.detach())
            for name, value in metrics.items():
                value = float(value)
                before = total.get(name, 0.0)
                total[name] = max(before, value) if name == "ratio_max" else before + value * share
        norm = run.apply(optimizer, total["loss"], lr, self.clip)
        return total | experts.numbers() | {"grad_norm": norm, "lr": lr, "tokens": tokens}


def at_targets(batch: Batch, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, T): the values (N, L) of the rollouts' tokens where the batch has these tokens as targets, else 0."""
    mask = batch.mask
    out = torch.zeros(mask.shape, device=mask.device)
    out[mask] = torch.cat([values[n, : lengths[n]] for n in batch.rows])
    return out


def make_sampler(kind: str, examples: Sequence[dict], category: str, seed: int):
    """The prompt sampler of a name; the curricula need `category` in every example."""
    from warpup.data import DUMPSampler, SECSampler, UniformSampler

    if kind == "uniform":
        return UniformSampler(len(examples), seed=seed)
    missing = sum(category not in example for example in examples)
    if missing:
        raise TrainError(f"sampler {kind}: {missing} of {len(examples)} examples have no {category!r} column")
    return {"sec": SECSampler, "dump": DUMPSampler}[kind]([example[category] for example in examples], seed=seed)
