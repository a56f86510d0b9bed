"""A stage that learns from another model's distributions, on given completions or on the student's own (GKD, arXiv
2306.13649)."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warpup import divergence
from warpup.data.spool import Spool

from .. import ranks
from ..checks import filled
from ..errors import TrainError
from ..model.batch import LengthBuckets, micro_batches
from ..model.compare import divergence_between
from ..model.fsdp import even_batches
from ..model.heads import Head
from ..model.load_model import load_model
from ..model.optim import adamw, learning_rate
from ..model.packing import check_packing, packed_batches
from ..model.precision import without_dropout
from ..model.tokens import TokenPair, check_length, encode_pair, encode_prompt, end_tokens
from ..run import StageRun
from ..sampling.rollouts import rollout
from .distill_settings import DistillSettings


@dataclass
class Distill(DistillSettings):
    """Settings of the distillation stage."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have."""
        super().check()
        labels = torch.zeros(1, dtype=torch.long) if self.divergence == "logit_swap" else None
        try:
            divergence(torch.zeros(1, 2), torch.zeros(1, 2), kind=self.divergence, beta=self.beta, targets=labels)
        except ValueError as error:
            raise TrainError(f"distill: {error}") from error

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> tuple[Sequence[TokenPair], list[int], Any]:
        """Prompt and completion tokens, the ids that end a completion, and the teacher."""
        teacher = self.teacher
        if isinstance(teacher, str):
            teacher, _ = load_model(teacher, device=model.device)
        sizes = [m.get_output_embeddings().weight.shape[0] for m in (model, teacher)]
        if sizes[0] != sizes[1]:
            raise TrainError(f"distill.teacher: its vocabulary has {sizes[1]} tokens, the student's {sizes[0]}")
        ends, pairs, longest = end_tokens(model, tokenizer), Spool(), 0
        for number, example in enumerate(examples):
            if self.online < 1 and not example.get("completion"):
                raise TrainError(
                    f"distill example {number} needs a completion, unless distill.online is 1; it has {sorted(example)}"
                )
            whole = encode_pair(tokenizer, example, ends) if self.online < 1 else None
            prompt, completion = whole or (encode_prompt(tokenizer, example["prompt"], example), [])
            pairs.append((prompt, completion))
            longest = max(longest, len(prompt) + max(len(completion), self.max_new_tokens * (self.online > 0)))
        for each in (model, teacher):
            check_length(each, longest, "the longest example")
            if self.packing:
                check_packing(each, "distill")
        return pairs, ends, teacher.requires_grad_(False).eval()

    def longest_row(self, prepared: tuple[Sequence[TokenPair], list[int], Any]) -> int:
        """Tokens of the longest prompt and a completion of the student's; 0 where it writes none."""
        return max(len(pair[0]) for pair in prepared[0]) + self.max_new_tokens if self.online else 0

    def train(self, run: StageRun, prepared: tuple[Sequence[TokenPair], list[int], Any]) -> None:
        """Train `run.model` towards the teacher."""
        pairs, ends, teacher = prepared
        model, pad = without_dropout(run.model, run.open), run.tokenizer.pad_token_id
        student_head, teacher_head = Head(model), Head(teacher)
        batches = LengthBuckets(pairs, self.batch_size, run.seed, window=1 if self.packing else 32)
        cut = packed_batches if self.packing else micro_batches
        options = {"kind": self.divergence, "beta": self.beta, "temperature": self.temperature}
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)

        for i in run.steps(self.steps, self.save_every, optimizer):
            began = time.perf_counter()
            batch_pairs = [pairs[row] for row in batches[i]]
            # On its own completions the student learns from the mistakes that it makes.
            own = random.Random(f"{run.seed} online {i}").random() < self.online
            if own:
                with run.computing():
                    rolls = rollout(
                        model, [pair[0] for pair in batch_pairs], eos=ends, pad=pad,
                        max_new_tokens=self.max_new_tokens, temperature=self.temperature, rows=self.rows,
                        generator=run.generator,
                    )  # fmt: skip
                batch_pairs = [(pair[0], rolls.completion(n)) for n, pair in enumerate(batch_pairs)]
            tokens, total = sum(len(pair[1]) for pair in batch_pairs), 0.0
            mine = ranks.share(range(len(batch_pairs)))
            pieces = cut(batch_pairs, mine, pad, filled(self.max_tokens), model.device)
            for batch in even_batches(model, pieces, pad):
                with run.computing():
                    with torch.no_grad():
                        theirs = teacher_head.hidden(batch)
                    ours = student_head.hidden(batch)
                    labels = batch.completion if self.divergence == "logit_swap" else None
                    each = divergence_between(student_head, ours, teacher_head, theirs, targets=labels, **options)
                    loss = each.sum() / tokens
                    if self.nll_coef:
                        loss = loss + self.nll_coef * student_head.nll(ours, batch.completion, tokens)
                loss.backward()
                total += loss.item()
            (total,) = ranks.total(total)
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule, self.lr_decay)
            norm = run.optimizer_step(optimizer, total, lr, self.clip)
            speed = tokens / (time.perf_counter() - began)
            numbers = {"loss": total, "lr": lr, "grad_norm": norm, "tokens": tokens, "tokens_per_s": speed}
            run.record(numbers | {"online": float(own)})
