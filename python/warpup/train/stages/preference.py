"""A stage on pairs of completions, one preferred to the other: DPO and its relatives, without a reward function."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from warpup.data.spool import Spool
from warpup.policy.preference_loss import PREFERENCE_KINDS, preference_loss
from warpup.policy.rows import row_sums

from .. import ranks
from ..checks import filled
from ..errors import TrainError
from ..model.batch import Batch, LengthBuckets, micro_batches
from ..model.fsdp import even_batches
from ..model.heads import Head
from ..model.optim import adamw, learning_rate
from ..model.precision import without_dropout
from ..model.reference import Snapshot
from ..model.tokens import TokenPair, check_length, encode_pair, end_tokens
from ..run import StageRun
from .preference_settings import PreferenceSettings


@dataclass
class Preference(PreferenceSettings):
    """Settings of the preference stage."""

    def check(self) -> None:
        """Raise TrainError on settings that no run can have."""
        super().check()
        if not self.reference and PREFERENCE_KINDS[self.loss].reference == "needed":
            raise TrainError(f"preference.reference: loss {self.loss!r} compares with a reference; leave it out")
        try:  # the operator itself says what it refuses
            zero = torch.zeros(1)
            preference_loss(zero - 1, zero - 1, *([zero, zero] if self.compares else []), **self.options())
        except ValueError as error:
            raise TrainError(f"preference: {error}") from error

    @property
    def compares(self) -> bool:
        """Whether the loss reads log-probs of a reference."""
        return self.reference and PREFERENCE_KINDS[self.loss].reference != "none"

    def options(self) -> dict[str, Any]:
        """Those of `preference_loss`."""
        return {
            "kind": self.loss,
            "beta": self.beta,
            "margin": self.margin,
            "label_smoothing": self.label_smoothing,
        }

    def prepare(self, model, tokenizer, examples: Sequence[dict]) -> Sequence[TokenPair]:
        """Prompt and completion tokens: of example i the chosen at 2 i, the rejected behind it."""
        ends, pairs, longest = end_tokens(model, tokenizer), Spool(), 0
        for number, example in enumerate(examples):
            for side in (self.chosen, self.rejected):
                if not example.get(side) or "prompt" not in example:
                    raise TrainError(
                        f"preference example {number} needs a prompt and a {side}, it has {sorted(example)}"
                    )
                prompt, completion = encode_pair(tokenizer, example | {"completion": example[side]}, ends)
                pairs.append((prompt, completion))
                longest = max(longest, len(prompt) + len(completion))
        check_length(model, longest, "the longest example")
        return pairs

    def train(self, run: StageRun, pairs: Sequence[TokenPair]) -> None:
        """Train `run.model` to prefer the chosen completions."""
        # Dropout stays off: the two sides and the reference are compared, so all have to be of one function.
        model, pad = without_dropout(run.model, run.open), run.tokenizer.pad_token_id
        head = Head(model)
        batches = LengthBuckets(pairs, self.batch_size, run.seed, together=2)
        optimizer = adamw(model, self.lr, self.betas, self.weight_decay)
        reference = Snapshot(model) if self.compares else None

        for i in run.steps(self.steps, self.save_every, optimizer):
            began, rows = time.perf_counter(), batches[i]
            both = [row for k in ranks.share(rows) for row in (2 * k, 2 * k + 1)]
            chosen = sum(len(pairs[2 * k][1]) for k in rows)
            total: dict[str, float] = {"loss": 0.0}
            pieces = micro_batches(
                pairs, both, pad, filled(self.max_tokens), model.device, together=2, share=head.shares
            )
            for batch in even_batches(model, pieces, pad):
                # Log-probs of both sides, under the reference and under the model now.
                held = None
                if reference:
                    with reference.restored(), torch.no_grad(), run.computing():
                        held = self.sequences(head.logprob(head.hidden(batch), batch.completion), batch)
                with run.computing():
                    logp = head.logprob(head.hidden(batch), batch.completion)
                sides = self.sequences(logp, batch)
                references = [] if held is None else [held[::2], held[1::2]]
                loss, metrics = preference_loss(
                    sides[::2], sides[1::2], *references, normalizer=len(rows), **self.options()
                )
                if self.nll_coef:
                    # Beside it, imitation of the chosen side, so that raising a margin does not lower both.
                    tokens = row_sums(logp, batch.cu_seqlens)[::2]
                    loss = loss - self.nll_coef * tokens.sum() / chosen
                loss.backward()
                if not batch.rows:
                    continue
                total["loss"] += loss.item()
                for name, value in metrics.items():
                    total[name] = total.get(name, 0.0) + float(value) * len(batch.rows) / (2 * len(rows))
            total = ranks.totals(total)
            lr = learning_rate(i, self.steps, self.lr, self.lr_warmup, self.lr_schedule, self.lr_decay)
            norm = run.optimizer_step(optimizer, total["loss"], lr, self.clip)
            tokens = sum(len(pairs[2 * k + side][1]) for k in rows for side in (0, 1))
            speed = tokens / (time.perf_counter() - began)
            run.record(total | {"lr": lr, "grad_norm": norm, "tokens": tokens, "tokens_per_s": speed})

    def sequences(self, logp: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B,): log-probs of the sequences of packed tokens, sums or means, as the loss takes them."""
        total = row_sums(logp, batch.cu_seqlens)
        return total / batch.cu_seqlens.diff() if PREFERENCE_KINDS[self.loss].average else total
