"""Examples of supervised training as tokens: what of each is learned, how much it counts, and towards which
distributions."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warpup.data.spool import Spool

from ..errors import TrainError
from .batch import Batch
from .spans import encode_spans, encode_turns, marked_spans
from .tokens import TokenPair, check_length, completion_text, encode_pair, end_tokens

SoftLabels = tuple[Tensor, Tensor]  # (T, K) int64 ids and (T, K) float32 probabilities of a completion's tokens


@dataclass(frozen=True)
class Supervised:
    """Examples as tokens. source: the example that each comes from; scores: (n,) float32, what each counts, where the
    objective weighs them; soft: of each the distributions that its completion's tokens are learned from, where there
    are some, as arrays of NumPy."""

    pairs: Sequence[TokenPair]
    source: Sequence[Mapping[str, Any]]
    scores: Tensor | None = None
    soft: Sequence[tuple[np.ndarray, np.ndarray]] | None = None

    def score(self, batch: Batch) -> Tensor:
        """(S,): what each sequence of the batch counts."""
        assert self.scores is not None
        return self.scores[batch.rows].to(batch.inputs.device)

    def targets(self, batch: Batch) -> SoftLabels:
        """(N, K) ids and probabilities for the tokens of the batch that are learned: the listed ones, or the tokens
        themselves with certainty."""
        if self.soft is None or not batch.rows:
            ids = batch.completion.unsqueeze(1)
            return ids, torch.ones_like(ids, dtype=torch.float32)
        found = [self._learned(row) for row in batch.rows]
        width = max(ids.shape[1] for ids, _ in found)
        padded = [[torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in each] for each in found]
        ids, probs = (torch.cat(parts).to(batch.inputs.device) for parts in zip(*padded, strict=True))
        return ids, probs

    def _learned(self, row: int) -> SoftLabels:
        assert self.soft is not None
        ids, probs = map(torch.from_numpy, self.soft[row])
        _, _, *learned = self.pairs[row]
        return (ids[learned[0]], probs[learned[0]]) if learned else (ids, probs)


class Picked(Sequence[Any]):
    """Items of a sequence by their numbers; it may be larger than memory, so none is kept."""

    def __init__(self, items: Sequence[Any], numbers: Sequence[int]):
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):
        return (
            [self.items[n] for n in self.numbers[index]]
            if isinstance(index, slice)
            else self.items[self.numbers[index]]
        )


def supervised(settings, model, tokenizer, examples: Sequence[Mapping[str, Any]], place: str) -> Supervised:
    """The examples of a stage with the settings of `Warmup`. What is left out or cut is said on stderr; TrainError,
    naming the example, on what cannot be learned from."""
    ends, limit, counts = end_tokens(model, tokenizer), settings.max_length, Counts()
    pairs, soft, scores, numbers = Spool(), Spool(), array("f"), array("q")
    several, longest = False, 0
    for number, example in enumerate(examples):
        what = f"{place} example {number}"
        if not example.get("completion") or "prompt" not in example:
            raise TrainError(f"{what} needs a prompt and a completion, it has {sorted(example)}")
        try:
            score = score_of(settings, example)
            pair = encode(settings, tokenizer, example, ends)
            labels = soft_labels(column(example, settings.soft_labels), pair) if settings.soft_labels else None
            pieces = list(fit(settings.too_long, pair, limit, counts, is_document=example["prompt"] == ""))
        except ValueError as error:
            raise TrainError(f"{what}: {error}") from error
        if score == 0:
            counts.weightless += 1
            continue
        for begin, end, piece in pieces:
            pairs.append(piece)
            numbers.append(number)
            several |= len(piece) == 3
            longest = max(longest, len(piece[0]) + len(piece[1]))
            scores.append(score)
            if labels:
                soft.append(tuple(each[begin:end].numpy() for each in labels))
    counts.tell(place)
    if not pairs:
        raise TrainError(f"{place}: no example is left to learn from")
    if settings.turns == "all" and not several:
        raise TrainError(f'{place}.turns: got "all", but no prompt is chat messages; leave it out')
    check_length(model, longest, "the longest example")
    weighs = settings.score is not None
    return Supervised(
        pairs, Picked(examples, numbers), torch.tensor(scores, dtype=torch.float32) if weighs else None,
        soft if settings.soft_labels else None,
    )  # fmt: skip


def column(example: Mapping[str, Any], name: str) -> Any:
    """The value of a column; ValueError if there is none."""
    if example.get(name) is None:
        raise ValueError(f"no column {name!r}, there are {sorted(example)}")
    return example[name]


def encode(settings, tokenizer, example: Mapping[str, Any], ends: Sequence[int]) -> TokenPair:
    """Prompt and completion, and where only parts of the completion are learned, which."""
    example = {**example, "completion": completion_text(example)}
    if settings.turns == "all" and not isinstance(example["prompt"], str):
        return encode_turns(tokenizer, example, ends)
    if settings.spans:
        return encode_spans(tokenizer, example, column(example, settings.spans), ends)
    if settings.markers:
        text, spans = marked_spans(example["completion"], settings.markers)
        return encode_spans(tokenizer, {**example, "completion": text}, spans, ends)
    return encode_pair(tokenizer, example, ends)


# ---- What an example counts -----------------------------------------------------------------------------------------


def score_of(settings, example: Mapping[str, Any]) -> float:
    """An example's weight: 1, its score, exp(score / tau), or of an advantage what is above 0."""
    if settings.score is None:
        return 1.0
    value = column(example, settings.score)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"column {settings.score!r}: expected a finite number, got {value!r}")
    if settings.objective == "a_lol":
        return max(float(value), 0.0)
    if settings.objective == "weighted":
        if value < 0:
            raise ValueError(f"column {settings.score!r}: expected a weight of at least 0, got {value!r}")
        return float(value)
    power = value / settings.tau
    if power > 80:  # e^80 is 5e34; float32 ends at e^88, and a sum of weights must fit too
        raise ValueError(
            f"column {settings.score!r}: exp({value!r} / tau) is too large a weight; raise tau, or subtract the best "
            "score from all of them"
        )
    return math.exp(power)


