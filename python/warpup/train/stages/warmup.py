"""Stage one, warm-up: supervised fine-tuning on completions, here on long chains of thought from a cheap domain.

Follows "Warm Up Before You Train" (arXiv 2505.13718): loss on the completion tokens alone, AdamW, a short linear rise
of the learning rate.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from warpup.data import Sampler

from .. import ranks
from ..checks import filled
from ..model.batch import LengthBuckets, micro_batches
from ..model.fsdp import even_batches
from ..model.heads import Head
from ..model.optim import adamw, learning_rate
from ..model.packing import check_packing, packed_batches
from ..model.precision import without_dropout
from ..model.reference import Snapshot
from ..model.routers import Routers, check_balance
from ..model.supervised import Supervised, supervised
from ..run import StageRun
from ..samplers import draw, sampler_of
from .objectives import batch_loss, sequence_logp, sequence_losses
from .warmup_settings import BY_SEQUENCE, WarmupSettings


@dataclass
class Warmup(WarmupSettings):
    """Settings of the warm-up stage."""

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> Supervised:
        """Text becomes tokens once, before the first step: what cannot be read, or is longer than the model has
        positions for, ends the run here."""
        check_balance(model, self.balance, "warmup")
        if self.packing:
            check_packing(model, "warmup")
        prepared = supervised(self, model, tokenizer, examples, "warmup")
        self.curriculum(prepared, seed=0)
        return prepared

    def curriculum(self, examples: Supervised, seed: int) -> Sampler | None:
        """The sampler, if it is another than the uniform one, whose batches are of similar length."""
        if self.sampler == "uniform":
            return None
        return sampler_of(self, examples.source, place="warmup", seed=seed)

    def train(self, run: StageRun, examples: Supervised) -> None:
        """Train `run.model` on these examples."""
        pairs, by_sequence = examples.pairs, self.objective in BY_SEQUENCE
        # An objective that compares with the model before the stage needs the same function at both times: no dropout.
        reference = Snapshot(run.model) if self.objective == "a_lol" else None
        model, head = without_dropout(run.model, run.open) if reference else run.model.train(), Head(run.model)
        pad = run.tokenizer.pad_token_id
        sampler = self.curriculum(examples, run.seed)
        reads_losses = "losses" in getattr(sampler, "reads", ())
        batches = LengthBuckets(pairs, self.batch_size, run.seed, window=1 if self.packing else 32)
        cut = packed_batches if self.packing else micro_batches
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)

        for i in run.steps(self.steps, self.save_every, optimizer, sampler):
            began = time.perf_counter()

            # Batch: rows of similar length, or packed ones, so that little of it is padding; or whatever a curriculum
            # wants. It goes through the model in pieces that fit into memory; each divides by the tokens (or
            # completions) of the whole, so that their gradients add up to that of the batch, however it is cut.
            rows = draw(sampler, self.batch_size, len(pairs), place="warmup") if sampler else batches[i]
            losses: dict[int, float] = {}  # of each row, for a curriculum that reads them
            cut_rows = cut(pairs, ranks.share(rows), pad, filled(self.max_tokens), model.device)
            pieces = even_batches(model, cut_rows, pad)
            tokens, attended, padded = ranks.total(
                sum(len(batch.completion) for batch in pieces),
                sum(int(batch.attended.sum()) for batch in pieces),
                sum(batch.inputs.numel() for batch in pieces),
            )
            padding = 1 - attended / padded
            total, routers = 0.0, Routers(model, self.balance)
            with run.computing():
                routers.survey(pieces, head.hidden)
            for batch in pieces:
                before = None
                if reference:
                    with reference.restored(), torch.no_grad(), run.computing():
                        before = sequence_logp(head, head.hidden(batch), batch)
                # Loss: mean of -log p over the completion tokens of the whole batch, or what else the objective makes
                # of it. The prompt is given, not learned.
                with run.computing(), routers.watch(batch.attended):
                    denominator = len(rows) if by_sequence else tokens
                    hidden = head.hidden(batch)
                    loss = batch_loss(self, head, hidden, batch, examples, denominator, before)
                if reads_losses:
                    with torch.no_grad(), run.computing():
                        losses |= zip(batch.rows, sequence_losses(head, hidden, batch).tolist(), strict=True)
                # A mixture of experts gets its routers' balance loss on top; of a dense model this is 0.
                (loss + routers.loss(int(batch.attended.sum()) / attended)).backward()
                total += loss.item()
            (total,) = ranks.total(total)

            if sampler:
                losses = {row: loss for part in ranks.gathered(losses) for row, loss in part.items()}
                sampler.observe(rows, **({"losses": [losses[row] for row in rows]} if reads_losses else {}))

            # Step, at the rate of this step.
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule, self.lr_decay)
            norm = run.optimizer_step(optimizer, total, lr, self.clip)
            seconds = time.perf_counter() - began
            numbers = {"loss": total, "lr": lr, "grad_norm": norm, "tokens": tokens, "tokens_per_s": tokens / seconds}
            run.record(numbers | {"padding": padding} | routers.numbers())
