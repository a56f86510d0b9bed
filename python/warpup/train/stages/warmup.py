"""Stage one, warm-up: supervised fine-tuning on completions, here on long chains of thought from a cheap domain.

Follows "Warm Up Before You Train" (arXiv 2505.13718): loss on the completion tokens alone, AdamW, a short linear rise
of the learning rate.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..checks import check_not_negative, check_positive
from ..errors import TrainError
from ..examples import Data, TemplateArguments, check_columns
from ..model.batch import micro_batches
from ..model.heads import Head
from ..model.optim import RateSchedule, adamw, learning_rate
from ..model.routers import Routers, check_balance
from ..model.tokens import TokenPair, check_length, encode_pair, end_tokens
from ..run import StageRun


@dataclass
class Warmup:
    """Settings of the warm-up stage."""

    FREE: ClassVar = ("max_tokens", "save_every")

    data: Data = ""
    """Examples with "prompt" and "completion": a path or `hub:name` (see `warpup.data.load_examples`), or a list."""
    steps: int = 500
    """Optimizer steps."""
    batch_size: int = 32
    """Examples a step."""
    lr: float = 1e-5
    """Highest learning rate."""
    lr_warmup: int = 25
    """Steps over which the rate rises from 0."""
    lr_schedule: RateSchedule = "cosine"
    """What the rate does after the rise."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    balance: float | None = None
    """Weight of the balance loss of a model with routed experts; none takes its config's, as transformers means it."""
    max_tokens: int = 16384
    """Padded tokens that go through the model at once; larger batches are accumulated."""
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
        """Raise TrainError on settings that no run can have."""
        check_positive(self, "steps", "batch_size", "lr", "max_tokens", "save_every", place="warmup")
        check_not_negative(self, "lr_warmup", "clip", "balance", place="warmup")
        check_columns(self, "prompt", "completion", place="warmup")

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> list[TokenPair]:
        """Text becomes tokens once, before the first step: what cannot be read, or is longer than the model has
        positions for, ends the run here."""
        check_balance(model, self.balance, "warmup")
        ends = end_tokens(model, tokenizer)
        pairs = []
        for number, example in enumerate(examples):
            if not example.get("completion") or "prompt" not in example:
                raise TrainError(f"warm-up example {number} needs a prompt and a completion, it has {sorted(example)}")
            pairs.append(encode_pair(tokenizer, example, ends))
        check_length(model, max(len(prompt) + len(completion) for prompt, completion in pairs), "the longest example")
        return pairs

    def train(self, run: StageRun, pairs: Sequence[TokenPair]) -> None:
        """Train `run.model` on pairs of prompt and completion tokens."""
        model, head = run.model.train(), Head(run.model)
        batches = LengthBuckets(pairs, self.batch_size, run.seed)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)

        for i in run.steps(self.steps, self.save_every, optimizer):
            began = time.perf_counter()

            # Batch: rows of similar length, so that little of it is padding.
            rows = batches[i]
            tokens = sum(len(pairs[row][1]) for row in rows)

            # Loss: mean of -log p over the completion tokens of the whole batch. The prompt is given, not learned. The
            # batch goes through the model in pieces that fit into memory; each divides by the tokens of the whole, so
            # that their gradients add up to that of the batch, however it is cut.
            pieces = list(micro_batches(pairs, rows, run.tokenizer.pad_token_id, self.max_tokens, model.device))
            total, routers = 0.0, Routers(model, self.balance)
            attended = sum(int(batch.attention.sum()) for batch in pieces)
            with run.computing():
                routers.survey(pieces, head.hidden)
            for batch in pieces:
                with run.computing(), routers.watch(batch.attention):
                    loss = head.nll(head.hidden(batch), batch.completion, tokens)
                # A mixture of experts gets its routers' balance loss on top; of a dense model this is 0.
                (loss + routers.loss(int(batch.attention.sum()) / attended)).backward()
                total += loss.item()

            # Step, at the rate of this step.
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule)
            norm = run.optimizer_step(optimizer, total, lr, self.clip)
            seconds = time.perf_counter() - began
            numbers = {"loss": total, "lr": lr, "grad_norm": norm, "tokens": tokens, "tokens_per_s": tokens / seconds}
            run.record(numbers | routers.numbers())


class LengthBuckets:
    """Batches of rows of similar length; `self[step]` depends on seed and step alone, so resuming needs no cursor.

    Rows of one length side by side waste no padding, but a batch sorted over all data would always hold the same
    rows. So each epoch shuffles the rows, sorts stretches of `window` batches by length, cuts them into batches and
    shuffles those. Rows that do not fill a batch wait for another epoch.
    """

    def __init__(self, pairs: Sequence[TokenPair], size: int, seed: int, window: int = 32):
        self.lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
        self.size, self.seed, self.window = min(size, len(pairs)), seed, window
        self.per_epoch = len(pairs) // self.size
        self.epoch = self.batches = None

    def __getitem__(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self._shuffled(random.Random(f"{self.seed} {epoch}"))
        return self.batches[place]

    def _shuffled(self, rng: random.Random) -> list[list[int]]:
        rows = list(range(len(self.lengths)))
        rng.shuffle(rows)
        rows, stretch, batches = rows[: self.per_epoch * self.size], self.window * self.size, []
        for start in range(0, len(rows), stretch):
            part = sorted(rows[start : start + stretch], key=self.lengths.__getitem__)
            batches += [part[i : i + self.size] for i in range(0, len(part), self.size)]
        rng.shuffle(batches)
        return batches