# ---- Distributions in place of tokens -------------------------------------------------------------------------------


def soft_labels(value: Any, pair: TokenPair) -> SoftLabels:
    """Ids and probabilities of {"ids": [[...], ...], "logprobs": [[...], ...]}, a list of tokens and their log-probs
    for each token of the completion. The probabilities of those listed are made to add up to 1."""
    tokens = len(pair[1])
    try:
        ids, logprobs = value["ids"], value["logprobs"]
        sizes = [len(each) for each in ids]
        fits = len(ids) == tokens and sizes == [len(each) for each in logprobs] and min(sizes) > 0
    except (KeyError, TypeError):
        raise ValueError('soft labels: expected {"ids": [[...], ...], "logprobs": [[...], ...]}') from None
    if not fits:
        raise ValueError(
            f"soft labels: expected as many tokens as log-probs, at least one, for each of the completion's {tokens} "
            f"tokens (its end among them); got {len(ids)} and {len(logprobs)} lists"
        )
    width = max(sizes)
    padded = torch.tensor([[*each, *[0] * (width - len(each))] for each in ids])
    logp = torch.tensor([[*each, *[-math.inf] * (width - len(each))] for each in logprobs], dtype=torch.float32)
    return padded, logp.softmax(-1)


# ---- Examples that are too long -------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What happened to examples that were not taken as they are."""

    dropped: int = 0
    cut: int = 0
    split: int = 0
    weightless: int = 0

    def tell(self, place: str) -> None:
        """On stderr: nothing is left out without a word."""
        told = {
            f"{self.dropped} too long and left out": self.dropped,
            f"{self.cut} cut": self.cut,
            f"{self.split} split": self.split,
            f"{self.weightless} that count nothing left out": self.weightless,
        }
        if any(told.values()):
            print(f"{place}: of the examples {', '.join(text for text, n in told.items() if n)}", file=sys.stderr)


def fit(
    too_long: str, pair: TokenPair, limit: int | None, counts: Counts, is_document: bool
) -> Iterator[tuple[int, int, TokenPair]]:
    """(begin, end, piece) of an example's completion, as `too_long` says where it is longer than `limit`: once as it
    is, not at all, up to the limit, or in pieces of which each begins with the token that the one before it ends with,
    so that every token is predicted once."""
    prompt, completion, *learned = pair
    size = len(completion)
    if limit is None or len(prompt) + size <= limit:
        yield 0, size, pair
    elif too_long == "refuse":
        raise ValueError(
            f"{len(prompt) + size} tokens are more than max_length, {limit}: raise it, or set too_long to drop, cut or "
            "split"
        )
    elif too_long == "split" and is_document:
        counts.split += 1
        whole = prompt + completion
        for begin in range(0, size, limit - 1):
            end = min(begin + limit - 1, size)
            yield begin, end, (whole[begin : begin + 1], completion[begin:end])
    elif too_long == "split":
        raise ValueError(f"longer than max_length, {limit}, and with a prompt it cannot be split; only plain texts can")
    elif too_long == "cut" and len(prompt) < limit and (not learned or any(learned[0][: limit - len(prompt)])):
        counts.cut += 1
        end = limit - len(prompt)
        yield 0, end, (prompt, completion[:end], learned[0][:end]) if learned else (prompt, completion[:end])
    else:
        counts.dropped += 1
