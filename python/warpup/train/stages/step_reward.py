"""A stage that makes the model a judge: of each step of a solution (process reward model), or of whole completions.

Steps: each has a label, and the logit that a value head reads behind it learns to tell it, by cross-entropy ("Let's
Verify Step by Step", arXiv 2305.20050). Completions: of a pair the preferred one shall score higher (Bradley-Terry, as
in arXiv 2203.02155). Or progress: numbers behind the steps, whose sum over a solution learns to be what the whole of it
got, so that each is what its step gave to that (SPA-RL, arXiv 2505.20732). What comes of it is a folder that
`warpup.rewards:reward_model` reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from warpup.policy.preference_loss import preference_loss
from warpup.policy.rows import row_sums

from .. import ranks
from ..checks import filled
from ..errors import TrainError
from ..model.batch import Batch, LengthBuckets, micro_batches
from ..model.fsdp import even_batches
from ..model.heads import Head
from ..model.optim import adamw, learning_rate
from ..model.precision import without_dropout
from ..model.reward_model import RewardModel, split_steps
from ..model.tokens import TokenPair, check_length
from ..model.value_head import ValueHead
from ..run import StageRun
from .step_reward_settings import StepRewardSettings

FOLDER = "reward"  # of the reward model, in the stage's folder
# What a judge of each loss scores.
SCORES: dict[str, Any] = {"bce": "steps", "progress": "progress", "bradley_terry": "completions"}


@dataclass
class StepReward(StepRewardSettings):
    """Settings of the reward model's stage."""

    def judge(self, model, tokenizer) -> RewardModel:
        """The model with a value head that knows nothing yet."""
        weight = model.get_output_embeddings().weight
        value = ValueHead(weight.shape[1], weight.device)
        return RewardModel(model, tokenizer, value, SCORES[self.loss], self.separator)

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> tuple[list[TokenPair], list[list[float]]]:
        """Tokens with the places that scores are read at, and of steps their labels; of pairs the chosen completion of
        example i is at 2 i, the rejected one behind it."""
        judge = self.judge(model, tokenizer)
        if Head(model).form == "opaque":
            raise TrainError("step_reward: a value head needs hidden states, and this model's output layer hides them")
        pairs, labels = [], []
        for number, example in enumerate(examples):
            where = f"step_reward example {number}"
            of_pairs = self.loss == "bradley_terry"
            wanted = (self.chosen, self.rejected) if of_pairs else (self.completions, self.labels)
            if any(example.get(name) in (None, "", []) for name in ("prompt", *wanted)):
                raise TrainError(f"{where} needs a prompt, {' and '.join(wanted)}, it has {sorted(example)}")
            if of_pairs:
                pairs += [judge.whole(example, example[side]) for side in wanted]
                continue
            steps, given = example[self.completions], self.labels_of(example[self.labels], where)
            steps = split_steps(steps, self.separator) if isinstance(steps, str) else list(steps)
            if self.loss == "bce" and (len(steps) != len(given) or not all(0 <= label <= 1 for label in given)):
                raise TrainError(f"{where}: {len(steps)} steps need as many labels from 0 to 1, got {given}")
            prompt, ids, marks = judge.steps(example, steps)
            if sum(marks) != len(steps):
                raise TrainError(f"{where}: a step has no tokens: {steps!r}")
            if self.last_only:
                marks, given = [False] * (len(marks) - 1) + [True], given[-1:]
            pairs.append((prompt, ids, marks))
            labels.append(given)
        check_length(model, max(len(pair[0]) + len(pair[1]) for pair in pairs), "the longest example")
        return pairs, labels

    def labels_of(self, given: Any, where: str) -> list[float]:
        """An example's labels as they stand in the data: one for each step, or of progress one for the whole."""
        several: Sequence[Any] = given if isinstance(given, list | tuple) and self.loss == "bce" else [given]
        if not all(isinstance(label, int | float) and math.isfinite(label) for label in several):
            wanted = "a list of numbers, one for each step" if self.loss == "bce" else "the number that the whole got"
            raise TrainError(f"{where}: expected as labels {wanted}, got {given!r}")
        return [float(label) for label in several]

    def train(self, run: StageRun, prepared: tuple[list[TokenPair], list[list[float]]]) -> None:
        """Train `run.model` and its value head, and write them to the folder `reward`."""
        (pairs, labels), model, pad = prepared, without_dropout(run.model, run.open), run.tokenizer.pad_token_id
        judge, together = self.judge(model, run.tokenizer), 2 if self.loss == "bradley_terry" else 1
        longest = [
            max(pairs[i : i + together], key=lambda pair: len(pair[0]) + len(pair[1]))
            for i in range(0, len(pairs), together)
        ]
        batches = LengthBuckets([pair[:2] for pair in longest], self.batch_size, run.seed)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        parameters = list(judge.value.parameters())
        optimizer.add_param_group({"params": parameters, "weight_decay": 0.0, "lr_scale": self.value_lr / self.lr})

        computed = {"bce": self.of_steps, "progress": self.of_progress, "bradley_terry": self.of_pairs}[self.loss]
        i = -1
        for i in run.steps(self.steps, self.save_every, optimizer, tensors=[p.data for p in parameters]):
            began, picked = time.perf_counter(), batches[i]
            rows = [together * row + n for row in picked for n in range(together)]
            # What the loss is divided by: labels, solutions or pairs, of the whole step.
            count = sum(len(labels[row]) for row in rows) if self.loss == "bce" else len(picked)
            mine = [together * row + n for row in ranks.share(picked) for n in range(together)]
            total: dict[str, float] = {}
            pieces = micro_batches(pairs, mine, pad, filled(self.max_tokens), model.device, together=together)
            for batch in even_batches(model, pieces, pad):
                with run.computing():
                    scores = judge.read(batch)
                loss, metrics = computed(scores, batch, labels, count)
                loss.backward()
                if not batch.rows:
                    continue
                for name, value in {"loss": loss.detach(), **metrics}.items():
                    total[name] = total.get(name, 0.0) + float(value)
            total = ranks.totals(total)
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule, self.lr_decay)
            norm = run.optimizer_step(optimizer, total["loss"], lr, self.clip)
            speed = sum(len(pairs[row][1]) for row in rows) / (time.perf_counter() - began)
            run.record(total | {"lr": lr, "grad_norm": norm, "tokens_per_s": speed})
            if i + 1 == self.steps:  # before the last checkpoint: with that the stage is done
                judge.save(run.folder / FOLDER)
        if i + 1 < self.steps:  # stopped early by the held-out score
            judge.save(run.folder / FOLDER)

    def of_steps(
        self, scores: Tensor, batch: Batch, labels: Sequence[Sequence[float]], count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the logits (N,) of the batch's steps; metrics are sums over them by `count`."""
        wanted = torch.tensor([label for row in batch.rows for label in labels[row]], device=scores.device)
        loss = binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / count
        return loss, {"accuracy": ((scores > 0) == (wanted > 0.5)).sum() / count}

    def of_progress(
        self, scores: Tensor, batch: Batch, labels: Sequence[Sequence[float]], count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the sums over each solution of the batch's scores (N,), over `count` solutions."""
        wanted = torch.tensor([labels[row][0] for row in batch.rows], device=scores.device)
        off = row_sums(scores, batch.cu_seqlens) - wanted
        return off.square().sum() / count, {"error": off.detach().abs().sum() / count}

    def of_pairs(self, scores: Tensor, batch: Batch, labels: object, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Bradley-Terry of scores (2 B,), the chosen first of each pair."""
        chosen, rejected = scores[::2], scores[1::2]
        loss, metrics = preference_loss(
            chosen, rejected, kind="bradley_terry", margin=self.margin, label_smoothing=self.label_smoothing,
            normalizer=count,
        )  # fmt: skip
        if self.center_coef:
            loss = loss + self.center_coef * (chosen + rejected).square().sum() / count
        return loss, {name: value * len(chosen) / count for name, value in metrics.items()}
