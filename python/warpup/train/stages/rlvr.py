"""Stage two, RLVR: reinforcement learning with verifiable rewards on few prompts.

Group-relative policy gradient (GRPO, arXiv 2402.03300) in the variant of "Warm Up Before You Train" (arXiv 2505.13718):
advantage r - mean without division by the deviation, mean over tokens, no KL term unless asked for.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from warpup.data import Sampler

from .. import ranks
from ..checks import filled, named
from ..engines.ahead import Ahead
from ..engines.opened import check_opens, opened
from ..engines.protocol import Engine
from ..errors import TrainError
from ..model.cache import CachedModel
from ..model.heads import Head
from ..model.optim import adamw, learning_rate
from ..model.precision import without_dropout
from ..model.reference import Snapshot
from ..model.routers import check_balance
from ..model.tokens import check_length, encode_prompt, end_tokens
from ..rewards.reward_set import RewardSet
from ..run import StageRun
from ..samplers import draw, sampler_of
from ..sampling.decoding import DecodingStrategy, bias_of, split_words
from ..sampling.episodes import first_prompts, load_environment
from ..sampling.groups import Groups, Sampled, mean, parts
from ..sampling.prompts import Prompts
from ..sampling.roles import RoleBaselines
from ..sampling.rounds import complete, play_some
from ..sampling.segments import PARTS
from ..sampling.stopping import stop_strings
from .critic import Critic
from .policy_step import Experience, Update, policy_step, score_tokens
from .rlvr_checks import check_operators
from .rlvr_settings import RLVRSettings
from .token_baseline import credit_tokens

Credit = Callable[[Sampled], Sampled]  # gives completions their advantages


@dataclass
class RLVR(RLVRSettings):
    """Settings of the reinforcement stage."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have, and on those that nothing would read."""
        super().check()
        check_operators(self)

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> Prompts:
        """Prompts as tokens, and the schedule and thinking budget of their sampling."""
        check_balance(model, self.balance, "rlvr")
        for setting, alone in (("environment", self.environment), ("advantage", self.advantage in ("tree", "segment"))):
            if alone and ranks.size() > 1:
                raise TrainError(
                    f"rlvr.{setting}: {getattr(self, setting)} is for one process; start it without torchrun"
                )
        if self.advantage == "gae" and Head(model).form == "opaque":
            raise TrainError("rlvr.advantage: gae needs hidden states, and this model's output layer hides them")
        opened = [example["prompt"] for example in examples]
        if self.environment:
            opened = first_prompts(load_environment(self.environment), examples)
        ids = [encode_prompt(tokenizer, prompt, e) for prompt, e in zip(opened, examples, strict=True)]
        new = self.max_new_tokens + (self.max_new_tokens // PARTS + 1 if self.advantage == "segment" else 0)
        check_length(model, max(map(len, ids)) + new, "the longest prompt with max_new_tokens")
        decoding = DecodingStrategy.parse(self.schedule, tokenizer, split_words(self.words))
        if decoding.times:
            raise TrainError("rlvr.schedule: s1 writes tokens that no sampler drew, their log-probs cannot be replayed")
        decoding = decoding.under(self.thinking_budget, tokenizer, self.max_new_tokens, "rlvr.thinking_budget")
        if decoding.budget and decoding.budget.probe_every:
            CachedModel(model, 1).check_peek()
        sampler_of(self, examples, place="rlvr")
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        used = decoding if decoding.schedule or decoding.budget else None
        ends, stop = end_tokens(model, tokenizer), stop_strings(tokenizer, self.stop)
        with named("rlvr"):
            bias = bias_of(tokenizer, self.logit_bias) if self.logit_bias else None
        prompts = Prompts(examples, ids, ends, used, limit, stop, bias)
        check_opens(self, model, prompts, tokenizer.pad_token_id)
        return prompts

    def longest_row(self, prompts: Prompts) -> int:
        """Tokens of the longest prompt and its completion; of an episode as if what is said between its turns were as
        long as the prompt."""
        turns = self.turns if self.environment else 1
        return min(prompts.limit, turns * (max(map(len, prompts.ids)) + self.max_new_tokens))

    def train(self, run: StageRun, prompts: Prompts) -> None:
        """Reinforce `run.model` on these prompts."""
        # Dropout stays off throughout: the loss compares log-probs with those of sampling, so both have to be of the
        # same function.
        model = without_dropout(run.model, run.open)
        head, rewards = Head(model), None if self.environment else self.reward_set()
        sampler = sampler_of(self, prompts.examples, place="rlvr", seed=run.seed)
        engine, sampler = run.open.enter_context(opened(self, run, prompts, sampler))
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        # The KL term holds the model to what it was before this stage, so its weights are kept if it is asked for.
        reference = Snapshot(model) if self.kl_coef else None
        kept = list(reference.values) if reference and self.reference_sync else []  # what a checkpoint holds as well
        # Most advantages come of the rewards alone; others also of a critic, of running means, or of log-probs.
        critic = Critic(head, self, reference) if self.advantage == "gae" else None
        if critic:
            parameters = list(critic.value.parameters())
            optimizer.add_param_group({"params": parameters, "weight_decay": 0.0, "lr_scale": self.value_lr / self.lr})
            kept += [parameter.data for parameter in parameters]
        roles = RoleBaselines(self.roles, self.role_decay) if self.credit == "role" and not self.advantage else None
        kept += [roles.state] if roles else []
        credit: Credit | None = functools.partial(critic.credit, run) if critic else roles.credit if roles else None
        if self.advantage == "optimal_token_baseline":
            credit = functools.partial(credit_tokens, self, run, head)
        empty = 0  # steps in a row that had nothing to learn from
        sent = -1  # `run.learned` of the weights that the engine has

        for i in run.steps(self.steps, self.save_every, optimizer, sampler, kept):
            if sent != run.learned:
                engine.update_weights(model)
                sent = run.learned
            if reference and self.reference_sync and i and i % self.reference_sync == 0:
                reference.take()

            # Sample: a group of completions for each prompt, with the log-probs they were drawn at, and score each by a
            # function that checks it. A group whose rewards are all alike teaches nothing; with `refill`, others are
            # sampled in its place.
            groups = self.sample(run, prompts, sampler, engine, rewards, credit)
            empty = 0 if groups.used.any() else empty + 1
            if empty == self.patience:
                raise TrainError(
                    f"{run.name}: no usable group in {empty} steps in a row, every group's rewards are all alike (mean "
                    f"{mean(groups.scores.rewards):.3g}): the prompts are too hard, too easy, or the reward is constant"
                )
            # What has no reward teaches nothing, and is not in the denominator; but a tree's row may be the one that
            # learns what others begin with.
            rows = groups.rows(finished=self.mask_truncated, rewarded=self.advantage != "tree")
            experience = Experience(groups.pairs, groups.rolls, groups.advantages, self.temperature, **groups.tensors)

            # The reference's log-probs of the same tokens, once a step.
            if reference and self.kl != "full" and not self.kl_in_reward and rows:
                with reference.restored():
                    (ref_logp,) = score_tokens(run, head, experience, rows, filled(self.max_tokens))
                experience = replace(experience, ref_logp=ref_logp)

            # The sampler rounds otherwise than the trainer: where that is corrected for, the loss compares with the
            # trainer's own log-probs, and what was sampled has weights.
            numbers: dict[str, Any] = {"staleness": engine.staleness} if isinstance(engine, Ahead) else {}
            if (importance := self.importance()) and rows:
                experience, measured = importance.apply(run, head, experience, rows, filled(self.max_tokens))
                numbers |= measured

            # Loss and step: raise the log-prob of a completion by its advantage. Several times on the same completions
            # if asked for; then the clipped ratio of new to old probabilities keeps the policy from running away from
            # the one that was sampled.
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule, self.lr_decay)
            update = self.update(len(groups.pairs), reference, critic)
            for _ in range(self.inner_epochs):
                for part in parts(rows, self.minibatches, self.samples):
                    numbers |= policy_step(run, head, optimizer, experience, part, update, lr)
            if critic:
                numbers |= critic.numbers(groups)
            if roles:
                roles.finish_step()
            if not rows:
                run.count("skipped")
            run.record(numbers | groups.numbers())

    def sample(
        self, run: StageRun, prompts: Prompts, sampler: Sampler, engine: Engine, rewards: RewardSet | None,
        credit: Credit | None,
    ) -> Groups:  # fmt: skip
        """Groups of completions of the next prompts, scored, with their advantages."""
        groups = Groups(self.samples)
        for _ in range(1 + self.refill):
            missing = self.prompts - int(groups.used.sum())
            picked = draw(sampler, missing, len(prompts.ids), place="rlvr")
            if rewards is None:  # the environment gives them
                sampled = play_some(self, run, prompts, picked)
            else:
                sampled = complete(self, run, prompts, picked, rewards, engine)
            for error in sampled.scores.errors:
                run.count("reward_errors", message=error)
            if sampled.scores.abstained:
                run.count("abstained", sampled.scores.abstained)
            if credit:
                sampled = credit(sampled)
            groups.add(sampled, run.tokenizer.pad_token_id)
            # A curriculum prefers prompts whose rewards differ, or those that fail.
            by_group = sampled.advantages.reshape(len(picked), self.samples, -1)
            rewards_of, correct = (
                torch.tensor(values, dtype=torch.float64).reshape(len(picked), self.samples)
                for values in (sampled.scores.rewards, sampled.scores.correct)
            )
            sampler.observe(picked, advantages=by_group.mean(-1), rewards=rewards_of, correct=correct)
            run.count("dropped_groups", int((by_group == 0).flatten(1).all(1).sum()))
            if groups.used.sum() == self.prompts:
                break
        return groups

    def update(self, completions: int, reference: Snapshot | None, critic: Critic | None) -> Update:
        """How the policy learns from so many completions."""
        cov = {"cov_share": self.cov_share, "cov_bounds": self.cov_bounds}
        return Update(
            self.policy_options(), clip=self.clip, max_tokens=filled(self.max_tokens),
            constant=completions * self.max_new_tokens / self.minibatches, entropy_quantile=self.entropy_quantile,
            off_policy=self.off_policy_mask_threshold, full_kl=reference if self.kl == "full" else None,
            critic=critic, balance=self.balance,
            **{name: value for name, value in cov.items() if value is not None},
        )  # fmt: skip
